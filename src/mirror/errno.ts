/** The one place that turns errors into errno. */
import { constants } from 'node:os'
import { type ErrorCode, errorCodeOf } from '../protocols/errors.ts'

export const ERRNO = constants.errno

/** A handler's answer to the kernel that is no failure of ours: ENODATA, EROFS, EISDIR … */
export class ErrnoError extends Error {
  readonly errno: number

  constructor (errno: number) {
    super(`errno ${errno}`)
    this.name = 'ErrnoError'
    this.errno = errno
  }
}

const BY_CODE: Readonly<Record<ErrorCode, number>> = {
  ERR_USAGE: ERRNO.EINVAL,
  ERR_NOT_FOUND: ERRNO.ENOENT,
  ERR_CONFLICT: ERRNO.EBUSY,
  ERR_NOT_ALLOWED: ERRNO.EPERM,
  ERR_CORRUPT: ERRNO.EIO,
  ERR_MISSING: ERRNO.EIO,
  ERR_UNAVAILABLE: ERRNO.EIO,
  ERR_TIMEOUT: ERRNO.EIO,
  ERR_DISK_FULL: ERRNO.ENOSPC,
  ERR_SOURCE_CHANGED: ERRNO.EIO,
  ERR_PROTOCOL: ERRNO.EIO,
  ERR_ABORTED: ERRNO.EINTR,
  ERR_INTERNAL: ERRNO.EIO
}

/** Positive, as in errno.h. */
export function errnoOf (error: unknown): number {
  if (error instanceof ErrnoError) return error.errno
  return BY_CODE[errorCodeOf(error)]
}
