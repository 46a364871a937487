/**
 * Has the disk at work on the chunks before a reader who goes through a file in order. The kernel reads ahead within one chunk's file,
 * and every file begins cold: the disk would rest while a chunk is copied, and everybody else while the next one is read.
 *
 * Only chunks that are at hand are begun, so nothing is fetched for it (that is `mirror/read-ahead.ts`). The kernel is told of the whole
 * file: its readahead in it starts at once, and nobody waits, though it takes single pages for it, 0.1 ms of a processor for a chunk. A worker does it after its answer, by what it sees itself: requests of one
 * reader are spread over the workers, and which chunks a request stands for depends on where it lies and on where its reader began, so that
 * they share the work without a word. (Until each is as far ahead as it goes, some chunks are begun twice or not at all: they do not agree
 * on where the reader began.)
 *
 * State it owns: the readers that this worker has seen last, at most READERS_MAX.
 */
import type { FileView } from '../file-view.ts'
import { willNeed } from '../system-calls.ts'

/** What is smaller is not the kernel reading ahead, nor that of a guest. */
const REQUEST_BYTES_MIN = 128 * 1024
/** Between two requests of a reader that one worker gets: what the others have taken meanwhile. */
const SKIPPED_BYTES_MAX = 2 * 1024 * 1024
/** As far as it goes before a reader: from 2 to 16 MiB there is no difference. */
const AHEAD_BYTES_MAX = 4 * 1024 * 1024
/** Of the way that he has come: what is read for nothing is a third of all at most. */
const AHEAD_SHARE = 1 / 2
const READERS_MAX = 8

interface Reader {
  readonly fh: number
  readonly start: number
  end: number
}

export class DiskReadAhead {
  readonly #begin: (fd: number) => void
  /** The one who was seen last is the last. */
  readonly #readers: Reader[] = []

  /** `begin`: has all of an open file read from the disk soon; does not wait, and never throws. */
  constructor (begin: (fd: number) => void = (fd) => { willNeed(fd, 0, 0) }) {
    this.#begin = begin
  }

  /** `[from, to)` of a file has been read, and answered. */
  answered (view: Pick<FileView, 'fh' | 'chunkSize' | 'chunkFd'>, from: number, to: number): void {
    if (to - from < REQUEST_BYTES_MIN) return
    const found = this.#readers.findIndex(({ fh, end }) => fh === view.fh && from >= end && from <= end + SKIPPED_BYTES_MAX)
    const [reader = { fh: view.fh, start: from, end: to }] = found < 0 ? [] : this.#readers.splice(found, 1)
    reader.end = to
    this.#readers.push(reader)
    if (this.#readers.length > READERS_MAX) this.#readers.shift()
    if (found < 0) return
    const end = aheadOf(reader, to, view.chunkSize)
    for (let index = aheadOf(reader, from, view.chunkSize); index < end; index++) {
      const fd = view.chunkFd(index)
      if (fd !== undefined) this.#begin(fd)
    }
  }
}

/** The first chunk that is not to be begun yet for a reader who is at `at`. */
function aheadOf ({ start }: Reader, at: number, chunkSize: number): number {
  return Math.ceil((at + Math.min(AHEAD_BYTES_MAX, (at - start) * AHEAD_SHARE)) / chunkSize)
}
