/**
 * The version manager as the writer of a version whose writer died: the same node names, of another attempt, showing what the version
 * before has there. So whatever later versions link to exists, and reads as if the dead one had written nothing; what it was to grow by
 * reads as zeros. From the version before and the assignment alone: written again after a crash it is the same, byte for byte.
 */
import assert from 'node:assert/strict'
import { LEASE_MS } from '../protocols/version-protocol.ts'
import { ABORTED_ATTEMPT, Attempts } from './attempts.ts'
import type { BlobHistory } from './blob-history.ts'
import type { PublicationRecord } from './node-codec.ts'
import type { NodeStore } from './node-store.ts'
import { writeTree } from './tree-writer.ts'
import type { Assigned } from './version-store.ts'

/**
 * Of the version whose turn it is to be published. Returns when its nodes are durable. Not before its turn: over a published base no
 * slot links to a version in flight, so that dead writers one behind the other make no chain of links. Errors as writeTree.
 */
export async function writeAbortedTree (history: BlobHistory, assigned: Assigned, nodes: NodeStore, options: { signal: AbortSignal }): Promise<void> {
  const { blob, latest: base } = history
  assert(base !== undefined, 'version 0 is never aborted')
  const { extents, sizeBefore, sizeAfter } = assigned
  assert.equal(sizeBefore, base.size, 'it lies on the version before it')
  const assignment = { blob, version: base.version + 1, base, extents: [...extents], sizeBefore, sizeAfter, inFlight: [] }
  const attempts = new Attempts(history.exceptionsUpTo(base.version))
  await writeTree({ assignment, chunks: new Map(), attempt: ABORTED_ATTEMPT }, { nodes, attempts }, options)
}

export function abortedPublication (history: BlobHistory, version: number, assigned: Assigned, timeMs: number): PublicationRecord {
  const { blob, geometry: { chunkSize, fanOut } } = history
  return {
    version: {
      blob, version, size: assigned.sizeAfter, chunkSize, fanOut, root: { blob, version }, parent: { blob, version: version - 1 },
      timeMs, writer: assigned.writer, message: `aborted: nothing was heard of its writer for ${LEASE_MS / 1000} s`, bytesChanged: 0,
      attempt: ABORTED_ATTEMPT, exceptions: 0
    },
    sizeBefore: assigned.sizeBefore,
    extents: assigned.extents,
    exceptions: []
  }
}
