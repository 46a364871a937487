/**
 * The body of import, export and a blob's write, append and read: parts of a sequence of bytes. What lies between them is zeros,
 * and never crosses the socket; in a write it is what stays as it was.
 *
 *   piece    u64 offset | u32 length (1 … 4 MiB)  | that many bytes
 *   end      u64 size   | u32 0xffffffff            exactly one, last
 *   failure  u64 length | u32 0xfffffffe          | an error document (JSON) of that length; last, in place of an end
 *
 * Integers are big-endian. Pieces ascend and do not overlap, and the size is not below the end of the last one. A stream
 * without an end is a stream whose sender died. A failure is thrown at the reader as the same P2pvmError, so that an image
 * that changes while it is read, or a chunk that is missing, keeps its code across the socket.
 */
import { CHUNK_BYTES_MAX, isZero } from '../protocols/cid.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { SparseItem } from '../versioning/image-import.ts'
import { errorDocument, readErrorDocument } from './error-document.ts'

const HEADER_BYTES = 12
const PIECE_BYTES_MAX = CHUNK_BYTES_MAX
const END = 0xffffffff
const FAILURE = 0xfffffffe
/** A code, a sentence and some ids. */
const FAILURE_BYTES_MAX = 64 * 1024

/** Headers and bytes by turns, without a copy. What `items` throws becomes a failure record; then the stream ends. */
export async function * encodeSparse (items: AsyncIterable<SparseItem>): AsyncGenerator<Uint8Array> {
  const order = new Order()
  try {
    for await (const item of items) {
      if ('size' in item) {
        order.end(item.size)
        yield header(item.size, END)
        return
      }
      for (let at = 0; at < item.bytes.length; at += PIECE_BYTES_MAX) {
        const bytes = item.bytes.subarray(at, at + PIECE_BYTES_MAX)
        order.piece(item.offset + at, bytes.length)
        yield header(item.offset + at, bytes.length)
        yield bytes
      }
    }
    throw new P2pvmError('ERR_INTERNAL', 'the source ended without a size')
  } catch (error) {
    const json = Buffer.from(JSON.stringify(errorDocument(error)))
    yield header(json.length, FAILURE)
    yield json
  }
}

/** ERR_PROTOCOL for anything that the format does not allow, a stream that is cut short included. */
export async function * decodeSparse (chunks: AsyncIterable<Uint8Array>): AsyncGenerator<SparseItem> {
  const reader = new ByteReader(chunks)
  const order = new Order()
  try {
    for (;;) {
      const head = Buffer.from(await reader.read(HEADER_BYTES))
      const first = safeInteger(head.readBigUInt64BE(0))
      const length = head.readUInt32BE(8)
      if (length === FAILURE) throw await readFailure(reader, first)
      if (length === END) {
        order.end(first)
        await reader.end()
        yield { size: first }
        return
      }
      order.piece(first, length)
      yield { offset: first, bytes: await reader.read(length) }
    }
  } finally {
    await reader.close()
  }
}

/** Whole chunks: cuts and joins pieces at multiples of `chunkSize`, and leaves out chunks of zeros. */
export async function * alignToChunks (items: AsyncIterable<SparseItem>, chunkSize: number): AsyncGenerator<SparseItem> {
  let open: { index: number, bytes: Uint8Array } | undefined
  for await (const item of items) {
    if ('size' in item) {
      if (open !== undefined) yield * unlessZero(open.index * chunkSize, open.bytes.subarray(0, item.size - open.index * chunkSize))
      yield item
      return
    }
    for (let at = 0; at < item.bytes.length;) {
      const offset = item.offset + at
      const index = Math.floor(offset / chunkSize)
      const within = offset - index * chunkSize
      const bytes = item.bytes.subarray(at, at + chunkSize - within)
      at += bytes.length
      if (open !== undefined && open.index !== index) {
        yield * unlessZero(open.index * chunkSize, open.bytes)
        open = undefined
      }
      if (open === undefined && bytes.length === chunkSize) {
        yield * unlessZero(offset, bytes)
        continue
      }
      open ??= { index, bytes: new Uint8Array(chunkSize) }
      open.bytes.set(bytes, within)
    }
  }
}

function * unlessZero (offset: number, bytes: Uint8Array): Generator<SparseItem> {
  if (bytes.length > 0 && !isZero(bytes)) yield { offset, bytes }
}

function header (first: number, second: number): Uint8Array {
  const bytes = Buffer.allocUnsafe(HEADER_BYTES)
  bytes.writeBigUInt64BE(BigInt(first), 0)
  bytes.writeUInt32BE(second, 8)
  return bytes
}

function safeInteger (value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw malformed(`an offset or size of ${value}`)
  return Number(value)
}

async function readFailure (reader: ByteReader, length: number): Promise<P2pvmError> {
  if (length > FAILURE_BYTES_MAX) return malformed(`a failure of ${length} bytes`)
  const bytes = await reader.read(length)
  try {
    return readErrorDocument(JSON.parse(Buffer.from(bytes).toString()))
  } catch {
    return malformed('a failure that is not an error document')
  }
}

function malformed (what: string): P2pvmError {
  return new P2pvmError('ERR_PROTOCOL', `sparse stream: ${what}`)
}

/** The rules that sender and receiver both keep. */
class Order {
  #end = 0

  piece (offset: number, length: number): void {
    if (length < 1 || length > PIECE_BYTES_MAX) throw malformed(`a piece of ${length} bytes`)
    if (!Number.isSafeInteger(offset + length)) throw malformed(`a piece at ${offset}`)
    if (offset < this.#end) throw malformed(`a piece at ${offset} after one that ends at ${this.#end}`)
    this.#end = offset + length
  }

  end (size: number): void {
    if (size < this.#end) throw malformed(`a size of ${size} below the end of the last piece, ${this.#end}`)
  }
}

/** Takes exact numbers of bytes from chunks of any size. */
class ByteReader {
  readonly #chunks: AsyncIterator<Uint8Array>
  #rest = new Uint8Array(0)

  constructor (chunks: AsyncIterable<Uint8Array>) {
    this.#chunks = chunks[Symbol.asyncIterator]()
  }

  /** `length` is bounded by the caller. The bytes are the caller's own, or a view of a chunk that nobody writes to. */
  async read (length: number): Promise<Uint8Array> {
    if (this.#rest.length >= length) return this.#take(length)
    const bytes = Buffer.allocUnsafe(length)
    let filled = 0
    while (filled < length) {
      if (this.#rest.length === 0 && !await this.#next()) throw malformed('cut short')
      const part = this.#take(Math.min(length - filled, this.#rest.length))
      bytes.set(part, filled)
      filled += part.length
    }
    return bytes
  }

  async end (): Promise<void> {
    while (this.#rest.length === 0) {
      if (!await this.#next()) return
    }
    throw malformed('bytes after the end')
  }

  async close (): Promise<void> {
    await this.#chunks.return?.()
  }

  #take (length: number): Uint8Array {
    const bytes = this.#rest.subarray(0, length)
    this.#rest = this.#rest.subarray(length)
    return bytes
  }

  async #next (): Promise<boolean> {
    const { done, value } = await this.#chunks.next()
    if (done === true) return false
    this.#rest = value as Uint8Array<ArrayBuffer>
    return true
  }
}
