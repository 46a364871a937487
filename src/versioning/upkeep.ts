/**
 * What the version manager does unasked: one loop per blob that has something open. A step ends what has expired and tries what is
 * due; the loop then sleeps until the next lease ends, or, after a failure, a while that grows.
 *
 * State it owns: the loops. Not for what a step does: `version-manager.ts`.
 */
import { Semaphore } from '../dht/semaphore.ts'
import type { Clock, Log, Random } from '../protocols/seams.ts'
import type { BlobId } from './blobs.ts'

/** Steps at once: a storage peer that hangs must not hold up all blobs, nor all of them press upon one that is back. */
const STEPS_AT_ONCE = 16
/** After the first failure; each further one doubles it. */
const PAUSE_MS_MIN = 500
/** A fabric that comes back is noticed within this, times the jitter. */
const PAUSE_MS_MAX = 10_000
/** A lease that has just ended is looked at again no sooner. */
const SLEEP_MS_MIN = 10

/** Returns for how long nothing is to be done, in ms, or undefined when the blob needs no more looking after. Throws when it must be tried again. */
export type Step = (blob: BlobId, signal: AbortSignal) => Promise<number | undefined>

interface Loop {
  readonly done: Promise<void>
  /** Ends the sleep until a lease ends. Not the pause after a failure, which bounds how often it is tried. */
  wake: () => void
  /** Something came during the step, which it may have missed. */
  again: boolean
}

export class Upkeep {
  readonly #clock: Clock
  readonly #random: Random
  readonly #log: Log
  readonly #step: Step
  readonly #stopping = new AbortController()
  readonly #steps = new Semaphore({ permits: STEPS_AT_ONCE })
  readonly #loops = new Map<BlobId, Loop>()

  constructor ({ clock, random, log }: { clock: Clock, random: Random, log: Log }, step: Step) {
    this.#clock = clock
    this.#random = random
    this.#log = log
    this.#step = step
  }

  /** Aborted by `stop`. */
  get signal (): AbortSignal {
    return this.#stopping.signal
  }

  /** The blob has something open: steps from now on, for as long as one asks for the next. */
  watch (blob: BlobId): void {
    if (this.signal.aborted) return
    const known = this.#loops.get(blob)
    if (known !== undefined) {
      known.again = true
      return
    }
    const { promise, resolve } = Promise.withResolvers<void>()
    const loop: Loop = { done: promise, wake: () => {}, again: false }
    this.#loops.set(blob, loop)
    void this.#run(blob, loop).finally(() => {
      this.#loops.delete(blob)
      resolve()
    })
  }

  /** Something can be done now. */
  hurry (blob: BlobId): void {
    this.watch(blob)
    this.#loops.get(blob)?.wake()
  }

  /** When it returns nothing is under way, and nothing begins any more. */
  async stop (): Promise<void> {
    this.#stopping.abort()
    await Promise.all(Array.from(this.#loops.values(), async ({ done }) => { await done }))
  }

  async #run (blob: BlobId, loop: Loop): Promise<void> {
    let pauseMs = PAUSE_MS_MIN
    while (!this.signal.aborted) {
      loop.again = false
      try {
        const restMs = await this.#steps.run(async () => await this.#step(blob, this.signal), this.signal)
        if (restMs === undefined && !loop.again) return
        pauseMs = PAUSE_MS_MIN
        if (restMs !== undefined) await this.#sleep(Math.max(restMs, SLEEP_MS_MIN), loop)
      } catch (error) {
        if (this.signal.aborted) return
        this.#log.warn('cannot bring a blob\'s open versions forward yet', { blob, error })
        await this.#clock.sleep(pauseMs * (0.5 + this.#random.unit()), this.signal).catch(() => {})
        pauseMs = Math.min(2 * pauseMs, PAUSE_MS_MAX)
      }
    }
  }

  async #sleep (ms: number, loop: Loop): Promise<void> {
    if (loop.again) return
    const woken = new AbortController()
    loop.wake = () => { woken.abort() }
    const onStop = (): void => { woken.abort() }
    this.signal.addEventListener('abort', onStop)
    try {
      await this.#clock.sleep(ms, woken.signal)
    } catch {
      // Woken, or stopped: the loop sees which.
    } finally {
      this.signal.removeEventListener('abort', onStop)
      loop.wake = () => {}
    }
  }
}
