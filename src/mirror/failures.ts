/** What of the kernel's requests goes to the log. Owns no state. */
import { errorCodeOf } from '../protocols/errors.ts'
import type { Log } from '../protocols/seams.ts'
import { ERRNO, errnoOf } from './errno.ts'

/** Errno that the caller asked for are his; those of a fabric or a disk that fails are for the log, and defects for us. */
export function logFailure (log: Log, request: string, error: unknown): void {
  const errno = errnoOf(error)
  if (errno !== ERRNO.EIO && errno !== ERRNO.ENOSPC) return
  const defect = errorCodeOf(error) === 'ERR_INTERNAL'
  log[defect ? 'error' : 'warn'](`${request} failed`, { error: defect && error instanceof Error ? error.stack : String(error) })
}
