/** Zeros in a file that take no space on the disk, as far as it can do that. Owns no state. */
import { readFully, writeFully } from './files.ts'
import { PAGE_BYTES } from './page-map.ts'
import { punchHole } from './system-calls.ts'

const ZEROS = Buffer.alloc(1024 * 1024)
/** Of the moment: the main thread alone zeros, without a wait. */
const THERE = Buffer.allocUnsafeSlow(ZEROS.length)

/**
 * Zeros over `[from, to)`, bytes, after which nothing lies up to `blankTo`. Whole pages become holes; what is left at both ends is
 * written, where there is anything else. So is all of it on a disk that has no holes. Nothing else runs meanwhile. Throws what the disk
 * says (ENOSPC, EIO); parts may be zeros then.
 */
export function zero (fd: number, from: number, to: number, blankTo: number): void {
  const first = Math.ceil(from / PAGE_BYTES) * PAGE_BYTES
  const end = Math.floor(blankTo / PAGE_BYTES) * PAGE_BYTES
  if (end > first && punchHole(fd, first, end - first)) {
    write(fd, from, first)
    write(fd, end, to)
  } else write(fd, from, to)
}

/** Only where there is something else: what is a hole already stays one. */
function write (fd: number, from: number, to: number): void {
  for (let at = from; at < to; at += ZEROS.length) {
    const length = Math.min(ZEROS.length, to - at)
    readFully(fd, THERE, 0, length, at)
    for (const [start, end] of piecesOfData(at, length)) writeFully(fd, ZEROS, 0, end - start, start)
  }
}

/** Of the `length` bytes in THERE, which are those of the file from `at` on: runs of pages, cut at both ends, with anything but zeros. */
function * piecesOfData (at: number, length: number): Generator<[from: number, to: number]> {
  let from = -1
  for (let done = 0; done < length;) {
    const end = Math.min(length, done + PAGE_BYTES - (at + done) % PAGE_BYTES)
    const isZero = ZEROS.compare(THERE, done, end, 0, end - done) === 0
    if (isZero && from >= 0) {
      yield [from, at + done]
      from = -1
    } else if (!isZero && from < 0) from = at + done
    done = end
  }
  if (from >= 0) yield [from, at + length]
}
