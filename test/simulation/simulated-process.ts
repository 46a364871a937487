/**
 * One life of a peer: the world as its code sees it. When it dies its code stays where it waits, for ever: its timers do not fire,
 * its requests get no answer, its disk does not return. Nothing of it happens after its death.
 */
import { createCounters, type CounterRegistry } from '../../src/node/world.ts'
import { P2pvmError } from '../../src/protocols/errors.ts'
import type { Log } from '../../src/protocols/seams.ts'
import type { PeerId } from '../../src/protocols/transport.ts'
import type { SeededRandom } from './seeded-random.ts'
import { SimulatedClock, type Timeline } from './simulated-clock.ts'
import { Power } from './simulated-disk.ts'
import type { Trace } from './trace.ts'
import type { Weather } from './weather.ts'

/** What all processes have in common. */
export interface Surroundings {
  readonly timeline: Timeline
  readonly trace: Trace
  readonly weather: () => Weather
  /** How often the power went, by the operation at which it did. */
  readonly powerCuts: Map<string, number>
}

export class SimulatedProcess {
  readonly peer: PeerId
  readonly random: SeededRandom
  readonly clock: SimulatedClock
  readonly counters: CounterRegistry = createCounters()
  readonly log: Log
  readonly power: ProcessPower
  readonly #death = new AbortController()

  constructor (peer: PeerId, random: SeededRandom, surroundings: Surroundings) {
    const { timeline, trace } = surroundings
    this.peer = peer
    this.random = random.fork('chance')
    this.clock = new SimulatedClock(timeline, () => this.isAlive)
    const write = (message: string): void => { if (this.isAlive) trace.add(peer, 'says:', message) }
    this.log = { debug () {}, info: write, warn: write, error: write }
    this.power = new ProcessPower(this, random.fork('power'), surroundings)
  }

  get isAlive (): boolean {
    return !this.#death.signal.aborted
  }

  /** Aborts with ERR_UNAVAILABLE. */
  get death (): AbortSignal {
    return this.#death.signal
  }

  die (): void {
    if (!this.isAlive) return
    this.power.cut()
    this.#death.abort(new P2pvmError('ERR_UNAVAILABLE', `${this.peer} died`, { peer: this.peer }))
  }
}

/** What only a disk's sync or a store's flush costs is time; the rest is in the page cache. */
const SLOW_OPERATIONS: ReadonlySet<string> = new Set(['datasync', 'syncDirectory', 'touch', 'write records', 'write versions', 'write seen', 'settle records', 'settle versions', 'settle seen'])
const FLUSH_MS_MAX = 4
const STALL_MS_MAX = 500

/** The power of a process's disk and stores: with it goes the process. */
export class ProcessPower extends Power {
  readonly #process: SimulatedProcess
  readonly #random: SeededRandom
  readonly #surroundings: Surroundings

  constructor (process: SimulatedProcess, random: SeededRandom, surroundings: Surroundings) {
    super(random)
    this.#process = process
    this.#random = random
    this.#surroundings = surroundings
  }

  override async step<T> (effect: () => T, operation = ''): Promise<T> {
    const { timeline, weather, trace, powerCuts } = this.#surroundings
    const stalled = this.#random.unit() < weather().diskStalls
    if (stalled || SLOW_OPERATIONS.has(operation)) await timeline.sleep(this.#random.unit() * (stalled ? STALL_MS_MAX : FLUSH_MS_MAX))
    if (!this.#process.isAlive) return await never()
    try {
      return await super.step(effect, operation)
    } catch (error) {
      if (!this.isOff) throw error
      if (this.#process.isAlive) {
        trace.add(this.#process.peer, 'loses its power at', operation)
        powerCuts.set(operation, (powerCuts.get(operation) ?? 0) + 1)
        this.#process.die()
      }
      return await never()
    }
  }
}

export async function never (): Promise<never> {
  return await new Promise<never>(() => {})
}
