/**
 * Chance that can be had again: every draw follows from a seed, which the test prints, and P2PVM_TEST_SEED brings back.
 * What the operating system does with the same draws is another matter: a replay gives the same victims, bytes and moments.
 */
import { createHash, randomBytes } from 'node:crypto'

const SEED_BYTES = 8

/** The seed of this run: P2PVM_TEST_SEED, or a fresh one. */
export function testSeed (): string {
  return process.env['P2PVM_TEST_SEED'] ?? randomBytes(SEED_BYTES).toString('hex')
}

export class Chance {
  readonly seed: string
  #drawn = 0

  constructor (seed: string) {
    this.seed = seed
  }

  /** Draws of its own: what one round draws does not depend on how much the rounds before it drew. */
  fork (label: string | number): Chance {
    return new Chance(`${this.seed}/${label}`)
  }

  /** Uniform in [0, 1). */
  unit (): number {
    const hash = createHash('sha256').update(`${this.seed}#${this.#drawn++}`).digest()
    return hash.readUIntBE(0, 6) / 2 ** 48
  }

  /** A whole number in [0, end). */
  below (end: number): number {
    return Math.floor(this.unit() * end)
  }

  pick<T> (items: readonly T[]): T {
    const item = items[this.below(items.length)]
    if (item === undefined) throw new Error('nothing to pick from')
    return item
  }
}
