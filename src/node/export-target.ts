/**
 * Where an export, or what is read of a blob, goes: a sparse file that appears under its name only when it is whole and on disk,
 * or a pipe or device that gets every byte, zeros included.
 */
import type { Hash } from 'node:crypto'
import { type FileHandle, open, rename, stat, unlink } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { errorCodeOf, P2pvmError } from '../protocols/errors.ts'
import type { SparseItem } from '../versioning/image-import.ts'

export interface ExportInit {
  readonly signal: AbortSignal
  /** Gets every byte, holes too: for a terabyte of them that is minutes. */
  readonly hash?: Hash
  readonly onProgress: (doneBytes: number) => void
}

/** Anything that takes bytes in order: `process.stdout`. */
export interface ByteSink {
  write (bytes: Uint8Array, callback: (error?: Error | null) => void): boolean
}

/** Written in one go when a hole goes into a pipe, and hashed for a hole. */
const ZEROS = Buffer.alloc(1024 * 1024)

/** Returns the size. */
export async function exportToFile (items: AsyncIterable<SparseItem>, file: string, init: ExportInit): Promise<number> {
  const existing = await stat(file).catch(() => undefined)
  if (existing?.isDirectory() === true) throw new P2pvmError('ERR_USAGE', `${file} is a folder`, { file })
  return existing === undefined || existing.isFile() ? await exportAside(items, file, init) : await exportToDevice(items, file, init)
}

/** Into a pipe: nothing can be left out. Returns the size. */
export async function exportToSink (items: AsyncIterable<SparseItem>, sink: ByteSink, init: ExportInit): Promise<number> {
  const write = async (bytes: Uint8Array): Promise<void> => {
    await new Promise<void>((resolve, reject) => {
      sink.write(bytes, (error) => { if (error == null) resolve(); else reject(error) })
    })
  }
  return await writeAll(items, init, {
    piece: async (_, bytes) => { await write(bytes) },
    async hole (_, length) {
      for (let at = 0; at < length; at += ZEROS.length) await write(ZEROS.subarray(0, Math.min(ZEROS.length, length - at)))
    }
  })
}

async function exportAside (items: AsyncIterable<SparseItem>, file: string, init: ExportInit): Promise<number> {
  const aside = join(dirname(file), `.${basename(file)}.p2pvm-${process.pid}`)
  const handle = await openForWriting(aside, 'wx', file)
  try {
    const size = await writeAll(items, init, {
      piece: async (offset, bytes) => { await writeAt(handle, bytes, offset) },
      hole: async () => {}
    })
    await handle.truncate(size) // ends in a hole, or is one
    await handle.sync()
    await handle.close()
    await rename(aside, file)
    await syncFolder(dirname(file))
    return size
  } catch (error) {
    await handle.close().catch(() => {})
    await unlink(aside).catch(() => {})
    throw fileError(error, file)
  }
}

async function exportToDevice (items: AsyncIterable<SparseItem>, file: string, init: ExportInit): Promise<number> {
  const handle = await openForWriting(file, 'r+', file)
  try {
    const size = await writeAll(items, init, {
      piece: async (offset, bytes) => { await writeAt(handle, bytes, offset) },
      async hole (offset, length) {
        for (let at = 0; at < length; at += ZEROS.length) await writeAt(handle, ZEROS.subarray(0, Math.min(ZEROS.length, length - at)), offset + at)
      }
    })
    await handle.sync()
    return size
  } catch (error) {
    throw fileError(error, file)
  } finally {
    await handle.close()
  }
}

interface Sink {
  piece (offset: number, bytes: Uint8Array): Promise<void>
  hole (offset: number, length: number): Promise<void>
}

async function writeAll (items: AsyncIterable<SparseItem>, { signal, hash, onProgress }: ExportInit, sink: Sink): Promise<number> {
  let done = 0
  const skipTo = async (offset: number): Promise<void> => {
    if (offset === done) return
    for (let at = done; hash !== undefined && at < offset; at += ZEROS.length) {
      signal.throwIfAborted()
      hash.update(ZEROS.subarray(0, Math.min(ZEROS.length, offset - at)))
    }
    await sink.hole(done, offset - done)
    done = offset
  }
  for await (const item of items) {
    signal.throwIfAborted()
    if ('size' in item) {
      await skipTo(item.size)
      return item.size
    }
    await skipTo(item.offset)
    // The hash runs while the bytes are on their way to the disk.
    const written = sink.piece(item.offset, item.bytes)
    hash?.update(item.bytes)
    await written
    done += item.bytes.length
    onProgress(done)
  }
  throw new P2pvmError('ERR_INTERNAL', 'the export ended without a size')
}

async function openForWriting (path: string, flags: string, file: string): Promise<FileHandle> {
  try {
    return await open(path, flags)
  } catch (error) {
    throw fileError(error, file)
  }
}

async function writeAt (handle: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let at = 0; at < bytes.length;) at += (await handle.write(bytes, at, bytes.length - at, position + at)).bytesWritten
}

async function syncFolder (path: string): Promise<void> {
  const folder = await open(path)
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}

function fileError (error: unknown, file: string): unknown {
  if ((error as NodeJS.ErrnoException).syscall === undefined) return error
  return new P2pvmError(errorCodeOf(error), `cannot write ${file}: ${(error as Error).message}`, { file }, error)
}
