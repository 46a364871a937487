/** `{"error": {"code", "message", "fields"}}`: the one form of an error in `--json` output, over the sockets and in streams. */
import assert from 'node:assert/strict'
import { type ErrorCode, errorCodeOf, isErrorCode, P2pvmError } from '../protocols/errors.ts'

export interface ErrorDocument {
  readonly error: {
    readonly code: ErrorCode
    readonly message: string
    readonly fields: Readonly<Record<string, string | number>>
  }
}

/** A sentence is enough: nobody reads more, and frames are bounded. */
const MESSAGE_CHARACTERS_MAX = 2000

export function errorDocument (error: unknown): ErrorDocument {
  const { message, fields = {} } = (error ?? {}) as Partial<P2pvmError>
  return { error: { code: errorCodeOf(error), message: String(message ?? error).slice(0, MESSAGE_CHARACTERS_MAX), fields } }
}

/** Throws when it is not an error document. */
export function readErrorDocument (document: unknown): P2pvmError {
  const { error } = document as ErrorDocument
  assert(isErrorCode(error.code))
  return new P2pvmError(error.code, String(error.message), error.fields)
}
