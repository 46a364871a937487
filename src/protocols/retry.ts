/** Trying again what somebody did not answer, for a bounded time. Only for requests that may be repeated. */
import { throwIfAborted } from './abort.ts'
import { errorCodeOf, P2pvmError } from './errors.ts'
import type { Clock, Random } from './seams.ts'

/** A service that was restarted is found again within a tenth of a second. */
const PAUSE_MS_MIN = 100
/** One that is not there is not asked more often than this, times the jitter. */
const PAUSE_MS_MAX = 1000

export interface RetryOptions {
  readonly deadlineMs: number
  readonly signal?: AbortSignal | undefined
}

/**
 * The outcome of the first attempt that does not end with ERR_UNAVAILABLE or ERR_TIMEOUT. After `deadlineMs` the last such
 * error is the cause of an ERR_UNAVAILABLE; then, too, when that attempt was cut off. ERR_ABORTED when the caller gave up.
 */
export async function untilAvailable<T> (
  attempt: (signal: AbortSignal) => Promise<T>, { deadlineMs, signal }: RetryOptions, { clock, random }: { clock: Clock, random: Random }
): Promise<T> {
  const deadline = clock.deadline(deadlineMs, signal)
  let last: unknown
  try {
    for (let pauseMs = PAUSE_MS_MIN; !deadline.signal.aborted; pauseMs = Math.min(2 * pauseMs, PAUSE_MS_MAX)) {
      try {
        return await attempt(deadline.signal)
      } catch (error) {
        // That we cut it off is not news when an attempt before it said what is wrong.
        if (!deadline.signal.aborted || last === undefined) last = error
        if (!deadline.signal.aborted && !isTransient(error)) throw error
      }
      // A deadline that passes during the pause is found by the loop.
      await clock.sleep(pauseMs * (0.5 + random.unit()), deadline.signal).catch(() => {})
    }
  } finally {
    deadline[Symbol.dispose]()
  }
  throwIfAborted(signal)
  throw new P2pvmError('ERR_UNAVAILABLE', messageOf(last), last instanceof P2pvmError ? last.fields : {}, last)
}

function isTransient (error: unknown): boolean {
  const code = errorCodeOf(error)
  return code === 'ERR_UNAVAILABLE' || code === 'ERR_TIMEOUT'
}

function messageOf (error: unknown): string {
  return error instanceof Error ? error.message : 'nobody was asked in time'
}
