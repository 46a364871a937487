/** What a writer was given to write, as the version manager's answer has it. */
import type { Signer } from '../protocols/signatures.ts'
import type { VersionAnswer } from '../protocols/version-protocol.ts'
import { FIRST_ATTEMPT } from './attempts.ts'
import type { Version, VersionId } from './blobs.ts'
import type { Credentials } from './certificates.ts'
import { decodeHeader, type Header } from './publication-codec.ts'
import type { WriteShape } from './tree-names.ts'

export interface Assignment extends VersionId, WriteShape {
  /** The latest published version when this one was assigned. */
  readonly base: Version
  /** Assigned before this one, not published then; ascending, base + 1 … version - 1. */
  readonly inFlight: ReadonlyArray<WriteShape & { readonly version: number }>
}

export interface Assigned {
  readonly assignment: Assignment
  readonly base: Header
  readonly credentials: Credentials
}

/** `signer` is of the key that was sent with the request. ERR_PROTOCOL. */
export function assignmentOf (answer: VersionAnswer<'assign'>, signer: Signer): Assigned {
  const { blob, version, extents, sizeBefore, sizeAfter, inFlight } = answer
  const base = decodeHeader(answer.base)
  return {
    assignment: { blob, version, base: base.version, extents, sizeBefore, sizeAfter, inFlight },
    base,
    credentials: { certificate: { blob, version, attempt: FIRST_ATTEMPT, writerKey: signer.publicKey, signature: answer.certificate }, signer }
  }
}
