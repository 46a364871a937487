/** How bad the world is in one run. Each kind of fault is left out of some runs: what only shows without it shows there. */
import type { SeededRandom } from './seeded-random.ts'

export interface Weather {
  /** Of a message's way in one direction, and again of the connection while the request is being handled. */
  readonly loss: number
  /** Mean time on the way, exponentially distributed: messages overtake one another. */
  readonly delayMs: number
  /** Messages that take `straggleMs` at most instead. */
  readonly straggling: number
  readonly straggleMs: number
  /** Of chunks on their way, a byte turned over: somebody's bad memory. Nothing but chunks carries a hash to find it by. */
  readonly garbled: number
  /** Operations on disks that take up to half a second. */
  readonly diskStalls: number
  /** Mean time between two crashes anywhere; Infinity: none. */
  readonly crashEveryMs: number
  readonly downMsMax: number
  /** Mean time between two partitions; Infinity: none. */
  readonly partitionEveryMs: number
  readonly partitionMsMax: number
  /** Mean time between two chunk files that rot, all on one peer: the other copies are then good ones. Infinity: none. */
  readonly rotEveryMs: number
}

export const CALM: Weather = {
  loss: 0, delayMs: 1, straggling: 0, straggleMs: 0, garbled: 0, diskStalls: 0,
  crashEveryMs: Infinity, downMsMax: 100, partitionEveryMs: Infinity, partitionMsMax: 0, rotEveryMs: Infinity
}

export function weatherOf (random: SeededRandom): Weather {
  const sometimes = (value: number, otherwise: number): number => random.unit() < 0.8 ? value : otherwise
  return {
    loss: sometimes(random.unit() * 0.08, 0),
    delayMs: 0.5 + random.unit() * 10,
    straggling: sometimes(random.unit() * 0.1, 0),
    straggleMs: 50 + random.unit() * 6_000,
    garbled: sometimes(random.unit() * 0.03, 0),
    diskStalls: sometimes(random.unit() * 0.03, 0),
    crashEveryMs: sometimes(300 + random.unit() * 4_000, Infinity),
    downMsMax: random.pick([50, 1_000, 8_000]),
    partitionEveryMs: sometimes(1_000 + random.unit() * 10_000, Infinity),
    partitionMsMax: random.pick([300, 3_000, 20_000]),
    rotEveryMs: sometimes(500 + random.unit() * 5_000, Infinity)
  }
}
