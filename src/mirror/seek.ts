/**
 * SEEK_DATA and SEEK_HOLE on a file of the mount. A hole is what the version's tree says is zeros (a chunk without a name)
 * and no overlay has a sector of: so holes begin and end with chunks, or with pages beside pages that were written. Chunk
 * ids are asked for where they are not known, chunk bytes never are. Zeros that were written are data until the next commit.
 *
 * Owns no state. Not for: pages that the kernel has not written back (`open-files.ts` asks for them).
 */
import { PAGE_BYTES } from './page-map.ts'
import type { Layers } from './mounted-file.ts'

/** What is looked at: after each wait, as it is then. */
export interface Seekable {
  readonly size: number
  readonly layers: Layers
}

/** Where data begins at or after `offset`; undefined when there is none up to the end. */
export async function nextData (file: Seekable, offset: number, signal: AbortSignal): Promise<number | undefined> {
  return await next(file, offset, true, signal)
}

/** Where a hole begins at or after `offset`; the end of a file is the beginning of one. */
export async function nextHole (file: Seekable, offset: number, signal: AbortSignal): Promise<number> {
  return await next(file, offset, false, signal) ?? file.size
}

async function next (file: Seekable, offset: number, data: boolean, signal: AbortSignal): Promise<number | undefined> {
  const { chunkSize } = file.layers.table.ref
  for (let at = offset; at < file.size;) {
    const index = Math.floor(at / chunkSize)
    const { table } = file.layers
    const hole = await table.isHole(index, signal)
    if (file.layers.table !== table) continue // based on another version meanwhile
    const end = Math.min((index + 1) * chunkSize, file.size)
    if (hole) {
      for (; at < end; at = (Math.floor(at / PAGE_BYTES) + 1) * PAGE_BYTES) if (isWritten(file.layers, at) === data) return at
    } else if (data) return at
    at = end
  }
  return undefined
}

function isWritten ({ top, sealed }: Layers, at: number): boolean {
  const page = Math.floor(at / PAGE_BYTES)
  return ((top?.map.validAt(page) ?? 0) | (sealed?.map.validAt(page) ?? 0)) !== 0
}
