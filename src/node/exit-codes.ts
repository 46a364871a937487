/** The one table from errors to exit codes. */
import { type ErrorCode, errorCodeOf } from '../protocols/errors.ts'

export const EXIT = {
  done: 0,
  failed: 1,
  usage: 2,
  partly: 3,
  notFound: 10,
  conflict: 11,
  notAllowed: 12,
  integrity: 13,
  unavailable: 14,
  interrupted: 130
} as const

export type ExitCode = (typeof EXIT)[keyof typeof EXIT]

const EXIT_CODES: Readonly<Record<ErrorCode, ExitCode>> = {
  ERR_USAGE: EXIT.usage,
  ERR_NOT_FOUND: EXIT.notFound,
  ERR_CONFLICT: EXIT.conflict,
  ERR_NOT_ALLOWED: EXIT.notAllowed,
  ERR_CORRUPT: EXIT.integrity,
  ERR_MISSING: EXIT.integrity,
  ERR_UNAVAILABLE: EXIT.unavailable,
  ERR_TIMEOUT: EXIT.unavailable,
  ERR_DISK_FULL: EXIT.failed,
  ERR_SOURCE_CHANGED: EXIT.failed,
  ERR_PROTOCOL: EXIT.failed,
  ERR_ABORTED: EXIT.interrupted,
  ERR_INTERNAL: EXIT.failed
}

/** What each means, for `--help`. */
export const EXIT_MEANINGS: Readonly<Record<ExitCode, string>> = {
  [EXIT.done]: 'done',
  [EXIT.failed]: 'failed',
  [EXIT.usage]: 'the command line or an argument is wrong',
  [EXIT.partly]: 'partly done',
  [EXIT.notFound]: 'no such image, version, blob, working copy or mount',
  [EXIT.conflict]: 'conflict: it has moved on, is taken, or is busy',
  [EXIT.notAllowed]: 'not allowed',
  [EXIT.integrity]: 'missing or corrupt chunks',
  [EXIT.unavailable]: 'unavailable or timed out: no daemon at the control socket, or peers that do not answer',
  [EXIT.interrupted]: 'interrupted'
}

export function exitCodeOf (error: unknown): ExitCode {
  return EXIT_CODES[errorCodeOf(error)]
}
