/**
 * Export and verify: a whole version in order, holes left out. Fetches ahead by at most FETCH_AHEAD_BYTES, so that the
 * network is busy while the reader writes, and memory stays bounded.
 */
import type { ChunkAudit, Chunks } from '../dht/chunks.ts'
import type { ChunkId } from '../protocols/cid.ts'
import type { Blobs, Version } from './blobs.ts'
import type { SparseItem } from './image-import.ts'

const FETCH_AHEAD_BYTES = 8 * 1024 * 1024
/** Chunk ids are asked for in ranges of so many: some leaves in one batch per peer. */
const CHUNK_IDS_AT_ONCE = 1024
const AUDIT_AT_ONCE = 64

interface Reading { readonly blobs: Blobs, readonly chunks: Chunks, readonly signal?: AbortSignal | undefined }

/** The bytes of a version, chunk by chunk in ascending order, then its size. Errors as Chunks.get. */
export async function * exportVersion (version: Version, { blobs, chunks, signal }: Reading): AsyncGenerator<SparseItem> {
  const ahead = Math.max(2, Math.floor(FETCH_AHEAD_BYTES / version.chunkSize))
  const abandoned = new AbortController()
  const fetchSignal = signal === undefined ? abandoned.signal : AbortSignal.any([signal, abandoned.signal])
  const fetching: Array<{ offset: number, bytes: Promise<Uint8Array> }> = []

  async function * inOrder (keep: number): AsyncGenerator<SparseItem> {
    while (fetching.length > keep) {
      const head = fetching.shift()
      if (head === undefined) return
      const bytes = await head.bytes
      // A chunk written past the end of an older, shorter version cannot be in this one; the last chunk may be cut.
      const size = Math.min(bytes.length, version.size - head.offset)
      yield { offset: head.offset, bytes: size === bytes.length ? bytes : bytes.subarray(0, size) }
    }
  }

  try {
    for await (const { index, id } of storedChunks(version, { blobs, chunks, signal })) {
      const bytes = chunks.get(id, { signal: fetchSignal, priority: 'commit' })
      bytes.catch(() => {}) // awaited in order below; until then a failure is not unhandled
      fetching.push({ offset: index * version.chunkSize, bytes })
      yield * inOrder(ahead)
    }
    yield * inOrder(0)
    yield { size: version.size }
  } finally {
    abandoned.abort()
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
  for await (const { id } of storedChunks(version, { blobs, chunks, signal })) {
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

async function * storedChunks (version: Version, { blobs, signal }: Reading): AsyncGenerator<{ index: number, id: ChunkId }> {
  const count = Math.ceil(version.size / version.chunkSize)
  for (let first = 0; first < count; first += CHUNK_IDS_AT_ONCE) {
    const ids = await blobs.chunkIds(version, first, Math.min(CHUNK_IDS_AT_ONCE, count - first), { signal })
    for (const [at, id] of ids.entries()) {
      if (id !== null) yield { index: first + at, id }
    }
  }
}
