/**
 * Deadlines for thousands of small things per second: those that begin at about the same time share a timer, and one listener on what
 * ends them all. With one each, they are most of what a small put costs. State it owns: per length, who waits.
 */
import { abortErrorOf } from '../protocols/abort.ts'
import type { P2pvmError } from '../protocols/errors.ts'
import type { Clock, Deadline } from '../protocols/seams.ts'

type GiveUp = (error: P2pvmError) => void

interface Shared {
  readonly startMs: number
  readonly deadline: Deadline
  readonly waiting: Set<GiveUp>
}

/** Of its length, how much later than asked for a deadline may come. */
const LATER = 1 / 16

export class SharedDeadlines {
  readonly #clock: Clock
  readonly #signal: AbortSignal | undefined
  /** By length: the one that others may join. */
  readonly #joined = new Map<number, Shared>()

  /** `signal` ends all of them early. */
  constructor (clock: Clock, signal: AbortSignal | undefined) {
    this.#clock = clock
    this.#signal = signal
  }

  /** Calls `giveUp` when `ms` are over, or a little later, or at once when the signal has aborted. What is returned takes that back. */
  wait (ms: number, giveUp: GiveUp): () => void {
    const shared = this.#shared(ms)
    if (shared.deadline.signal.aborted) {
      giveUp(abortErrorOf(shared.deadline.signal))
      return () => {}
    }
    shared.waiting.add(giveUp)
    return () => {
      if (!shared.waiting.delete(giveUp) || shared.waiting.size > 0) return
      shared.deadline[Symbol.dispose]()
      if (this.#joined.get(ms) === shared) this.#joined.delete(ms)
    }
  }

  #shared (ms: number): Shared {
    const nowMs = this.#clock.monotonic()
    const joined = this.#joined.get(ms)
    if (joined !== undefined && nowMs - joined.startMs <= LATER * ms) return joined
    const shared = { startMs: nowMs, deadline: this.#clock.deadline((1 + LATER) * ms, this.#signal), waiting: new Set<GiveUp>() }
    const { signal } = shared.deadline
    signal.addEventListener('abort', () => { for (const giveUp of shared.waiting) giveUp(abortErrorOf(signal)) })
    this.#joined.set(ms, shared)
    return shared
  }
}
