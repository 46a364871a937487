/**
 * The bytes of `blob write` and `blob append`: files, devices, pipes and standard input, each at its offset, as one ascending
 * stream that is never in memory as a whole. Zeros are bytes like others here: a WRITE of them is one.
 */
import { type FileHandle, open } from 'node:fs/promises'
import { errorCodeOf, P2pvmError } from '../protocols/errors.ts'
import type { Part } from '../versioning/blobs.ts'

/** `file` is a path, or - for standard input. */
export interface ExtentSource {
  readonly offset: number
  readonly file: string
}

export interface ExtentsInit {
  readonly signal: AbortSignal
  readonly stdin: AsyncIterable<Uint8Array>
}

/** Fewer round trips through the thread pool than the default of 64 KiB. */
const READ_BYTES = 1024 * 1024

/**
 * All that can be opened is opened first. ERR_NOT_FOUND, ERR_NOT_ALLOWED, ERR_USAGE for a folder and for standard input named
 * twice; out of the iteration ERR_SOURCE_CHANGED when a file changes underneath.
 */
export async function openExtents (extents: readonly ExtentSource[], { signal, stdin }: ExtentsInit): Promise<{ parts: AsyncIterable<Part>, close: () => Promise<void> }> {
  if (extents.filter(({ file }) => file === '-').length > 1) throw new P2pvmError('ERR_USAGE', 'standard input can be written in one place only')
  const opened: Array<{ readonly offset: number, readonly file: string, readonly handle: FileHandle | undefined }> = []
  const close = async (): Promise<void> => {
    for (const { handle } of opened) await handle?.close()
  }
  try {
    for (const { offset, file } of [...extents].sort((a, b) => a.offset - b.offset)) {
      opened.push({ offset, file, handle: file === '-' ? undefined : await openForReading(file) })
    }
  } catch (error) {
    await close()
    throw error
  }
  async function * parts (): AsyncGenerator<Part> {
    for (const { offset, file, handle } of opened) {
      let at = offset
      for await (const bytes of handle === undefined ? stdin : bytesOf(handle, file)) {
        signal.throwIfAborted()
        yield { offset: at, bytes }
        at += bytes.length
      }
    }
  }
  return { parts: parts(), close }
}

async function openForReading (file: string): Promise<FileHandle> {
  let handle: FileHandle | undefined
  try {
    handle = await open(file)
    if ((await handle.stat()).isDirectory()) throw new P2pvmError('ERR_USAGE', `${file} is a folder`, { file })
    return handle
  } catch (error) {
    await handle?.close()
    if (error instanceof P2pvmError) throw error
    throw new P2pvmError(errorCodeOf(error), `cannot read ${file}: ${(error as Error).message}`, { file }, error)
  }
}

async function * bytesOf (handle: FileHandle, file: string): AsyncGenerator<Uint8Array> {
  const before = await handle.stat({ bigint: true })
  yield * handle.createReadStream({ autoClose: false, highWaterMark: READ_BYTES }) as AsyncIterable<Buffer>
  if (!before.isFile()) return
  const after = await handle.stat({ bigint: true })
  if (after.size !== before.size || after.mtimeNs !== before.mtimeNs) {
    throw new P2pvmError('ERR_SOURCE_CHANGED', `${file} changed while it was read; nothing was written`, { file })
  }
}
