/** Several rounds of one measurement: the median, and how far apart they lie. */
export class Spread {
  readonly values: number[] = []

  add (value: number): void {
    this.values.push(value)
  }

  get last (): number {
    return this.values.at(-1) ?? NaN
  }

  get median (): number {
    return this.#quantile(0.5)
  }

  get min (): number {
    return this.#quantile(0)
  }

  get max (): number {
    return this.#quantile(1)
  }

  /** `12.3 (11.8–14.0)` */
  text (digits: number): string {
    if (this.values.length === 0) return '-'
    return `${this.median.toFixed(digits)} (${this.min.toFixed(digits)}–${this.max.toFixed(digits)})`
  }

  #quantile (q: number): number {
    if (this.values.length === 0) return NaN
    const sorted = this.values.toSorted((a, b) => a - b)
    const at = (sorted.length - 1) * q
    const [below, above] = [sorted[Math.floor(at)]!, sorted[Math.ceil(at)]!]
    return below + (above - below) * (at - Math.floor(at))
  }
}

export function spreadOf (values: Iterable<number>): Spread {
  const spread = new Spread()
  for (const value of values) spread.add(value)
  return spread
}
