/**
 * A sealed overlay as the daemon reads it for a commit, chunk by chunk. It changes no more, so it needs no lock and may be
 * read from another process. Not for overlays that somebody writes to.
 */
import { closeSync, openSync, readSync } from 'node:fs'
import { join } from 'node:path'
import { dirtyBytesOf, readPageMap } from './overlay.ts'
import { PAGE_BYTES, PAGE_VALID, runsOf, SECTOR_BYTES, type Run } from './page-map.ts'

export interface SealedOverlayInit {
  readonly chunkSize: number
  /** Of the image, bytes. */
  readonly size: number
}

export async function openSealedOverlay (folder: string, init: SealedOverlayInit): Promise<SealedOverlay> {
  const map = await readPageMap(folder, init.size)
  return new SealedOverlay(map, openSync(join(folder, 'pages'), 'r'), init)
}

export class SealedOverlay {
  readonly #map: Uint8Array
  readonly #pagesFd: number
  readonly #chunkSize: number
  readonly #size: number

  constructor (map: Uint8Array, pagesFd: number, init: SealedOverlayInit) {
    this.#map = map
    this.#pagesFd = pagesFd
    this.#chunkSize = init.chunkSize
    this.#size = init.size
  }

  /** Indices of chunks with at least one valid sector, ascending. */
  * dirtyChunks (): Generator<number> {
    const pages = this.#chunkSize / PAGE_BYTES
    for (let index = 0; index * pages < this.#map.length; index++) {
      if (this.#map.subarray(index * pages, (index + 1) * pages).some((mask) => mask !== 0)) yield index
    }
  }

  /** Valid bytes of the image. */
  dirtyBytes (): number {
    return dirtyBytesOf(this.#map, this.#size)
  }

  /** Length of a chunk: the last one ends with the image. */
  chunkBytes (index: number): number {
    return Math.max(0, Math.min(this.#chunkSize, this.#size - index * this.#chunkSize))
  }

  /** True when the overlay alone has every byte of the chunk. */
  coversChunk (index: number): boolean {
    const end = index * this.#chunkSize + this.chunkBytes(index)
    for (let at = index * this.#chunkSize; at < end; at += SECTOR_BYTES) {
      const mask = this.#map[Math.floor(at / PAGE_BYTES)] ?? 0
      if (mask === PAGE_VALID) at += PAGE_BYTES - SECTOR_BYTES // chunks begin with a page
      else if ((mask & (1 << ((at % PAGE_BYTES) / SECTOR_BYTES))) === 0) return false
    }
    return true
  }

  /** Puts the overlay's valid bytes of the chunk over `bytes`, which hold what it lies on. */
  async readOver (index: number, bytes: Uint8Array): Promise<void> {
    const start = index * this.#chunkSize
    for (const { from, to } of this.#runsOf(index)) {
      const end = Math.min(to, start + bytes.length)
      for (let at = from; at < end;) {
        const count = readSync(this.#pagesFd, bytes, at - start, end - at, at)
        if (count === 0) throw new Error('the overlay is shorter than its map says')
        at += count
      }
    }
  }

  * #runsOf (index: number): Generator<Run> {
    const pages = this.#chunkSize / PAGE_BYTES
    const end = Math.min((index + 1) * pages, this.#map.length)
    yield * runsOf((page) => this.#map[page] ?? 0, index * pages, end, this.#chunkSize)
  }

  async close (): Promise<void> {
    closeSync(this.#pagesFd)
  }
}
