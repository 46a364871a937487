/**
 * Import: a stream of pieces becomes chunks on the fabric and then version 1 of a new, named blob. Chunks go first, all
 * in parallel, asking nobody; the name is taken and shown in the one step that publishes (blobs.ts, Target 'new').
 * Holds no more of the image than is on its way (`chunk-upload.ts`). A failed import leaves chunks without a name, which collection removes.
 */
import type { Chunks } from '../dht/chunks.ts'
import { type ChunkId, checkChunkSize } from '../protocols/cid.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { Blobs, Version } from './blobs.ts'
import { ChunkUpload, type UploadTotals } from './chunk-upload.ts'
import { checkImageName } from './image-name.ts'

/** A run of bytes, or the end with the size of the whole. What lies between the runs is zeros. */
export type SparseItem = { readonly offset: number, readonly bytes: Uint8Array } | { readonly size: number }

export interface ImportTotals extends UploadTotals {
  readonly chunks: number // that are not holes
  readonly holes: number
}

export interface ImportOptions {
  readonly name: string
  readonly chunkSize: number
  readonly message?: string
  readonly requestId: string
  readonly signal?: AbortSignal | undefined
  /** Called per chunk; the caller thins it out. */
  readonly onProgress?: (progress: { doneBytes: number, chunks: number, holes: number, alreadyThere: number }) => void
}

/**
 * Pieces must come in ascending order, start on a chunk's boundary and be one chunk long (the last may be shorter).
 * ERR_USAGE for a bad name, chunk size or piece, ERR_CONFLICT when the name is taken, else as Chunks.put and Blobs.publish.
 */
export async function importImage (
  source: AsyncIterable<SparseItem>, options: ImportOptions, { blobs, chunks }: { blobs: Blobs, chunks: Chunks }
): Promise<{ version: Version, totals: ImportTotals }> {
  checkChunkSize(options.chunkSize)
  await assertNameIsFree(checkImageName(options.name), blobs, options.signal)

  const upload = new ChunkUpload(chunks, options.signal)
  const placed = new Map<number, ChunkId>()
  let size: number | undefined
  let chunkIndexNext = 0
  try {
    for await (const item of source) {
      options.signal?.throwIfAborted()
      if ('size' in item) {
        size = item.size
        break
      }
      const index = item.offset / options.chunkSize
      if (!Number.isInteger(index) || index < chunkIndexNext || item.bytes.length === 0 || item.bytes.length > options.chunkSize) {
        throw new P2pvmError('ERR_USAGE', `a piece at ${item.offset} of ${item.bytes.length} bytes is not one chunk, in order`)
      }
      chunkIndexNext = index + 1
      const id = await upload.add(item.bytes)
      if (id !== null) placed.set(index, id)
      options.onProgress?.({
        doneBytes: item.offset + item.bytes.length, chunks: placed.size, holes: chunkIndexNext - placed.size, alreadyThere: upload.alreadyThere
      })
    }
    await upload.flush()
    await upload.settle()
  } catch (error) {
    await upload.abandon()
    throw error
  }
  if (size === undefined) throw new P2pvmError('ERR_SOURCE_CHANGED', 'the image ended before its announced end')

  const totals = { chunks: placed.size, holes: Math.ceil(size / options.chunkSize) - placed.size, ...upload.totals() }
  const version = await blobs.publish({
    requestId: options.requestId,
    target: { kind: 'new', chunkSize: options.chunkSize, name: options.name },
    chunks: placed,
    size,
    bytesChanged: size,
    message: options.message ?? `import ${options.name}`
  }, { signal: options.signal })
  return { version, totals }
}

/** Asked before the first byte is read: nobody wants to learn it after two gigabytes. The publication asks again. */
async function assertNameIsFree (name: string, blobs: Blobs, signal: AbortSignal | undefined): Promise<void> {
  const images = await blobs.images({ signal })
  if (images.some((image) => image.name === name)) {
    throw new P2pvmError('ERR_CONFLICT', `the name ${name} is taken; choose another, or commit a working copy of it`, { name })
  }
}
