/**
 * Reads past the page cache that nobody waits for: Linux's asynchronous I/O (io_submit(2)) on files that are open with O_DIRECT, by way of
 * `system-calls.ts`. One queue of the kernel's serves all threads of a process: any of them may begin a read, and any of them may hear
 * of its end.
 *
 * State it owns: the memory in which it speaks with the kernel, and that which is read into, for as long as the process lives; the queue
 * itself is the kernel's, and ends with the process. Not for: what lies where in that memory (`fuse/read-ahead-ring.ts`).
 */
import { closeSync, constants, openSync } from 'node:fs'
import { addressOf, systemCall } from './system-calls.ts'

/** By architecture: asm/unistd.h. */
const CALLS: Readonly<Record<string, { readonly io_setup: number, readonly io_submit: number, readonly io_getevents: number, readonly madvise: number }>> = {
  x64: { io_setup: 206, io_submit: 209, io_getevents: 208, madvise: 28 },
  arm64: { io_setup: 0, io_submit: 2, io_getevents: 4, madvise: 233 }
}
const MADV_HUGEPAGE = 14
/** Of x64, and of arm64 with pages of 4 KiB. */
const HUGE_PAGE_BYTES = 2 * 1024 * 1024
/** The same on both; Linux 6.5. */
const CACHESTAT = 451

// linux/aio_abi.h: struct iocb, behind a pointer to it, and struct io_event.
const IOCB_AT = 8
const IOCB_BYTES = 64
const IOCB_CMD_PREAD = 0
const EVENT_BYTES = 32
/** Ends heard of at once. */
const EVENTS_MAX = 32
const TIMESPEC_BYTES = 16
/** struct cachestat_range, and struct cachestat, of which only nr_cache is looked at. */
const RANGE_BYTES = 16
const CACHESTAT_BYTES = 40

/** Nobody waits for reads when a mount ends: were this collected, the disk would write to whatever comes next. */
const allocated: SharedArrayBuffer[] = []

/** `bytes`, from a `start` that lies at `address`. */
export interface ReadMemory {
  readonly bytes: SharedArrayBuffer
  readonly start: number
  readonly address: number
}

/**
 * Memory to read into, of huge pages where the system gives them: a disk is told of each run of pages, and a virtual one (virtio) takes but
 * some hundreds of runs at a time. With pages of 4 KiB that is three reads of 256 KiB, and half as many bytes per second. `length`: bytes.
 * Undefined: this machine has no such reads.
 */
export function allocateReadMemory (length: number): ReadMemory | undefined {
  const calls = CALLS[process.arch]
  const bytes = new SharedArrayBuffer(length + HUGE_PAGE_BYTES)
  const at = addressOf(new Uint8Array(bytes))
  if (at === undefined || calls === undefined) return undefined
  allocated.push(bytes)
  const address = Math.ceil(at / HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
  systemCall(calls.madvise, address, length, MADV_HUGEPAGE, 0, 0) // or not: then it is slower
  return { bytes, start: address - at, address }
}

export class DirectReads {
  readonly #calls: NonNullable<typeof CALLS[string]>
  readonly #queue: number
  /** What the kernel reads and writes while a call lasts: one after the other. */
  readonly #scratch = new DataView(new ArrayBuffer(IOCB_AT + IOCB_BYTES + TIMESPEC_BYTES + EVENTS_MAX * EVENT_BYTES + RANGE_BYTES + CACHESTAT_BYTES))
  readonly #at: number

  /** For all reads of this process: the number of a new queue that takes so many at once. Undefined: this machine has none. */
  static openQueue (reads: number): number | undefined {
    const calls = CALLS[process.arch]
    const queue = new DataView(new ArrayBuffer(8)) // not a typed array: V8 may move a small one
    const at = addressOf(queue)
    if (calls === undefined || at === undefined || systemCall(calls.io_setup, reads, at, 0, 0, 0) !== 0) return undefined
    return Number(queue.getBigUint64(0, true))
  }

  /** `queue`: of `openQueue`, in whatever thread. */
  constructor (queue: number) {
    const calls = CALLS[process.arch]
    const at = addressOf(this.#scratch)
    if (calls === undefined || at === undefined) throw new Error('asynchronous reads where there are none')
    this.#calls = calls
    this.#queue = queue
    this.#at = at
  }

  /**
   * Begins to read `[offset, offset + length)` of a file that is open as `fd`, for reading, to memory at `address`: all three multiples of
   * the disk's blocks. Its end is told by `reap`, under `tag`, also when `fd` has been closed meanwhile. False, and nothing has begun: the
   * page cache has some of it already, its file system cannot, or too many reads are under way.
   */
  begin (fd: number, offset: number, length: number, address: number, tag: number): boolean {
    if (this.#isCached(fd, offset, length)) return false
    let direct
    try {
      direct = openSync(`/proc/self/fd/${fd}`, constants.O_RDONLY | constants.O_DIRECT)
    } catch {
      return false
    }
    const scratch = this.#scratch
    for (let at = 0; at < IOCB_AT + IOCB_BYTES; at += 8) scratch.setBigUint64(at, 0n, true)
    scratch.setBigUint64(0, BigInt(this.#at + IOCB_AT), true)
    scratch.setBigUint64(IOCB_AT, BigInt(tag), true)
    scratch.setUint16(IOCB_AT + 16, IOCB_CMD_PREAD, true)
    scratch.setUint32(IOCB_AT + 20, direct, true)
    scratch.setBigUint64(IOCB_AT + 24, BigInt(address), true)
    scratch.setBigUint64(IOCB_AT + 32, BigInt(length), true)
    scratch.setBigUint64(IOCB_AT + 40, BigInt(offset), true)
    try {
      return systemCall(this.#calls.io_submit, this.#queue, 1, this.#at, 0, 0) === 1
    } finally {
      closeSync(direct)
    }
  }

  /** Tells of reads that have ended: how many bytes, or a negative errno. When there is none it waits for one, so long at most. */
  reap (waitMs: number, ended: (tag: number, result: number) => void): void {
    const scratch = this.#scratch
    const timeout = IOCB_AT + IOCB_BYTES
    const events = timeout + TIMESPEC_BYTES
    scratch.setBigInt64(timeout, 0n, true)
    scratch.setBigInt64(timeout + 8, BigInt(waitMs * 1e6), true)
    const count = systemCall(this.#calls.io_getevents, this.#queue, waitMs === 0 ? 0 : 1, EVENTS_MAX, this.#at + events, this.#at + timeout) ?? 0
    for (let at = events; at < events + count * EVENT_BYTES; at += EVENT_BYTES) {
      ended(Number(scratch.getBigUint64(at, true)), Number(scratch.getBigInt64(at + 16, true)))
    }
  }

  /** Where nobody can say (Linux before 6.5) it may be. */
  #isCached (fd: number, offset: number, length: number): boolean {
    const range = IOCB_AT + IOCB_BYTES + TIMESPEC_BYTES + EVENTS_MAX * EVENT_BYTES
    const found = range + RANGE_BYTES
    this.#scratch.setBigUint64(range, BigInt(offset), true)
    this.#scratch.setBigUint64(range + 8, BigInt(length), true)
    return systemCall(CACHESTAT, fd, this.#at + range, this.#at + found, 0, 0) !== 0 || this.#scratch.getBigUint64(found, true) !== 0n
  }
}
