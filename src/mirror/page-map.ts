/**
 * Which sectors of a working copy an overlay holds: one byte per page, bit i = sector i of the page is valid. Bits are
 * only ever set. The map lies in shared memory, so that every worker and the main thread see one map.
 *
 * Order that makes it right: bytes of the image first, then the byte in `map.live`, then the bit in shared memory, then the
 * answer. Who sees a bit finds the bytes, and `map.live` says so already: hence a write that finds all its bits set may be
 * answered at once, and a killed server loses no write that it has answered.
 *
 * Why a lock: `map.live` is written in whole bytes. Without one, A reads 01, B writes 03 and answers, A writes 01, and a
 * kill right then loses what B acknowledged. It is held only where the map changes: overwriting takes none.
 *
 * Not for: the pages themselves, or when the map counts after a crash (`overlay.ts`).
 */
import { writeSync } from 'node:fs'

/** The unit of validity: what a machine's disk writes at least. */
export const SECTOR_BYTES = 512
/** The unit of the kernel's page cache. */
export const PAGE_BYTES = 4096
/** Every sector of a page. */
export const PAGE_VALID = 0xff
/** Map bytes that share one `touched` flag (16 MiB of image): fsync copies such blocks, not the whole map. */
export const MAP_BLOCK_BYTES = 4096

const SECTORS_PER_PAGE = PAGE_BYTES / SECTOR_BYTES

/** What a worker is sent to build its own PageMap on. */
export interface SharedPageMap {
  readonly bytes: SharedArrayBuffer
  readonly touched: SharedArrayBuffer
  readonly lock: SharedArrayBuffer
}

export class PageMap {
  readonly shared: SharedPageMap
  readonly bytes: Uint8Array
  /** One per MAP_BLOCK_BYTES: 1 when bits were set since the block was last copied for a sync. */
  readonly touched: Uint8Array
  readonly #lock: Int32Array

  constructor (shared: SharedPageMap) {
    this.shared = shared
    this.bytes = new Uint8Array(shared.bytes)
    this.touched = new Uint8Array(shared.touched)
    this.#lock = new Int32Array(shared.lock)
  }

  /** An empty map for an image of `size` bytes. */
  static forSize (size: number): PageMap {
    const pages = Math.ceil(size / PAGE_BYTES)
    return new PageMap({
      bytes: new SharedArrayBuffer(pages),
      touched: new SharedArrayBuffer(Math.ceil(pages / MAP_BLOCK_BYTES)),
      lock: new SharedArrayBuffer(4)
    })
  }

  /** A map of the same bits for a larger image. What is marked here from now on is not in it. */
  grown (size: number): PageMap {
    const map = PageMap.forSize(size)
    map.bytes.set(this.bytes)
    map.touched.set(this.touched)
    return map
  }

  /** Nothing past its end: an overlay that was sealed before its file grew has a shorter map. */
  validAt (page: number): number {
    return page < this.bytes.length ? Atomics.load(this.bytes, page) : 0
  }

  /** Sets the bits of `[from, to)` (multiples of SECTOR_BYTES) here and in the file `fd`. The bytes are in place already. */
  mark (fd: number, from: number, to: number): void {
    const first = Math.floor(from / PAGE_BYTES)
    const end = Math.ceil(to / PAGE_BYTES)
    if (this.#marked(first, end, from, to)) return
    this.#acquire()
    try {
      const changed = Uint8Array.from({ length: end - first }, (_, at) => this.validAt(first + at) | sectorMask(first + at, from, to))
      for (let at = 0; at < changed.length;) at += writeSync(fd, changed, at, changed.length - at, first + at)
      for (let at = 0; at < changed.length; at++) Atomics.store(this.bytes, first + at, changed[at] ?? 0)
      // After the bits: a sync that clears the flag too early sees them, or sees the flag again.
      for (let block = Math.floor(first / MAP_BLOCK_BYTES); block * MAP_BLOCK_BYTES < end; block++) Atomics.store(this.touched, block, 1)
    } finally {
      this.#release()
    }
  }

  #marked (first: number, end: number, from: number, to: number): boolean {
    for (let page = first; page < end; page++) {
      const mask = sectorMask(page, from, to)
      if ((this.validAt(page) & mask) !== mask) return false
    }
    return true
  }

  #acquire (): void {
    while (Atomics.compareExchange(this.#lock, 0, 0, 1) !== 0) Atomics.wait(this.#lock, 0, 1)
  }

  #release (): void {
    Atomics.store(this.#lock, 0, 0)
    Atomics.notify(this.#lock, 0, 1)
  }
}

/** The bits of a page's sectors that lie in `[from, to)`. */
export function sectorMask (page: number, from: number, to: number): number {
  const start = page * PAGE_BYTES
  const first = Math.max(0, Math.floor((from - start) / SECTOR_BYTES))
  const end = Math.min(SECTORS_PER_PAGE, Math.ceil((to - start) / SECTOR_BYTES))
  return end <= first ? 0 : (PAGE_VALID << first) & (PAGE_VALID >> (SECTORS_PER_PAGE - end))
}

/** A run of sectors, `[from, to)` in bytes. */
export interface Run {
  readonly from: number
  readonly to: number
}

/** Runs of set bits in pages `[first, end)`, in order, each at most `bytesMax` long. */
export function * runsOf (maskAt: (page: number) => number, first: number, end: number, bytesMax: number): Generator<Run> {
  let from = -1
  let to = -1
  for (let page = first; page < end; page++) {
    const mask = maskAt(page)
    if (mask === 0 && from < 0) continue
    for (let sector = 0; sector < SECTORS_PER_PAGE; sector++) {
      const at = page * PAGE_BYTES + sector * SECTOR_BYTES
      const set = (mask & (1 << sector)) !== 0
      if (from >= 0 && (!set || to - from >= bytesMax)) {
        yield { from, to }
        from = -1
      }
      if (!set) continue
      if (from < 0) from = at
      to = at + SECTOR_BYTES
    }
  }
  if (from >= 0) yield { from, to }
}
