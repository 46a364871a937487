/**
 * Has the disk at work on the chunks before a reader who goes through a file in order. The kernel reads ahead within one chunk's file,
 * and every file begins cold: the disk would rest while a chunk is copied, and everybody else while the next one is read.
 *
 * Only chunks that are at hand are begun, so nothing is fetched for it (that is `mirror/read-ahead.ts`). A worker does it after its answer.
 * Requests of one reader are spread over the workers, as it comes: so they know of readers together, and each begins what its own request
 * stands for. Which chunks these are depends on where it lies and on where its reader began: no two begin the same, and none is left out.
 *
 * State it owns: a view of the readers that were seen last, which all workers share. Two that write at once may lose a reader, or have
 * him twice: some chunks are then read later, or for nothing.
 */
import type { FileView } from '../file-view.ts'
import { PAGE_BYTES } from '../page-map.ts'

/** What is smaller is not the kernel reading ahead, nor that of a guest. */
export const REQUEST_BYTES_MIN = 128 * 1024
/** Between two requests of a reader, answered in whatever order: what the others have in hand meanwhile. */
const SKIPPED_PAGES_MAX = 2 * 1024 * 1024 / PAGE_BYTES
/** As far as it goes before a reader: half or twice as far is a tenth slower. */
const AHEAD_BYTES_MAX = 4 * 1024 * 1024
/** Of the way that he has come: what is read for nothing is a third of all at most. */
const AHEAD_SHARE = 1 / 2
const READERS_MAX = 8

/** Fields of a reader. */
const FH = 0
/** When he was last seen, in turns. */
const TURN = 1
/** In pages of the file: where he began, and where he is. */
const START = 2
const END = 3
const FIELDS = 4
const LAST_TURN = 0
const READERS_AT = 1

/** Has all of a chunk read from the disk soon, from its open file; does not wait, and never throws. */
export type Begin = (view: FileView, index: number, fd: number) => void

/** For all workers of a mount. */
export function makeReaders (): SharedArrayBuffer {
  return new SharedArrayBuffer((READERS_AT + READERS_MAX * FIELDS) * Int32Array.BYTES_PER_ELEMENT)
}

export class DiskReadAhead {
  readonly #readers: Int32Array

  constructor (readers: SharedArrayBuffer) {
    this.#readers = new Int32Array(readers)
  }

  /** `[from, to)` of a file has been read, and answered. */
  answered (view: FileView, from: number, to: number, begin: Begin): void {
    if (to - from < REQUEST_BYTES_MIN) return
    const startPage = this.#seen(view.fh, Math.floor(from / PAGE_BYTES), Math.ceil(to / PAGE_BYTES))
    if (startPage === undefined) return
    const start = startPage * PAGE_BYTES
    const end = aheadOf(start, to, view.chunkSize)
    for (let index = aheadOf(start, from, view.chunkSize); index < end; index++) {
      const fd = view.chunkFd(index)
      if (fd !== undefined) begin(view, index, fd)
    }
  }

  /** Where the reader who has read these pages began; undefined: here. */
  #seen (fh: number, from: number, to: number): number | undefined {
    const readers = this.#readers
    const turn = Atomics.add(readers, LAST_TURN, 1) + 1
    let oldest = READERS_AT
    for (let reader = READERS_AT; reader < readers.length; reader += FIELDS) {
      if (readers[reader + FH] === fh && from >= readers[reader + START]! && Math.abs(from - readers[reader + END]!) <= SKIPPED_PAGES_MAX) {
        readers[reader + TURN] = turn
        readers[reader + END] = to
        return readers[reader + START]!
      }
      if (readers[reader + TURN]! < readers[oldest + TURN]!) oldest = reader
    }
    readers.set([fh, turn, from, to], oldest)
    return undefined
  }
}

/** The first chunk that is not to be begun yet for a reader who is at `at`. */
function aheadOf (start: number, at: number, chunkSize: number): number {
  return Math.ceil((at + Math.min(AHEAD_BYTES_MAX, (at - start) * AHEAD_SHARE)) / chunkSize)
}
