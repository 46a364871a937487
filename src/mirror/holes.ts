/**
 * Zeros in the file of an overlay's pages, and the space on the disk that they would take. Node has no fallocate(2): fallocate(1) is
 * run, by a process that ends with this one, so that what follows a killed one may write here at once.
 *
 * Many pages at a time are punched as they are zeroed. For few, a process costs more than the zeros: those are written, where
 * there is anything else, and their region is noted. Later whatever reads as zeros in it becomes a hole (`dig`). That looks at the bytes
 * and not at what was noted: a page that has been written again stays, and who reads a page that goes finds zeros before, after, and
 * whatever survives a power cut. But nobody may write to the file between that look and the punch.
 *
 * State it owns: which regions have zeros to be given back. They are forgotten with the process: the space is then taken until the
 * overlay goes, or the pages are zeroed together with others.
 */
import { spawnSync } from 'node:child_process'
import { readFully, writeFully } from './files.ts'
import { PAGE_BYTES } from './page-map.ts'

/** From here on starting a process costs less than writing the zeros. */
const PUNCH_BYTES_MIN = 1024 * 1024
/** What one process looks through: tens of milliseconds where it is in the page cache, a tenth of a second on a slow disk. */
const REGION_BYTES = 16 * 1024 * 1024
/** A disk takes milliseconds for it; the main thread waits. */
const FALLOCATE_DEADLINE_MS = 5_000
/** It ends with its parent from setpriv on: one whose parent was killed before that has nothing to do here any more. */
const UNLESS_ORPHANED = '[ "$PPID" = "$1" ] && shift && exec fallocate "$@"'
const ZEROS = Buffer.alloc(1024 * 1024)
/** Of the moment: the main thread alone zeros, without a wait. */
const THERE = Buffer.allocUnsafeSlow(ZEROS.length)

export class Holes {
  readonly #path: string
  readonly #fd: number
  /** False once this disk cannot, or nobody can ask it. */
  #punches = true
  /** By number; at most as many as the file has. */
  readonly #zeroed = new Set<number>()

  constructor (path: string, fd: number) {
    this.#path = path
    this.#fd = fd
  }

  /** Zeros over `[from, to)`, after which nothing lies up to `blankTo`. Does not wait. */
  zero (from: number, to: number, blankTo: number): void {
    const first = Math.ceil(from / PAGE_BYTES) * PAGE_BYTES
    const end = Math.floor(blankTo / PAGE_BYTES) * PAGE_BYTES
    if (end - first >= PUNCH_BYTES_MIN && this.#fallocate('--punch-hole', first, end - first)) {
      this.#write(from, first)
      this.#write(end, to)
    } else this.#write(from, to)
  }

  /** There is something to dig for. */
  get waiting (): boolean {
    return this.#zeroed.size > 0
  }

  /** Gives back the zeros of one region, while nobody else writes to the file. Does not wait for anything but the process. */
  dig (): void {
    const [region] = this.#zeroed
    if (region === undefined) return
    this.#zeroed.delete(region)
    if (!this.#fallocate('--dig-holes', region * REGION_BYTES, REGION_BYTES)) this.#zeroed.clear()
  }

  /** Only where there is something else: what is a hole already stays one. */
  #write (from: number, to: number): void {
    for (let at = from; at < to; at += ZEROS.length) {
      const length = Math.min(ZEROS.length, to - at)
      readFully(this.#fd, THERE, 0, length, at)
      for (const [start, end] of piecesOfData(at, length)) {
        writeFully(this.#fd, ZEROS, 0, end - start, start)
        for (let region = Math.floor(start / REGION_BYTES); this.#punches && region * REGION_BYTES < end; region++) this.#zeroed.add(region)
      }
    }
  }

  /** False when this disk cannot, or there is no such program. */
  #fallocate (what: '--punch-hole' | '--dig-holes', offset: number, length: number): boolean {
    const args = [process.pid, what, '--offset', offset, '--length', length, this.#path].map(String)
    this.#punches &&= spawnSync('setpriv', ['--pdeathsig', 'KILL', 'sh', '-c', UNLESS_ORPHANED, 'sh', ...args], { stdio: 'ignore', timeout: FALLOCATE_DEADLINE_MS }).status === 0
    return this.#punches
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
