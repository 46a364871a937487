/**
 * Giving up: turning an aborted signal into a typed error, and not waiting longer than a signal allows.
 */
import { P2pvmError, errorCodeOf } from './errors.ts'
import type { Clock } from './seams.ts'

/** The reason for ending what nobody needs any more, after success too. Without one, `abort()` makes a DOMException with a stack, each time. */
export const OVER = new P2pvmError('ERR_ABORTED', 'not needed any more')

/** Why the signal was aborted: ERR_TIMEOUT when a deadline did it, ERR_ABORTED when the caller gave up. */
export function abortErrorOf (signal: AbortSignal): P2pvmError {
  const reason: unknown = signal.reason
  if (reason instanceof P2pvmError) return reason
  const code = errorCodeOf(reason)
  return code === 'ERR_TIMEOUT'
    ? new P2pvmError(code, 'the deadline passed', {}, reason)
    : new P2pvmError('ERR_ABORTED', 'given up by the caller', {}, reason)
}

export function throwIfAborted (signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) throw abortErrorOf(signal)
}

/** The promise's outcome, or the abort's error if that comes first. The promise's late rejection is nobody's. */
export async function untilAborted<T> (promise: Promise<T>, signal: AbortSignal): Promise<T> {
  const aborted = Promise.withResolvers<never>()
  const onAbort = (): void => { aborted.reject(abortErrorOf(signal)) }
  signal.addEventListener('abort', onAbort)
  if (signal.aborted) onAbort()
  try {
    return await Promise.race([promise, aborted.promise])
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}

/** Does `work` under a deadline and the signals, and ends the timer after it. (Node 22 cannot parse `using`.) */
export async function withDeadline<T> (
  clock: Clock, ms: number, signals: ReadonlyArray<AbortSignal | undefined>, work: (signal: AbortSignal) => Promise<T>
): Promise<T> {
  const deadline = clock.deadline(ms, ...signals)
  try {
    return await work(deadline.signal)
  } finally {
    deadline[Symbol.dispose]()
  }
}
