/**
 * The image that an import reads: a raw file past its holes and with several reads in flight, a block device or a pipe in
 * order, and other formats by way of a raw copy. Yields the parts that are not zeros, then the size; what was a hole is never sent on.
 */
import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { isZero } from '../protocols/cid.ts'
import { errorCodeOf, P2pvmError } from '../protocols/errors.ts'
import type { SparseItem } from '../versioning/image-import.ts'
import { dataRanges, windowsOf } from './data-ranges.ts'
import { formatOf, rawCopyOf, SIGNATURE_BYTES } from './image-formats.ts'

export interface ImportSource {
  /** Bytes, holes included; undefined for a pipe or device. */
  readonly size: number | undefined
  /** What it was converted from. */
  readonly format: string
  /** Once. ERR_SOURCE_CHANGED when the file changes underneath. */
  items (): AsyncIterable<SparseItem>
  close (): Promise<void>
}

export interface SourceInit {
  /** Pieces start at multiples of this, and are this long. */
  readonly chunkSize: number
  readonly signal: AbortSignal
  readonly stdin: AsyncIterable<Uint8Array>
}

/** Reads are at least this long: fewer round trips through the thread pool. */
const READ_BYTES_MIN = 1024 * 1024
/** As many as the thread pool has threads. */
const READS_AT_ONCE = 4

/** `-` is standard input. ERR_NOT_FOUND, ERR_NOT_ALLOWED, ERR_USAGE for what is not an image. */
export async function openImportSource (file: string, init: SourceInit): Promise<ImportSource> {
  if (file === '-') return { size: undefined, format: 'raw', items: () => streamItems(rawOnly(init.stdin, 'standard input'), init), close: async () => {} }
  const handle = await openForReading(file)
  try {
    const stat = await handle.stat()
    if (stat.isDirectory()) throw new P2pvmError('ERR_USAGE', `${file} is a folder, not an image`, { file })
    if (!stat.isFile()) {
      const stream = handle.createReadStream({ autoClose: false, highWaterMark: READ_BYTES_MIN })
      return {
        size: undefined,
        format: 'raw',
        items: () => streamItems(rawOnly(stream, file), init),
        async close () {
          stream.destroy()
          await handle.close()
        }
      }
    }
    const head = await headOf(handle)
    const format = formatOf(head)
    if (format === undefined) return fileSource(handle, stat.size, { file, format: 'raw' }, init)
    const copy = await rawCopyOf({ file, format, head }, init.signal)
    await handle.close()
    return fileSource(copy, (await copy.stat()).size, { file, format }, init)
  } catch (error) {
    await handle.close()
    throw error
  }
}

function fileSource (handle: FileHandle, size: number, { file, format }: { file: string, format: string }, init: SourceInit): ImportSource {
  return { size, format, items: () => fileItems(handle, file, init), close: async () => { await handle.close() } }
}

async function openForReading (file: string): Promise<FileHandle> {
  try {
    return await open(file, constants.O_RDONLY)
  } catch (error) {
    throw new P2pvmError(errorCodeOf(error), `cannot read ${file}: ${(error as Error).message}`, { file }, error)
  }
}

async function headOf (handle: FileHandle): Promise<Uint8Array> {
  const { buffer, bytesRead } = await handle.read(Buffer.alloc(SIGNATURE_BYTES), 0, SIGNATURE_BYTES, 0)
  return buffer.subarray(0, bytesRead)
}

