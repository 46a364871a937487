/**
 * How a file of the mount reads and writes right now: its overlays and the descriptors of the chunks under them. The main
 * thread publishes one to every worker; both sides answer from it with the same code, by nothing but pread and pwrite.
 *
 * Owns no state: descriptors belong to `overlay.ts` and `chunk-files.ts`, which close them only after every worker has
 * passed an epoch without them. Never waits: what is not at hand is reported as missing.
 */
import { readFully, writeFully } from './files.ts'
import type { OverlayView } from './overlay.ts'
import { PAGE_BYTES, PAGE_VALID, PageMap, type Run, SECTOR_BYTES } from './page-map.ts'

/** Values of a slot; a descriptor is kept plus one. */
export const SLOT_UNKNOWN = 0
export const SLOT_HOLE = -1

/** Where the chunks of a version are: per chunk a slot, and a flag that a reader sets and eviction clears. */
export interface ChunkTableView {
  /** No other table of this process has it, nor will have. */
  readonly id: number
  /** Int32: how many files go by this table. */
  readonly files: SharedArrayBuffer
  readonly chunkSize: number
  readonly slots: SharedArrayBuffer // Int32
  readonly used: SharedArrayBuffer // Uint8
}

/** The message that brings a file to a worker. */
export interface FileViewInit {
  readonly fh: number
  readonly size: number
  readonly base: ChunkTableView
  readonly top?: OverlayView | undefined
  readonly sealed?: OverlayView | undefined
  /** Writes go to the main thread: nothing to write to yet, or a fold is at work. Always so without a top overlay. */
  readonly routeWrites: boolean
}

export type Layer = 'top' | 'sealed' | 'base'

/** Chunks of which a copy is in memory, or on its way there. */
export interface ReadChunks {
  /** Copies `[within, within + length)` of a chunk to `to` at `at`; false: it is not there. */
  read (table: number, index: number, chunkSize: number, within: number, to: Uint8Array, at: number, length: number): boolean
}

export interface Segment {
  readonly layer: Layer
  from: number
  to: number
}

/** Which layer each byte of `[from, to)` comes from, neighbours of one layer merged. */
export function planRead (from: number, to: number, top: PageMap | undefined, sealed: PageMap | undefined): Segment[] {
  if (top === undefined && sealed === undefined) return from < to ? [{ layer: 'base', from, to }] : []
  const segments: Segment[] = []
  let last: Segment | undefined
  const extend = (layer: Layer, at: number, end: number): void => {
    if (last?.layer === layer) last.to = end
    else segments.push(last = { layer, from: at, to: end })
  }
  for (let at = from; at < to;) {
    const page = Math.floor(at / PAGE_BYTES)
    const pageEnd = Math.min(to, (page + 1) * PAGE_BYTES)
    const inTop = top?.validAt(page) ?? 0
    const inSealed = sealed?.validAt(page) ?? 0
    if (inTop === PAGE_VALID) extend('top', at, pageEnd)
    else if (inTop === 0 && inSealed === PAGE_VALID) extend('sealed', at, pageEnd)
    else if ((inTop | inSealed) === 0) extend('base', at, pageEnd)
    else {
      for (let sectorAt = at; sectorAt < pageEnd;) {
        const sector = Math.floor(sectorAt / SECTOR_BYTES)
        const bit = 1 << (sector % (PAGE_BYTES / SECTOR_BYTES))
        const end = Math.min(pageEnd, (sector + 1) * SECTOR_BYTES)
        extend((inTop & bit) !== 0 ? 'top' : (inSealed & bit) !== 0 ? 'sealed' : 'base', sectorAt, end)
        sectorAt = end
      }
    }
    at = pageEnd
  }
  return segments
}

export class FileView {
  readonly fh: number
  readonly size: number
  readonly chunkSize: number
  /** See `ChunkTableView`. */
  readonly table: number
  readonly #files: Int32Array
  readonly #slots: Int32Array
  readonly #used: Uint8Array
  readonly #top: OverlayView | undefined
  readonly #topMap: PageMap | undefined
  readonly #sealed: OverlayView | undefined
  readonly #sealedMap: PageMap | undefined
  readonly #routeWrites: boolean

  constructor (init: FileViewInit) {
    this.fh = init.fh
    this.size = init.size
    this.chunkSize = init.base.chunkSize
    this.table = init.base.id
    this.#files = new Int32Array(init.base.files)
    this.#slots = new Int32Array(init.base.slots)
    this.#used = new Uint8Array(init.base.used)
    this.#top = init.top
    this.#topMap = init.top === undefined ? undefined : new PageMap(init.top.map)
    this.#sealed = init.sealed
    this.#sealedMap = init.sealed === undefined ? undefined : new PageMap(init.sealed.map)
    this.#routeWrites = init.routeWrites
  }

  /** Bytes of a read that lie in the file. */
  readable (offset: number, size: number): number {
    return Math.max(0, Math.min(size, this.size - offset))
  }

