/**
 * Import: a stream of pieces becomes chunks on the fabric and then version 1 of a new, named blob. Chunks go first, all
 * in parallel, asking nobody; the name is taken and shown in the one step that publishes (blobs.ts, Target 'new').
 * Holds at most IN_FLIGHT_BYTES_MAX of the image. A failed import leaves chunks without a name, which collection removes.
 */
import type { Chunks } from '../dht/chunks.ts'
import { type ChunkId, checkChunkSize, chunkIdOf, isZero } from '../protocols/cid.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { Blobs, Version } from './blobs.ts'
import { checkImageName } from './image-name.ts'

/** A run of bytes, or the end with the size of the whole. What lies between the runs is zeros. */
export type SparseItem = { readonly offset: number, readonly bytes: Uint8Array } | { readonly size: number }

export interface ImportTotals {
  readonly chunks: number // that are not holes
  readonly holes: number
  readonly newChunks: number
  readonly storedBytes: number // of new chunks, counted once
  readonly sentBytes: number // chunk bytes written to sockets, all replicas
  readonly replicasWanted: number
  /** Chunks that W replicas hold but not all R, because peers were down or full. */
  readonly degradedChunks: number
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

/** Enough to keep some ten peers busy over a 256 KiB chunk's round trip and its fdatasync; bounds the memory of an import. */
const IN_FLIGHT_BYTES_MAX = 8 * 1024 * 1024

/**
 * Pieces must come in ascending order, start on a chunk's boundary and be one chunk long (the last may be shorter).
 * ERR_USAGE for a bad name, chunk size or piece, ERR_CONFLICT when the name is taken, else as Chunks.put and Blobs.publish.
 */
export async function importImage (
  source: AsyncIterable<SparseItem>, options: ImportOptions, { blobs, chunks }: { blobs: Blobs, chunks: Chunks }
): Promise<{ version: Version, totals: ImportTotals }> {
  checkChunkSize(options.chunkSize)
  await assertNameIsFree(checkImageName(options.name), blobs, options.signal)

  const upload = new Upload(chunks, options)
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
      await upload.add(index, item.bytes)
      options.onProgress?.({ doneBytes: item.offset + item.bytes.length, ...upload.progress(chunkIndexNext) })
    }
    await upload.flush()
  } catch (error) {
    await upload.abandon()
    throw error
  }
  if (size === undefined) throw new P2pvmError('ERR_SOURCE_CHANGED', 'the image ended before its announced end')

  const totals = upload.totals(Math.ceil(size / options.chunkSize))
  const version = await blobs.publish({
    requestId: options.requestId,
    target: { kind: 'new', chunkSize: options.chunkSize, name: options.name },
    chunks: upload.placed,
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

/** The chunks of one import on their way to their replicas. */
class Upload {
  readonly placed = new Map<number, ChunkId>()
  readonly #chunks: Chunks
  readonly #pending = new Set<Promise<void>>()
  readonly #settling = new Set<Promise<void>>()
  readonly #seen = new Set<ChunkId>()
  readonly #abort = new AbortController()
  readonly #signal: AbortSignal
  #pendingBytes = 0
  #failure: unknown
  #newChunks = 0
  #alreadyThere = 0
  #storedBytes = 0
  #sentBytes = 0
  #replicasWanted = 0
  #degradedChunks = 0

  constructor (chunks: Chunks, options: ImportOptions) {
    this.#chunks = chunks
    this.#signal = options.signal === undefined ? this.#abort.signal : AbortSignal.any([this.#abort.signal, options.signal])
  }

  async add (index: number, bytes: Uint8Array): Promise<void> {
    if (isZero(bytes)) return
    const id = chunkIdOf(bytes)
    this.placed.set(index, id)
    if (this.#seen.has(id)) {
      this.#alreadyThere += 1
      return
    }
    this.#seen.add(id)
    while (this.#pendingBytes > 0 && this.#pendingBytes + bytes.length > IN_FLIGHT_BYTES_MAX) await Promise.race(this.#pending)
    this.#throwFailure()
    this.#pendingBytes += bytes.length
    const put = this.#put(id, bytes).catch((error: unknown) => { this.#failure ??= error }).finally(() => {
      this.#pendingBytes -= bytes.length
      this.#pending.delete(put)
    })
    this.#pending.add(put)
  }

  async #put (id: ChunkId, bytes: Uint8Array): Promise<void> {
    const outcome = await this.#chunks.put(id, bytes, { signal: this.#signal, priority: 'commit' })
    if (outcome.isNew) {
      this.#newChunks += 1
      this.#storedBytes += bytes.length
    } else {
      this.#alreadyThere += 1
    }
    const settled = outcome.settled.then((last) => {
      this.#sentBytes += last.sentBytes
      this.#replicasWanted = Math.max(this.#replicasWanted, last.wanted)
      if (last.replicas < last.wanted) this.#degradedChunks += 1
      this.#settling.delete(settled)
    })
    this.#settling.add(settled)
  }

  /** All chunks on W replicas, and those that go on to R settled. */
  async flush (): Promise<void> {
    await Promise.all(this.#pending)
    this.#throwFailure()
    await Promise.all(this.#settling)
  }

  async abandon (): Promise<void> {
    this.#abort.abort(new P2pvmError('ERR_ABORTED', 'the import failed'))
    await Promise.all(this.#pending)
  }

  progress (chunksSoFar: number): { chunks: number, holes: number, alreadyThere: number } {
    return { chunks: this.placed.size, holes: chunksSoFar - this.placed.size, alreadyThere: this.#alreadyThere }
  }

  totals (chunksInAll: number): ImportTotals {
    return {
      chunks: this.placed.size,
      holes: chunksInAll - this.placed.size,
      newChunks: this.#newChunks,
      storedBytes: this.#storedBytes,
      sentBytes: this.#sentBytes,
      replicasWanted: this.#replicasWanted,
      degradedChunks: this.#degradedChunks
    }
  }

  #throwFailure (): void {
    if (this.#failure !== undefined) throw this.#failure
  }
}
