/** Waiting for a daemon that comes back: while it is gone a miss is tried again until its deadline. Owns no state. */
import { errorCodeOf } from '../protocols/errors.ts'
import type { Clock } from '../protocols/seams.ts'

/** A daemon that restarts is back within seconds: ask soon at first, then once a second. */
const PAUSE_MS_MIN = 50
const PAUSE_MS_MAX = 1000

/** Does `work` again while it fails with ERR_UNAVAILABLE, until the signal aborts; then throws the last failure. */
export async function patiently<T> (clock: Clock, signal: AbortSignal, work: () => Promise<T>): Promise<T> {
  for (let pauseMs = PAUSE_MS_MIN; ; pauseMs = Math.min(pauseMs * 2, PAUSE_MS_MAX)) {
    try {
      return await withSignal(signal, work())
    } catch (error) {
      if (errorCodeOf(error) !== 'ERR_UNAVAILABLE' || signal.aborted) throw error
      try {
        await clock.sleep(pauseMs, signal)
      } catch {
        throw error
      }
    }
  }
}

/** Settles with the work, or with the signal's reason when it aborts first; the work goes on then, unwatched. */
export async function withSignal<T> (signal: AbortSignal, work: Promise<T>): Promise<T> {
  work.catch(() => {})
  signal.throwIfAborted()
  let onAbort = (): void => {}
  const aborted = new Promise<never>((_resolve, reject) => {
    onAbort = () => { reject(signal.reason as Error) }
    signal.addEventListener('abort', onAbort)
  })
  try {
    return await Promise.race([work, aborted])
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}

/** Work that several wait for, one piece per key at a time. */
export class Flights<K> {
  readonly #running = new Map<K, Promise<void>>()

  /** Joins the work under way, or begins it. Whoever joined one that ran out of its own time begins another. */
  async join (key: K, signal: AbortSignal, begin: () => Promise<void>): Promise<void> {
    for (;;) {
      const running = this.#running.get(key)
      if (running === undefined) {
        const mine = begin().finally(() => { this.#running.delete(key) })
        this.#running.set(key, mine)
        await withSignal(signal, mine)
        return
      }
      try {
        await withSignal(signal, running)
        return
      } catch (error) {
        const code = errorCodeOf(error)
        if (signal.aborted || (code !== 'ERR_TIMEOUT' && code !== 'ERR_ABORTED')) throw error
      }
    }
  }
}