  /** No other file of the mount is of the same version: what it reads nobody else would find in the page cache. */
  get isAloneOnVersion (): boolean {
    return Atomics.load(this.#files, 0) <= 1
  }

  /** Reads `[from, to)` to `buffer` at `at`; false (and anything in the buffer) when a chunk is not at hand. What `ahead` has is not read again. */
  readInto (buffer: Uint8Array, at: number, from: number, to: number, ahead?: ReadChunks): boolean {
    for (const segment of planRead(from, to, this.#topMap, this.#sealedMap)) {
      const place = at + segment.from - from
      const length = segment.to - segment.from
      if (segment.layer === 'top') readFully(this.#top?.pagesFd ?? -1, buffer, place, length, segment.from)
      else if (segment.layer === 'sealed') readFully(this.#sealed?.pagesFd ?? -1, buffer, place, length, segment.from)
      else if (!this.#readBase(buffer, place, segment.from, segment.to, ahead)) return false
    }
    return true
  }

  #readBase (buffer: Uint8Array, at: number, from: number, to: number, ahead: ReadChunks | undefined): boolean {
    for (let position = from; position < to;) {
      const index = Math.floor(position / this.chunkSize)
      const within = position - index * this.chunkSize
      const length = Math.min(to - position, this.chunkSize - within)
      const slot = this.#slotOf(index)
      if (slot === SLOT_UNKNOWN) return false
      if (slot === SLOT_HOLE) buffer.fill(0, at, at + length)
      else {
        if (this.#used[index] === 0) this.#used[index] = 1
        if (ahead?.read(this.table, index, this.chunkSize, within, buffer, at, length) !== true) readFully(slot - 1, buffer, at, length, within)
      }
      at += length
      position += length
    }
    return true
  }

  /** What a working copy has grown by is not in its version. */
  #slotOf (index: number): number {
    return index < this.#slots.length ? Atomics.load(this.#slots, index) : SLOT_HOLE
  }

  /** The file of a chunk that is at hand; undefined also where the chunk begins with what has been written since. */
  chunkFd (index: number): number | undefined {
    const slot = index < 0 ? SLOT_UNKNOWN : this.#slotOf(index)
    if (slot === SLOT_UNKNOWN || slot === SLOT_HOLE) return undefined
    const page = Math.floor(index * this.chunkSize / PAGE_BYTES)
    return (this.#topMap?.validAt(page) ?? 0) === 0 && (this.#sealedMap?.validAt(page) ?? 0) === 0 ? slot - 1 : undefined
  }

  /** Chunks that a read of `[from, to)` needs and that are not at hand. */
  missingChunks (from: number, to: number): number[] {
    const missing: number[] = []
    for (const segment of planRead(from, to, this.#topMap, this.#sealedMap)) {
      if (segment.layer !== 'base') continue
      for (let index = Math.floor(segment.from / this.chunkSize); index * this.chunkSize < segment.to; index++) {
        if (this.#slotOf(index) === SLOT_UNKNOWN && missing.at(-1) !== index) missing.push(index)
      }
    }
    return missing
  }

  /** What of `[from, to)` may be anything but zeros; the rest is holes that are known, and nobody has written there. */
  unlessZero (from: number, to: number): Run[] {
    const runs: Array<{ from: number, to: number }> = []
    const add = (start: number, end: number): void => {
      const last = runs.at(-1)
      if (last?.to === start) last.to = end
      else runs.push({ from: start, to: end })
    }
    for (const segment of planRead(from, to, this.#topMap, this.#sealedMap)) {
      if (segment.layer !== 'base') {
        add(segment.from, segment.to)
        continue
      }
      for (let at = segment.from; at < segment.to;) {
        const index = Math.floor(at / this.chunkSize)
        const end = Math.min(segment.to, (index + 1) * this.chunkSize)
        if (this.#slotOf(index) !== SLOT_HOLE) add(at, end)
        at = end
      }
    }
    return runs
  }

  /** True when `writeFrom` can take it: whole sectors (the last one may end with the file), and a place to put them. */
  takesWrite (from: number, to: number): boolean {
    return !this.#routeWrites && this.wholeSectors(from, to)
  }

  wholeSectors (from: number, to: number): boolean {
    return from % SECTOR_BYTES === 0 && (to % SECTOR_BYTES === 0 || to === this.size) && to <= this.size
  }

  /** Writes `buffer[at, at + to - from)` over `[from, to)` of the file: whole sectors, see `wholeSectors`. */
  writeFrom (buffer: Uint8Array, at: number, from: number, to: number): void {
    const top = this.#top
    if (top === undefined || this.#topMap === undefined) throw new Error('a write to a file that has no overlay')
    writeFully(top.pagesFd, buffer, at, to - from, from)
    // What follows the end of the file in its last page has no other bytes: valid, so that the page is whole.
    this.#topMap.mark(top.mapFd, from, to === this.size ? Math.ceil(to / PAGE_BYTES) * PAGE_BYTES : to)
  }
}
