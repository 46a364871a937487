/**
 * The chunks of a WRITE or APPEND whose bytes come in a stream, of any length: whole chunks go to the fabric as they come,
 * asking nobody, and what falls into chunks that are written in part is kept until the version number is known. Holds what is on
 * its way (`chunk-upload.ts`), one chunk, PART_BYTES_MAX, and the ids of the chunks.
 *
 * Not for parts that overlap or come in any order: `chunked-write.ts`.
 */
import type { Chunks } from '../dht/chunks.ts'
import type { ChunkId } from '../protocols/cid.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { Extent, Part } from './blobs.ts'
import { ChunkUpload } from './chunk-upload.ts'
import { coalesce } from './extents.ts'
import { BLOB_BYTES_MAX } from './tree-names.ts'

/** Bytes of chunks that are written in part: two edges of an extent, in chunks of 4 MiB, for eight extents at least. */
const PART_BYTES_MAX = 64 * 1024 * 1024
/** Of one WRITE. Each costs a few hundred bytes. */
const EXTENTS_MAX = 65_536
/** Of one WRITE: 256 GiB in chunks of 256 KiB, and some 200 MB of ids. */
const CHUNKS_MAX = 1024 * 1024

/** What is known of a write before its version number. */
export interface Placed {
  readonly chunkSize: number
  /** Sorted, disjoint, few: may say more than was written. */
  readonly extents: readonly Extent[]
  /** Where the last part ends; 0 without parts. */
  readonly end: number
  readonly bytesChanged: number
  /** Chunk index → chunk on the fabric, or null for zeros; ascending. */
  readonly whole: ReadonlyMap<number, ChunkId | null>
  /** The bytes of all other chunks that are written to; may say those of whole ones again. */
  readonly inPart: readonly Part[]
}

export interface StreamedWriteInit {
  readonly chunkSize: number
  readonly chunks: Chunks
  readonly signal?: AbortSignal | undefined
}

/**
 * Returns when all whole chunks are on W replicas. ERR_USAGE for parts that overlap or do not ascend, or are more than one WRITE
 * may have; else as Chunks.put, and what the stream throws.
 */
export async function placeStream (parts: AsyncIterable<Part>, { chunkSize, chunks, signal }: StreamedWriteInit): Promise<Placed> {
  const upload = new ChunkUpload(chunks, signal)
  const write = new StreamedWrite(chunkSize, upload)
  try {
    for await (const part of parts) {
      signal?.throwIfAborted()
      await write.add(part)
    }
    const placed = await write.end()
    await upload.flush()
    return placed
  } catch (error) {
    await upload.abandon()
    throw error
  }
}

/** The bytes of a write of one extent, in order, from where they lie. Errors as Chunks.get. */
export async function * bytesOf ({ whole, inPart, chunkSize }: Placed, chunks: Chunks, signal?: AbortSignal): AsyncGenerator<Uint8Array> {
  const [first = Infinity] = whole.keys()
  for (const { offset, bytes } of inPart) if (offset < first * chunkSize) yield bytes
  for (const id of whole.values()) yield id === null ? new Uint8Array(chunkSize) : await chunks.get(id, { signal, priority: 'commit' })
  for (const { offset, bytes } of inPart) if (offset >= first * chunkSize) yield bytes
}

/** The chunk that is being filled: its bytes, and which of them have come. */
interface OpenChunk {
  readonly index: number
  readonly bytes: Uint8Array
  readonly runs: Array<{ readonly start: number, end: number }>
}

class StreamedWrite {
  readonly #chunkSize: number
  readonly #upload: ChunkUpload
  readonly #extents: Array<{ readonly offset: number, size: number }> = []
  readonly #whole = new Map<number, ChunkId | null>()
  readonly #inPart: Part[] = []
  #partBytes = 0
  #bytes = 0
  #end = 0
  #open: OpenChunk | undefined

  constructor (chunkSize: number, upload: ChunkUpload) {
    this.#chunkSize = chunkSize
    this.#upload = upload
  }

  async add ({ offset, bytes }: Part): Promise<void> {
    if (!Number.isSafeInteger(offset) || offset < 0 || offset + bytes.length > BLOB_BYTES_MAX) {
      throw new P2pvmError('ERR_USAGE', `cannot write ${bytes.length} bytes at ${offset}`)
    }
    if (bytes.length === 0) return
    if (offset < this.#end) throw new P2pvmError('ERR_USAGE', `what is written at ${offset} comes after what ends at ${this.#end}: extents ascend and do not overlap`)
    this.#extend(offset, bytes.length)
    for (let at = 0; at < bytes.length;) {
      const index = Math.floor((offset + at) / this.#chunkSize)
      const within = offset + at - index * this.#chunkSize
      const piece = bytes.subarray(at, at + this.#chunkSize - within)
      at += piece.length
      if (this.#open?.index !== index) await this.#close()
      if (piece.length === this.#chunkSize) await this.#addWhole(index, piece)
      else await this.#addPiece(index, within, piece)
    }
  }

  async end (): Promise<Placed> {
    await this.#close()
    return {
      chunkSize: this.#chunkSize, extents: coalesce(this.#extents), end: this.#end, bytesChanged: this.#bytes, whole: this.#whole, inPart: this.#inPart
    }
  }

  #extend (offset: number, size: number): void {
    const last = this.#extents.at(-1)
    if (last !== undefined && offset === this.#end) last.size += size
    else this.#extents.push({ offset, size })
    if (this.#extents.length > EXTENTS_MAX) throw tooMuch(`more than ${EXTENTS_MAX} extents`)
    this.#end = offset + size
    this.#bytes += size
  }

  async #addPiece (index: number, within: number, piece: Uint8Array): Promise<void> {
    this.#open ??= { index, bytes: Buffer.allocUnsafeSlow(this.#chunkSize), runs: [] }
    const { bytes, runs } = this.#open
    const last = runs.at(-1)
    if (last?.end === within) last.end += piece.length
    else runs.push({ start: within, end: within + piece.length })
    bytes.set(piece, within)
    if (within + piece.length === this.#chunkSize) await this.#close()
  }

  async #close (): Promise<void> {
    const open = this.#open
    if (open === undefined) return
    this.#open = undefined
    const { index, bytes, runs } = open
    const [first] = runs
    if (first?.start === 0 && first.end === this.#chunkSize) {
      await this.#addWhole(index, bytes)
      return
    }
    for (const { start, end } of runs) {
      this.#partBytes += end - start
      if (this.#partBytes > PART_BYTES_MAX) throw tooMuch(`more than ${PART_BYTES_MAX} bytes in chunks that it writes in part`)
      this.#inPart.push({ offset: index * this.#chunkSize + start, bytes: new Uint8Array(bytes.subarray(start, end)) })
    }
  }

  async #addWhole (index: number, bytes: Uint8Array): Promise<void> {
    if (this.#whole.size === CHUNKS_MAX) throw tooMuch(`more than ${CHUNKS_MAX} chunks of ${this.#chunkSize} bytes`)
    this.#whole.set(index, await this.#upload.add(bytes))
  }
}

function tooMuch (what: string): P2pvmError {
  return new P2pvmError('ERR_USAGE', `${what} in one write: write them as several versions, or import them as a new image`)
}
