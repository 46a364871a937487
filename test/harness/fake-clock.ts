/**
 * A clock that moves only when a test says so. Timers fire in order; between two of them everything that they set off
 * gets to run until it waits for something else.
 */
import { P2pvmError } from '../../src/protocols/errors.ts'
import type { Clock, Deadline } from '../../src/protocols/seams.ts'
import { sleepOn } from './timers.ts'

interface Timer {
  readonly atMs: number
  readonly run: () => void
}

/** Turns of the event loop that let chains of promises, streams and microtasks come to rest. */
const SETTLE_TURNS = 4

export async function settle (): Promise<void> {
  for (let turn = 0; turn < SETTLE_TURNS; turn++) await new Promise((resolve) => setImmediate(resolve))
}

export class FakeClock implements Clock {
  readonly #startMs: number
  readonly #timers = new Set<Timer>()
  #elapsedMs = 0

  constructor (startMs = Date.UTC(2025, 0, 1)) {
    this.#startMs = startMs
  }

  now (): number {
    return this.#startMs + this.#elapsedMs
  }

  monotonic (): number {
    return this.#elapsedMs
  }

  async sleep (ms: number, signal?: AbortSignal): Promise<void> {
    await sleepOn((ms, run) => this.#after(ms, run), ms, signal)
  }

  deadline (ms: number, ...signals: Array<AbortSignal | undefined>): Deadline {
    const timeout = new AbortController()
    const cancel = this.#after(ms, () => { timeout.abort(new P2pvmError('ERR_TIMEOUT', `nothing within ${ms} ms`)) })
    const others = signals.filter((signal) => signal !== undefined)
    return { signal: AbortSignal.any([timeout.signal, ...others]), [Symbol.dispose]: cancel }
  }

  /** Timers that wait: a test can check that nothing is left behind. */
  get pending (): number {
    return this.#timers.size
  }

  async advance (ms: number): Promise<void> {
    const endMs = this.#elapsedMs + ms
    await settle()
    for (let next = this.#next(endMs); next !== undefined; next = this.#next(endMs)) {
      this.#elapsedMs = next.atMs
      this.#timers.delete(next)
      next.run()
      // Timers of the same instant go off together: fewer turns, and no order between them can be relied on.
      for (let same = this.#next(next.atMs); same !== undefined; same = this.#next(next.atMs)) {
        this.#timers.delete(same)
        same.run()
      }
      await settle()
    }
    this.#elapsedMs = endMs
  }

  #after (ms: number, run: () => void): () => void {
    const timer = { atMs: this.#elapsedMs + ms, run }
    this.#timers.add(timer)
    return () => { this.#timers.delete(timer) }
  }

  #next (untilMs: number): Timer | undefined {
    let first: Timer | undefined
    for (const timer of this.#timers) {
      if (timer.atMs <= untilMs && (first === undefined || timer.atMs < first.atMs)) first = timer
    }
    return first
  }
}
