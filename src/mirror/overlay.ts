/**
 * An overlay on disk: the pages that a working copy has written. A folder with
 *
 *   pages        sparse; a byte of the image lies at its own offset
 *   map.live     the page map as of the last answered write; counts only in the boot that it was written in
 *   map.synced   the page map as of the last fsync; counts after a power cut
 *   boot         id of the boot in which map.live counts
 *
 * A killed process loses nothing, since the page cache outlives it: map.live is right. A power cut may keep a map byte and
 * lose the page: so a sync makes the pages durable first, then copies the map as it was *before* that to map.synced. Bits
 * are only ever set, hence a torn write of map.synced mixes old bytes with new ones that hold the same bits and more, all
 * of which are on disk: any mixture is right.
 *
 * Not for: who may read or write when (`mounted-file.ts`), or which overlay lies on which (`working-copy.ts`).
 */
import { closeSync, fdatasync, openSync, constants, ftruncateSync, readFileSync } from 'node:fs'
import { readFile, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { bootId } from './boot.ts'
import { isNodeError, makeFolder, readFully, syncFolder, writeFully } from './files.ts'
import { zero } from './holes.ts'
import { MAP_BLOCK_BYTES, PAGE_BYTES, PageMap, type Run, runsOf, type SharedPageMap } from './page-map.ts'

const fdatasyncAsync = promisify(fdatasync)

/** What a worker needs of an overlay: descriptors are process-wide. */
export interface OverlayView {
  readonly pagesFd: number
  readonly mapFd: number
  readonly map: SharedPageMap
}

export class Overlay {
  readonly folder: string
  #map: PageMap
  #size: number
  readonly #pagesFd: number
  readonly #liveFd: number
  readonly #syncedFd: number
  #queued: Promise<void> | undefined
  #last: Promise<void> = Promise.resolve()
  #writingBack: Promise<void> | undefined
  #lost: { readonly error: unknown } | undefined

  private constructor (folder: string, size: number, map: PageMap, fds: { pages: number, live: number, synced: number }) {
    this.folder = folder
    this.#size = size
    this.#map = map
    this.#pagesFd = fds.pages
    this.#liveFd = fds.live
    this.#syncedFd = fds.synced
  }

  /** Opens the overlay, or makes an empty one; its names are durable when this returns. One process at a time. */
  static async open (folder: string, size: number): Promise<Overlay> {
    await makeFolder(folder)
    const fds = openAll(folder)
    try {
      ftruncateSync(fds.pages, size)
      const map = PageMap.forSize(size)
      const synced = new Uint8Array(map.bytes.length)
      readFully(fds.synced, synced, 0, synced.length, 0)
      if (liveCounts(folder)) {
        readFully(fds.live, map.bytes, 0, map.bytes.length, 0)
        // Who was killed in a sync may have written map.synced and no more: what is equal below counts as done.
        await fdatasyncAsync(fds.synced)
        touchDifferences(map, synced)
      } else {
        map.bytes.set(synced)
        writeFully(fds.live, synced, 0, synced.length, 0)
        // Last: until it is there map.synced counts, and both say the same.
        await writeFile(join(folder, 'boot.new'), bootId())
        await rename(join(folder, 'boot.new'), join(folder, 'boot'))
      }
      await syncFolder(folder)
      return new Overlay(folder, size, map, fds)
    } catch (error) {
      for (const fd of Object.values(fds)) closeSync(fd)
      throw error
    }
  }

  get map (): PageMap {
    return this.#map
  }

  /** Of the file, bytes. */
  get size (): number {
    return this.#size
  }

  /** The file is larger from now on. Nobody may be marking through a view from before: that has the map of before. */
  grow (size: number): void {
    ftruncateSync(this.#pagesFd, size)
    this.#map = this.#map.grown(size)
    this.#size = size
  }

  view (): OverlayView {
    return { pagesFd: this.#pagesFd, mapFd: this.#liveFd, map: this.map.shared }
  }

  /**
   * Zeros over `[from, to)`: whole sectors, the last of which may end with the file. In the order of a write: the bytes, then
   * the map. The space that they had on the disk is given back. Does not wait. Throws what the disk says, before the map is touched.
   */
  zero (from: number, to: number): void {
    const validTo = to === this.size ? Math.ceil(to / PAGE_BYTES) * PAGE_BYTES : to
    zero(this.#pagesFd, from, to, validTo)
    this.map.mark(this.#liveFd, from, validTo)
  }

  /** What it holds, in order; a run may reach into the rest of the image's last page. */
  dirtyRuns (): Generator<Run> {
    return runsOf((page) => this.map.validAt(page), 0, this.map.bytes.length, Infinity)
  }

  /** Everything written before the call survives a power cut when this returns. Calls that wait share one sync. */
  async sync (): Promise<void> {
    this.#queued ??= this.#last.then(async () => {
      this.#queued = undefined
      await this.#syncOnce()
    })
    const mine = this.#queued
    this.#last = mine.catch(() => {}) // who waits for it is told
    await mine
  }

  /**
   * Begins to bring to the disk what was written so far, so that it works while more is written, and the next sync has less to wait for.
   * Nothing counts as durable by it. One at a time.
   */
  writeBack (): void {
    this.#writingBack ??= fdatasyncAsync(this.#pagesFd)
      // The kernel says so once: who syncs next must hear it.
      .catch((error: unknown) => { this.#lost = { error } })
      .finally(() => { this.#writingBack = undefined })
  }

  async #syncOnce (): Promise<void> {
    const blocks: Array<{ block: number, bytes: Uint8Array }> = []
    for (let block = 0; block < this.map.touched.length; block++) {
      if (Atomics.exchange(this.map.touched, block, 0) === 0) continue
      blocks.push({ block, bytes: this.map.bytes.slice(block * MAP_BLOCK_BYTES, (block + 1) * MAP_BLOCK_BYTES) })
    }
    try {
      await fdatasyncAsync(this.#pagesFd)
      await this.#writingBack
      this.#throwLost()
      if (blocks.length === 0) return
      for (const { block, bytes } of blocks) writeFully(this.#syncedFd, bytes, 0, bytes.length, block * MAP_BLOCK_BYTES)
      await fdatasyncAsync(this.#syncedFd)
    } catch (error) {
      for (const { block } of blocks) Atomics.store(this.map.touched, block, 1)
      throw error
    }
  }

  #throwLost (): void {
    const lost = this.#lost
    this.#lost = undefined
    if (lost !== undefined) throw lost.error
  }

  /** Only when no worker can hold it any more. */
  async close (): Promise<void> {
    await this.#last
    await this.#writingBack
    for (const fd of [this.#pagesFd, this.#liveFd, this.#syncedFd]) closeSync(fd)
  }
}

/** Pages folded in one go: the main thread answers requests in between. */
const FOLD_PAGES = 256

/**
 * Copies the sectors of `sealed` that `top` does not have into `top`, a piece at a time, `between` the pieces letting
 * others in. Nobody else may write to `top` during a piece.
 */
export async function foldUnder (top: Overlay, sealed: Overlay, between: () => Promise<void>): Promise<void> {
  const from = sealed.view()
  const to = top.view()
  const buffer = Buffer.allocUnsafe(FOLD_PAGES * PAGE_BYTES)
  const lacking = (page: number): number => sealed.map.validAt(page) & ~top.map.validAt(page)
  for (let page = 0; page < sealed.map.bytes.length; page += FOLD_PAGES) {
    const end = Math.min(page + FOLD_PAGES, sealed.map.bytes.length)
    let copied = false
    for (const run of runsOf(lacking, page, end, buffer.length)) {
      readFully(from.pagesFd, buffer, 0, run.to - run.from, run.from)
      writeFully(to.pagesFd, buffer, 0, run.to - run.from, run.from)
      top.map.mark(to.mapFd, run.from, run.to)
      copied = true
    }
    if (copied) await between()
  }
  await top.sync()
}

/** The map of an overlay that may be open elsewhere: a copy, as it counts now. */
export async function readPageMap (folder: string, size: number): Promise<Uint8Array> {
  const map = new Uint8Array(Math.ceil(size / PAGE_BYTES))
  const file = await readFile(join(folder, liveCounts(folder) ? 'map.live' : 'map.synced')).catch((error: unknown) => {
    if (isNodeError(error, 'ENOENT')) return new Uint8Array(0)
    throw error
  })
  map.set(file.subarray(0, map.length))
  return map
}

/** Bytes of the image that the map says are valid. */
export function dirtyBytesOf (map: Uint8Array, size: number): number {
  let bytes = 0
  for (const run of runsOf((page) => map[page] ?? 0, 0, map.length, Infinity)) bytes += Math.min(run.to, size) - run.from
  return bytes
}

function openAll (folder: string): { pages: number, live: number, synced: number } {
  const flags = constants.O_RDWR | constants.O_CREAT
  const fds: number[] = []
  try {
    for (const name of ['pages', 'map.live', 'map.synced']) fds.push(openSync(join(folder, name), flags, 0o600))
  } catch (error) {
    fds.forEach((fd) => { closeSync(fd) })
    throw error
  }
  const [pages = -1, live = -1, synced = -1] = fds
  return { pages, live, synced }
}

/** What an earlier process of this boot wrote and did not sync is still to be synced. */
function touchDifferences (map: PageMap, synced: Uint8Array): void {
  for (let block = 0; block < map.touched.length; block++) {
    const from = block * MAP_BLOCK_BYTES
    const to = from + MAP_BLOCK_BYTES
    if (Buffer.compare(map.bytes.subarray(from, to), synced.subarray(from, to)) !== 0) map.touched[block] = 1
  }
}

function liveCounts (folder: string): boolean {
  try {
    return readFileSync(join(folder, 'boot'), 'utf8') === bootId()
  } catch (error) {
    if (isNodeError(error, 'ENOENT')) return false
    throw error
  }
}
