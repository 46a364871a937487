/**
 * What a working copy may hold after a crash: per sector everything that was ever written there, how far of it was answered,
 * and how far was covered by an fsync that was answered. The simplest thing that can be right.
 */

export const SECTOR_BYTES = 512

/** What counts at one moment. */
export interface Moment {
  /** Per sector the first of its contents that may still be there: after a kill, and after a power cut. */
  readonly answered: readonly number[]
  readonly synced: readonly number[]
  /** Per sector how many contents it has had. */
  readonly issued: readonly number[]
  readonly sizeAnswered: number
  readonly sizeIssued: number
  /** The whole file may be this instead, all or nothing: it is being reverted. */
  readonly instead: Uint8Array | undefined
}

export class DiskModel {
  readonly #contents: Uint8Array[][]
  readonly #answered: number[]
  readonly #synced: number[]
  #sizeAnswered: number
  #sizeIssued: number
  #instead: Uint8Array | undefined

  /** A file that begins as `bytes` and grows to at most `sizeMax`. */
  constructor (bytes: Uint8Array, sizeMax: number) {
    const sectors = Math.ceil(sizeMax / SECTOR_BYTES)
    this.#contents = Array.from({ length: sectors }, (_, sector) => [sectorOf(bytes, sector)])
    this.#answered = Array.from({ length: sectors }, () => 0)
    this.#synced = Array.from({ length: sectors }, () => 0)
    this.#sizeAnswered = bytes.length
    this.#sizeIssued = bytes.length
  }

  get size (): number {
    return this.#sizeIssued
  }

  /** A write begins; to be called when it was answered. */
  write (offset: number, bytes: Uint8Array): () => void {
    const end = offset + bytes.length
    const wrote: Array<readonly [sector: number, index: number]> = []
    for (let sector = Math.floor(offset / SECTOR_BYTES); sector * SECTOR_BYTES < end; sector++) {
      const contents = this.#of(sector)
      const content = contents.at(-1)?.slice() ?? new Uint8Array(SECTOR_BYTES)
      const from = Math.max(offset, sector * SECTOR_BYTES)
      content.set(bytes.subarray(from - offset, Math.min(end, (sector + 1) * SECTOR_BYTES) - offset), from - sector * SECTOR_BYTES)
      wrote.push([sector, contents.push(content) - 1])
    }
    const grown = this.grow(end)
    return () => {
      grown()
      for (const [sector, index] of wrote) this.#answered[sector] = Math.max(this.#answered[sector] ?? 0, index)
    }
  }

  grow (size: number): () => void {
    this.#sizeIssued = Math.max(this.#sizeIssued, size)
    return () => { this.#sizeAnswered = Math.max(this.#sizeAnswered, size) }
  }

  /** An fsync begins, or whatever makes things durable. */
  sync (): () => void {
    const before = [...this.#answered]
    return () => { before.forEach((index, sector) => { this.#synced[sector] = Math.max(this.#synced[sector] ?? 0, index) }) }
  }

  /** Back to these bytes, with zeros behind them. */
  revert (bytes: Uint8Array): () => void {
    const instead = new Uint8Array(this.#sizeIssued)
    instead.set(bytes)
    this.#instead = instead
    return () => {
      this.#instead = undefined
      this.#contents.forEach((contents, sector) => {
        const index = contents.push(sectorOf(instead, sector)) - 1
        this.#answered[sector] = index
        this.#synced[sector] = index
      })
    }
  }

  now (): Moment {
    return {
      answered: [...this.#answered],
      synced: [...this.#synced],
      issued: this.#contents.map(({ length }) => length),
      sizeAnswered: this.#sizeAnswered,
      sizeIssued: this.#sizeIssued,
      instead: this.#instead
    }
  }

  /** What is wrong with these bytes, when all that counts since `oldest` may be there, up to what was issued at the moment. */
  faults (bytes: Uint8Array, oldest: readonly number[], moment: Moment): string[] {
    if (moment.instead !== undefined && Buffer.compare(bytes, moment.instead) === 0) return []
    if (bytes.length < moment.sizeAnswered || bytes.length > moment.sizeIssued) return [`${bytes.length} bytes, not ${moment.sizeAnswered} to ${moment.sizeIssued}`]
    const faults: string[] = []
    for (let sector = 0; sector * SECTOR_BYTES < bytes.length; sector++) {
      const found = bytes.subarray(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES)
      const contents = this.#of(sector)
      const is = (index: number): boolean => Buffer.compare(found, (contents[index] as Uint8Array).subarray(0, found.length)) === 0
      let index = moment.issued[sector] ?? 0
      const first = oldest[sector] ?? 0
      while (index > first && !is(index - 1)) index--
      if (index > first) continue
      const other = contents.findIndex((_, at) => is(at))
      faults.push(`sector ${sector} holds ${other < 0 ? 'what nobody wrote' : `its content ${other}`}, not one of ${first} to ${(moment.issued[sector] ?? 0) - 1}`)
    }
    return faults
  }

  #of (sector: number): Uint8Array[] {
    const contents = this.#contents[sector]
    if (contents === undefined) throw new Error(`the model has no sector ${sector}`)
    return contents
  }
}

function sectorOf (bytes: Uint8Array, sector: number): Uint8Array {
  const content = new Uint8Array(SECTOR_BYTES)
  content.set(bytes.subarray(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES))
  return content
}
