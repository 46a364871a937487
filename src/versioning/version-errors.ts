/** What the version manager says no with, where more than one of its operations says it. */
import { type ConflictReason, P2pvmError } from '../protocols/errors.ts'
import { LEASE_MS, type VersionRequest } from '../protocols/version-protocol.ts'
import type { BlobId } from './blobs.ts'
import { sameExtents } from './extents.ts'
import type { Assigned } from './version-store.ts'

export function noSuchVersion (blob: BlobId, version: number): P2pvmError {
  return new P2pvmError('ERR_NOT_FOUND', `no version ${version} of ${blob}`, { blob, version })
}

export function usedOtherwise (requestId: string): P2pvmError {
  return new P2pvmError('ERR_USAGE', `request id ${requestId} was used for something else before`, { requestId })
}

/** That what was assigned to a request id is what is asked for with it again. ERR_USAGE, ERR_CONFLICT. */
export function checkSameRequest ({ change, writerKey }: Pick<VersionRequest<'assign'>, 'change' | 'writerKey'>, assigned: Assigned): void {
  const { extents, sizeBefore, sizeAfter } = assigned
  const same = change.kind === 'append'
    ? sizeAfter - sizeBefore === change.size
    : sizeAfter === Math.max(sizeBefore, change.size) && sameExtents(change.extents, extents)
  if (!same) throw usedOtherwise(assigned.requestId)
  if (Buffer.compare(writerKey, assigned.writerKey) !== 0) throw anothersRequest(assigned)
}

function anothersRequest ({ requestId, writer }: Assigned): P2pvmError {
  return new P2pvmError('ERR_CONFLICT',
    `request id ${requestId} belongs to the peer ${writer}: what it was assigned can be written with that peer's key only`, { requestId, peer: writer, reason: 'another-writer' satisfies ConflictReason })
}

export function assignedOtherwise (blob: BlobId, version: number): P2pvmError {
  return new P2pvmError('ERR_NOT_ALLOWED', `version ${version} of ${blob} was assigned to another request`, { blob, version })
}

export function oneOfGroup (blob: BlobId, version: number, members: number): P2pvmError {
  return new P2pvmError('ERR_NOT_ALLOWED', `version ${version} of ${blob} is one of a group of ${members}, which are complete together or not at all`, { blob, version })
}

/** With the reason's code. */
export function stillInDoubt (blob: BlobId, reason: unknown): unknown {
  if (!(reason instanceof P2pvmError)) return reason
  return new P2pvmError(reason.code,
    `the version manager has started again, and what is the latest version of ${blob} is not certain until storage peers have its publication record: ` +
    reason.message, { ...reason.fields, blob }, reason)
}

export function writerFenced (blob: BlobId, version: number): P2pvmError {
  return new P2pvmError('ERR_CONFLICT',
    `nothing was heard of the writer of version ${version} of ${blob} for ${LEASE_MS / 1000} s, so that it was aborted and shows nothing; ` +
    'nothing else has changed: do it again, as a new request', { blob, version, reason: 'fenced' satisfies ConflictReason })
}
