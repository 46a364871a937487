/**
 * The version manager as the writer of a version whose writer died: the same node names, of another attempt, showing what the version
 * before has there. So whatever later versions link to exists, and reads as if the dead one had written nothing; what it was to grow by
 * reads as zeros. Certified and signed with the fabric's key. From the version before and the assignment alone: written again after a crash it is the same, byte for byte.
 */
import assert from 'node:assert/strict'
import type { Signer } from '../protocols/signatures.ts'
import { LEASE_MS } from '../protocols/version-protocol.ts'
import { ABORTED_ATTEMPT, Attempts } from './attempts.ts'
import type { BlobHistory } from './blob-history.ts'
import type { BlobId } from './blobs.ts'
import { certify } from './certificates.ts'
import type { NodeStore } from './node-store.ts'
import { writeTree } from './tree-writer.ts'
import type { Assigned, Completion } from './version-store.ts'

/**
 * Of the version whose turn it is to be published. Returns when its nodes are durable. Not before its turn: over a published base no
 * slot links to a version in flight, so that dead writers one behind the other make no chain of links. Errors as writeTree.
 */
export async function writeAbortedTree (
  history: BlobHistory, assigned: Assigned, { nodes, signer }: { nodes: NodeStore, signer: Signer }, options: { signal: AbortSignal }
): Promise<void> {
  const { blob, latest: base } = history
  assert(base !== undefined, 'version 0 is never aborted')
  const { extents, sizeBefore, sizeAfter } = assigned
  assert.equal(sizeBefore, base.size, 'it lies on the version before it')
  const assignment = { blob, version: base.version + 1, base, extents: [...extents], sizeBefore, sizeAfter, inFlight: [] }
  const attempts = new Attempts(history.exceptionsUpTo(base.version))
  const certificate = certify({ blob, version: assignment.version, attempt: ABORTED_ATTEMPT, writerKey: signer.publicKey }, signer)
  await writeTree({ assignment, chunks: new Map(), credentials: { certificate, signer } }, { nodes, attempts }, options)
}

export function abortedCompletion (blob: BlobId, version: number, timeMs: number): Completion {
  return {
    timeMs, message: `aborted: nothing was heard of its writer for ${LEASE_MS / 1000} s`, bytesChanged: 0, attempt: ABORTED_ATTEMPT,
    root: { blob, version }, parent: { blob, version: version - 1 }
  }
}
