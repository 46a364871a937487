/**
 * Errors of the world: typed, with a stable code. Our own invariants use `assert` instead.
 *
 * One table maps codes to exit codes (`node/exit-codes.ts`), one maps them to errno (`mirror/errno.ts`).
 */
export type ErrorCode =
  | 'ERR_USAGE' // the caller's words are off: a bad name, size or option
  | 'ERR_NOT_FOUND' // no such image, version, blob, working copy, mount
  | 'ERR_CONFLICT' // the blob has moved on, the name is taken, the mountpoint is busy
  | 'ERR_NOT_ALLOWED' // an immutable version, a foreign fabric, a missing privilege
  | 'ERR_CORRUPT' // bytes that do not match their name
  | 'ERR_MISSING' // every peer that could have it answered that it has not
  | 'ERR_UNAVAILABLE' // somebody who could have it did not answer
  | 'ERR_TIMEOUT' // a deadline passed
  | 'ERR_DISK_FULL' // ENOSPC, or the free-space floor, here or at a peer
  | 'ERR_SOURCE_CHANGED' // the file being imported shrank or grew underneath us
  | 'ERR_PROTOCOL' // a peer said something that the protocol does not allow
  | 'ERR_ABORTED' // the caller gave up
  | 'ERR_INTERNAL'

/**
 * `reason` in the fields of an ERR_CONFLICT of the version manager, where it matters to a program which: a writer was taken for dead, and what it
 * asked for can be asked for anew; the blob has moved on, and it cannot; the request is of another peer.
 */
export type ConflictReason = 'fenced' | 'moved-on' | 'another-writer'

export class P2pvmError extends Error {
  readonly code: ErrorCode
  /** Ids that a program may want: blob, version, cid, peer, path … */
  readonly fields: Readonly<Record<string, string | number>>

  constructor (code: ErrorCode, message: string, fields: Record<string, string | number> = {}, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause })
    this.name = 'P2pvmError'
    this.code = code
    this.fields = fields
  }
}

const CODES: ReadonlySet<string> = new Set<ErrorCode>([
  'ERR_USAGE', 'ERR_NOT_FOUND', 'ERR_CONFLICT', 'ERR_NOT_ALLOWED', 'ERR_CORRUPT', 'ERR_MISSING', 'ERR_UNAVAILABLE',
  'ERR_TIMEOUT', 'ERR_DISK_FULL', 'ERR_SOURCE_CHANGED', 'ERR_PROTOCOL', 'ERR_ABORTED', 'ERR_INTERNAL'
])

export function isErrorCode (code: unknown): code is ErrorCode {
  return typeof code === 'string' && CODES.has(code)
}

/** The code of any thrown value; system errors and aborts are recognised, the rest is internal. */
export function errorCodeOf (error: unknown): ErrorCode {
  if (error instanceof P2pvmError) return error.code
  const { code, name } = (error ?? {}) as { code?: unknown, name?: unknown }
  if (isErrorCode(code)) return code
  if (code === 'ENOSPC' || code === 'EDQUOT') return 'ERR_DISK_FULL'
  if (code === 'ENOENT') return 'ERR_NOT_FOUND'
  if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS') return 'ERR_NOT_ALLOWED'
  if (name === 'TimeoutError') return 'ERR_TIMEOUT'
  if (name === 'AbortError') return 'ERR_ABORTED'
  return 'ERR_INTERNAL'
}
