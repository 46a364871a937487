/**
 * Export, READ and verify: a version, or a part of it, in order, holes left out. Fetches ahead by at most FETCH_AHEAD_BYTES, so
 * that the network is busy while the reader writes, and memory stays bounded.
 */
import type { ChunkAudit, Chunks, Priority } from '../dht/chunks.ts'
import { OVER } from '../protocols/abort.ts'
import type { ChunkId } from '../protocols/cid.ts'
import type { Blobs, Extent, Version } from './blobs.ts'
import type { SparseItem } from './image-import.ts'

const FETCH_AHEAD_BYTES = 8 * 1024 * 1024
const AUDIT_AT_ONCE = 64

interface Reading { readonly blobs: Blobs, readonly chunks: Chunks, readonly signal?: AbortSignal | undefined }

/** The bytes of a version, chunk by chunk in ascending order, then its size. Errors as Chunks.get. */
export function exportVersion (version: Version, reading: Reading): AsyncGenerator<SparseItem> {
  return piecesWithin(version, { offset: 0, size: version.size }, { ...reading, priority: 'commit' })
}

/**
 * READ of any length: what of `[offset, offset + size)` is no hole, then how many bytes it is, cut at the version's end. Offsets
 * of the pieces count from `offset`. Errors as Chunks.get.
 */
export function readVersion (version: Version, { offset, size }: Extent, reading: Reading): AsyncGenerator<SparseItem> {
  const within = Math.max(0, Math.min(size, version.size - offset))
  return piecesWithin(version, { offset, size: within }, { ...reading, priority: 'demand' })
}

async function * piecesWithin (
  version: Version, { offset, size }: Extent, { blobs, chunks, signal, priority }: Reading & { readonly priority: Priority }
): AsyncGenerator<SparseItem> {
  const ahead = Math.max(2, Math.floor(FETCH_AHEAD_BYTES / version.chunkSize))
  const abandoned = new AbortController()
  const fetchSignal = signal === undefined ? abandoned.signal : AbortSignal.any([signal, abandoned.signal])
  const fetching: Array<{ at: number, bytes: Promise<Uint8Array> }> = []

  async function * inOrder (keep: number): AsyncGenerator<SparseItem> {
    while (fetching.length > keep) {
      const head = fetching.shift()
      if (head === undefined) return
      // A stored chunk may end before the range begins, and the range, or the version, before the chunk does.
      const bytes = (await head.bytes).subarray(Math.max(0, offset - head.at), offset + size - head.at)
      if (bytes.length > 0) yield { offset: Math.max(0, head.at - offset), bytes }
    }
  }

  try {
    for await (const { index, id } of blobs.storedChunks(version, { offset, size }, { signal })) {
      const bytes = chunks.get(id, { signal: fetchSignal, priority })
      bytes.catch(() => {}) // awaited in order below; until then a failure is not unhandled
      fetching.push({ at: index * version.chunkSize, bytes })
      yield * inOrder(ahead)
    }
    yield * inOrder(0)
    yield { size }
  } finally {
    abandoned.abort(OVER)
  }
}

export interface Verification {
  readonly chunks: number
  readonly wanted: number
  readonly found: number
  readonly missing: number
  readonly degraded: number
  readonly corrupt: number
  readonly unreachable: number
}

/** Has every replica of every chunk of a version read and hashed where it lies. Sums as in control-api's VerifyResult. */
export async function verifyVersion (version: Version, { blobs, chunks, signal }: Reading): Promise<Verification> {
  const sum = { chunks: 0, wanted: 0, found: 0, missing: 0, degraded: 0, corrupt: 0, unreachable: 0 }
  const add = (audit: ChunkAudit): void => {
    sum.chunks += 1
    sum.wanted += audit.wanted
    sum.found += Math.min(audit.found.length, audit.wanted)
    if (audit.found.length === 0) sum.missing += 1
    else if (audit.found.length < audit.wanted) sum.degraded += 1
    sum.corrupt += audit.corrupt.length
    sum.unreachable += audit.unreachable.length
  }
  const seen = new Set<ChunkId>()
  let batch: ChunkId[] = []
  for await (const { id } of blobs.storedChunks(version, { offset: 0, size: version.size }, { signal })) {
    if (seen.has(id)) continue
    seen.add(id)
    batch.push(id)
    if (batch.length < AUDIT_AT_ONCE) continue
    for (const audit of await chunks.audit(batch, { signal, priority: 'prefetch' })) add(audit)
    batch = []
  }
  for (const audit of await chunks.audit(batch, { signal, priority: 'prefetch' })) add(audit)
  return sum
}
