/** `Chance` that is drawn by the hundred thousand: sfc32 (Chris Doty-Humphrey, PractRand) instead of a hash per draw. */
import { createHash } from 'node:crypto'
import type { Random } from '../../src/protocols/seams.ts'
import { Chance } from '../harness/seed.ts'

/** Rounds after which every bit of the state depends on every bit of the seed. */
const WARM_UP = 12

export class SeededRandom extends Chance implements Random {
  #a: number
  #b: number
  #c: number
  #counter = 1

  constructor (seed: string) {
    super(seed)
    const hash = createHash('sha256').update(seed).digest()
    this.#a = hash.readInt32LE(0)
    this.#b = hash.readInt32LE(4)
    this.#c = hash.readInt32LE(8)
    for (let round = 0; round < WARM_UP; round++) this.#next()
  }

  override fork (label: string | number): SeededRandom {
    return new SeededRandom(`${this.seed}/${label}`)
  }

  override unit (): number {
    return (this.#next() >>> 0) / 2 ** 32
  }

  bytes (count: number): Uint8Array {
    return Uint8Array.from({ length: count }, () => this.#next() & 0xff)
  }

  /** Exponentially distributed: the time to the next of events that know nothing of one another. */
  exponential (mean: number): number {
    return -mean * Math.log(1 - this.unit())
  }

  #next (): number {
    const result = (this.#a + this.#b + this.#counter) | 0
    this.#counter = (this.#counter + 1) | 0
    this.#a = this.#b ^ (this.#b >>> 9)
    this.#b = (this.#c + (this.#c << 3)) | 0
    this.#c = (((this.#c << 21) | (this.#c >>> 11)) + result) | 0
    return result
  }
}
