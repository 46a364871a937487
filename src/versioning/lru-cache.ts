/** Least recently used goes first when the sum of the costs (bytes, or 1 each) passes the bound. */
export class LruCache<V> {
  readonly #costMax: number
  readonly #entries = new Map<string, { readonly value: V, readonly cost: number }>()
  #cost = 0

  constructor (costMax: number) {
    this.#costMax = costMax
  }

  get (key: string): V | undefined {
    const entry = this.#entries.get(key)
    if (entry === undefined) return undefined
    this.#entries.delete(key)
    this.#entries.set(key, entry)
    return entry.value
  }

  set (key: string, value: V, cost: number): void {
    this.#cost += cost - (this.#entries.get(key)?.cost ?? 0)
    this.#entries.delete(key)
    this.#entries.set(key, { value, cost })
    for (const [oldest, entry] of this.#entries) {
      if (this.#cost <= this.#costMax) return
      this.#entries.delete(oldest)
      this.#cost -= entry.cost
    }
  }
}
