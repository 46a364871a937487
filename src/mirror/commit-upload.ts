/**
 * What a sealed overlay changes, brought to the fabric: chunks that are partly dirty are merged with what they lie on, and those that
 * are not as before are put, on storage peers first and then into the cache. Owns no state.
 */
import type { ChunkStore } from '../dht/chunk-store.ts'
import type { Chunks } from '../dht/chunks.ts'
import { type ChunkId, chunkIdOf, isZero } from '../protocols/cid.ts'
import type { Blobs } from '../versioning/blobs.ts'
import type { Sealed } from './sealable.ts'
import { openSealedOverlay, type SealedOverlay } from './sealed-overlay.ts'

export interface UploadComponents {
  readonly blobs: Blobs
  readonly chunks: Chunks
  readonly cache: ChunkStore
}

export interface Uploaded {
  /** Index → the chunk that is there now; null: a hole. */
  readonly changed: Map<number, ChunkId | null>
  /** Of chunks that are no holes, before replication. */
  readonly uploadedBytes: number
  readonly dirtyBytes: number
}

/** Chunks read, merged and uploaded at once: 8 × 4 MiB at most in memory. */
const UPLOADS_AT_ONCE = 8

/** Returns when every chunk is on W storage peers. Errors as Chunks.put and Chunks.get. */
export async function uploadSealed (sealed: Sealed, { blobs, chunks, cache }: UploadComponents, signal: AbortSignal | undefined): Promise<Uploaded> {
  const base = await blobs.version(sealed.base, { signal })
  const overlay = await openSealedOverlay(sealed.overlay, { chunkSize: base.chunkSize, size: sealed.size })
  const changed = new Map<number, ChunkId | null>()
  let uploadedBytes = 0
  try {
    const indices = overlay.dirtyChunks()[Symbol.iterator]()
    const uploadNext = async (): Promise<void> => {
      for (let next = indices.next(); next.done !== true; next = indices.next()) {
        signal?.throwIfAborted()
        const baseId = (await blobs.chunkIds(base, next.value, 1, { signal }))[0] ?? null
        const bytes = await mergedChunk(overlay, next.value, baseId, chunks, signal)
        const id = isZero(bytes) ? null : chunkIdOf(bytes)
        if (id === baseId) continue // written, and the same as before
        changed.set(next.value, id)
        if (id === null) continue
        await chunks.put(id, bytes, { signal, priority: 'commit' })
        // The next read of it is then local, also with the storage peers gone.
        await cache.put(id, bytes)
        uploadedBytes += bytes.length
      }
    }
    await settleAll(Array.from({ length: UPLOADS_AT_ONCE }, uploadNext))
    return { changed, uploadedBytes, dirtyBytes: overlay.dirtyBytes() }
  } finally {
    await overlay.close()
  }
}

/** A chunk of the new version. Only one that is partly dirty needs what it lies on. */
async function mergedChunk (
  overlay: SealedOverlay, index: number, baseId: ChunkId | null, chunks: Chunks, signal: AbortSignal | undefined
): Promise<Uint8Array> {
  const bytes = new Uint8Array(overlay.chunkBytes(index))
  if (!overlay.coversChunk(index) && baseId !== null) {
    const below = await chunks.get(baseId, { signal, priority: 'commit' })
    bytes.set(below.length > bytes.length ? below.subarray(0, bytes.length) : below)
  }
  await overlay.readOver(index, bytes)
  return bytes
}

/** Waits for all, then throws the first failure: nobody works on behind the caller's back. */
export async function settleAll (work: Array<Promise<void>>): Promise<void> {
  for (const result of await Promise.allSettled(work)) {
    if (result.status === 'rejected') throw result.reason
  }
}