async function * fileItems (handle: FileHandle, file: string, { chunkSize, signal }: SourceInit): AsyncGenerator<SparseItem> {
  const before = await handle.stat({ bigint: true })
  const size = Number(before.size)
  const stepBytes = Math.max(chunkSize, READ_BYTES_MIN)
  const changed = (how: string): P2pvmError => new P2pvmError('ERR_SOURCE_CHANGED', `${file} ${how} while it was read; nothing was imported`, { file })
  const read = async (buffer: Uint8Array, offset: number): Promise<Uint8Array> => {
    for (let filled = 0; filled < buffer.length;) {
      const { bytesRead } = await handle.read(buffer, filled, buffer.length - filled, offset + filled)
      if (bytesRead === 0) throw changed('became shorter')
      filled += bytesRead
    }
    return buffer
  }
  const windows = windowsOf(await dataRanges(handle.fd, { size, blocks: Number(before.blocks) }, signal), { chunkSize, stepBytes, size })
  // Read again and again into the same few buffers: new memory for each read costs more than the reading.
  const free: Uint8Array[] = Array.from({ length: READS_AT_ONCE }, () => new Uint8Array(Math.min(stepBytes, size)))
  const reading: Array<{ readonly offset: number, readonly buffer: Uint8Array, readonly bytes: Promise<Uint8Array> }> = []
  const readAhead = (): void => {
    for (let buffer = free.pop(); buffer !== undefined; buffer = free.pop()) {
      const { value: window } = windows.next()
      if (window === undefined) return
      const bytes = read(buffer.subarray(0, window.end - window.start), window.start)
      bytes.catch(() => {}) // awaited in order below; until then a failure is not unhandled
      reading.push({ offset: window.start, buffer, bytes })
    }
  }
  try {
    readAhead()
    for (let head = reading.shift(); head !== undefined; head = reading.shift()) {
      signal.throwIfAborted()
      for (const piece of pieces(head.offset, await head.bytes, chunkSize)) yield { ...piece, bytes: Buffer.from(piece.bytes) }
      free.push(head.buffer)
      readAhead()
    }
  } finally {
    await Promise.allSettled(reading.map(async ({ bytes }) => await bytes)) // the caller closes the file next
  }
  const after = await handle.stat({ bigint: true })
  if (after.size !== before.size) throw changed(after.size > before.size ? 'became longer' : 'became shorter')
  if (after.mtimeNs !== before.mtimeNs) throw changed('was written to')
  yield { size }
}

/** In order, from a source that cannot be read twice. */
async function * streamItems (source: AsyncIterable<Uint8Array>, { chunkSize, signal }: SourceInit): AsyncGenerator<SparseItem> {
  let chunk = Buffer.allocUnsafe(chunkSize)
  let filled = 0
  let offset = 0
  for await (const part of source) {
    signal.throwIfAborted()
    for (let at = 0; at < part.length;) {
      const taken = part.subarray(at, at + chunkSize - filled)
      chunk.set(taken, filled)
      filled += taken.length
      at += taken.length
      if (filled < chunkSize) continue
      yield * pieces(offset, chunk, chunkSize)
      offset += chunkSize
      chunk = Buffer.allocUnsafe(chunkSize) // the last one is on its way
      filled = 0
    }
  }
  yield * pieces(offset, chunk.subarray(0, filled), chunkSize)
  yield { size: offset + filled }
}

/** A format that needs random access cannot come through a pipe; taken for raw, nothing could boot from it. */
async function * rawOnly (source: AsyncIterable<Uint8Array>, name: string): AsyncGenerator<Uint8Array> {
  let head = Buffer.alloc(0)
  for await (const part of source) {
    if (head.length < SIGNATURE_BYTES) {
      head = Buffer.concat([head, part.subarray(0, SIGNATURE_BYTES - head.length)]) // a pipe may begin with a few bytes
      const format = formatOf(head)
      if (format !== undefined) throw new P2pvmError('ERR_USAGE', `${name} holds a ${format} image: import it from a file, so that qemu-img can read it`, { format })
    }
    yield part
  }
}

/** Those that are not zeros, as views. */
function * pieces (offset: number, bytes: Uint8Array, chunkSize: number): Generator<{ readonly offset: number, readonly bytes: Uint8Array }> {
  for (let at = 0; at < bytes.length; at += chunkSize) {
    const piece = bytes.subarray(at, at + chunkSize)
    if (!isZero(piece)) yield { offset: offset + at, bytes: piece }
  }
}
