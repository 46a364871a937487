/**
 * A file of the mount that somebody has open: its layers, and the slow half of reading and writing, on the main thread. The
 * fast half is `file-view.ts` in the workers; both go by the view that is published here.
 *
 * No reference to a layer or a descriptor is held across an await: after each wait the work starts over with the view of
 * the moment. So a change of layers has to wait for the workers only, and one of the main thread's reads or writes is
 * either before it or after it.
 */
import { setImmediate as afterIo } from 'node:timers/promises'
import type { ChunkFiles } from './chunk-files.ts'
import { FileView, type FileViewInit } from './file-view.ts'
import type { Overlay } from './overlay.ts'
import { SECTOR_BYTES } from './page-map.ts'
import { ReadAhead } from './read-ahead.ts'
import { nextData, nextHole } from './seek.ts'
import { withDeadline } from '../protocols/abort.ts'
import type { Clock } from '../protocols/seams.ts'
import type { VersionTable } from './version-table.ts'

/**
 * Zeroed in one go: the main thread answers requests in between. A disk gives back so much of it in 5 ms, at 0.1 ms for each piece that it
 * lies in: 0.3 s at worst, when that is every second page.
 */
const ZERO_BYTES_MAX = 16 * 1024 * 1024

export interface MountedFileComponents {
  readonly clock: Clock
  readonly chunkFiles: ChunkFiles
  /** Sends a view to the workers; resolves when none can be using an earlier one. */
  readonly publish: (view: FileViewInit) => Promise<void>
  readonly missDeadlineMs: number
  /** Aborts when the mount ends. */
  readonly signal: AbortSignal
}

export interface Layers {
  readonly table: VersionTable
  readonly top: Overlay | undefined
  readonly sealed: Overlay | undefined
  readonly routeWrites: boolean
}

/** What a file asks of its working copy. */
export interface Growable {
  /** Brings a top overlay into being, for a file that has none before its first write. */
  makeWritable (): Promise<unknown>
  /** Makes the file as large as this, if it is smaller: durably, and for all who see it. */
  grow (size: number): Promise<void>
}

export class MountedFile {
  readonly fh: number
  readonly #components: MountedFileComponents
  #layers: Layers
  #size: number
  #growing = false
  #view: FileView
  readonly #growable: Growable
  readonly #readAhead: ReadAhead

  constructor (fh: number, size: number, layers: Layers, components: MountedFileComponents, growable: Growable) {
    this.fh = fh
    this.#size = size
    this.#components = components
    this.#layers = layers
    this.#growable = growable
    this.#readAhead = new ReadAhead(layers.table.ref.chunkSize)
    this.#view = new FileView(this.#viewInit())
  }

  /** Bytes. Grows, and never shrinks. */
  get size (): number {
    return this.#size
  }

  get layers (): Layers {
    return this.#layers
  }

  /** The main thread goes by the new layers at once; every worker does when this resolves. */
  async change (layers: Partial<Layers> = {}): Promise<void> {
    this.#layers = { ...this.#layers, ...layers }
    const init = this.#viewInit()
    this.#view = new FileView(init)
    await this.#components.publish(init)
  }

  /** `growOverlay` is called when no worker can be writing: it would set bits in a map that is left behind. One at a time. */
  async growTo (size: number, growOverlay: () => void): Promise<void> {
    this.#growing = true
    try {
      await this.change()
      growOverlay()
      this.#size = size
    } finally {
      this.#growing = false
      await this.change()
    }
  }

  #viewInit (): FileViewInit {
    const { table, top, sealed, routeWrites } = this.#layers
    return { fh: this.fh, size: this.size, base: table.view, top: top?.view(), sealed: sealed?.view(), routeWrites: routeWrites || this.#growing || top === undefined }
  }

  /** See `FileView`. */
  wholeSectors (from: number, to: number): boolean {
    return this.#view.wholeSectors(from, to)
  }

  /** Bytes of the file from `offset`, cut at its end. Fetches what is not here. */
  async read (offset: number, size: number): Promise<Buffer> {
    const end = offset + this.#view.readable(offset, size)
    const bytes = Buffer.allocUnsafe(end - offset)
    await this.#untilDeadline(async (signal) => {
      while (!this.#view.readInto(bytes, 0, offset, end)) {
        const fetched = this.#fetch(offset, end, signal)
        void this.#fetchAhead(offset, end)
        await fetched
      }
    })
    return bytes
  }

  /** Writes any bytes; parts of sectors need what they lie on. Past the end the file grows. */
  async write (offset: number, bytes: Buffer): Promise<void> {
    const end = offset + bytes.length
    if (bytes.length === 0) return
    if (this.#layers.top === undefined) await this.#growable.makeWritable()
    if (end > this.size) await this.grow(end)
    if (this.#view.wholeSectors(offset, end)) {
      this.#view.writeFrom(bytes, 0, offset, end)
      return
    }
    const from = offset - offset % SECTOR_BYTES
    const to = Math.min(this.size, Math.ceil(end / SECTOR_BYTES) * SECTOR_BYTES)
    const whole = Buffer.allocUnsafe(to - from)
    await this.#untilDeadline(async (signal) => {
      while (!this.#view.readInto(whole, 0, from, to)) await this.#fetch(from, to, signal)
      // In one go from that read to this write: two that change parts of one sector would else lose one of them.
      bytes.copy(whole, offset - from)
      this.#view.writeFrom(whole, 0, from, to)
    })
  }

  /** EFBIG when it is too large for anybody. */
  async grow (size: number): Promise<void> {
    await this.#growable.grow(size)
  }

  /** Zeros over `[from, to)`, which lies in the file. Only parts of sectors need what they lie on. */
  async zero (from: number, to: number): Promise<void> {
    if (from >= to) return
    if (this.#layers.top === undefined) await this.#growable.makeWritable()
    const first = Math.min(to, Math.ceil(from / SECTOR_BYTES) * SECTOR_BYTES)
    const end = to === this.size ? to : Math.max(first, to - to % SECTOR_BYTES)
    await this.write(from, Buffer.alloc(first - from))
    await this.write(end, Buffer.alloc(to - end))
    for (let at = first, pieceEnd; at < end; at = pieceEnd) {
      // Whole pages: of one that is cut nobody gives back the space.
      pieceEnd = Math.min(end, at - at % ZERO_BYTES_MAX + ZERO_BYTES_MAX)
      // Each run with the layers of the moment, and no wait in it: a cut or a fold is before or after it.
      for (const run of this.#view.unlessZero(at, pieceEnd)) this.#layers.top?.zero(run.from, run.to)
      await afterIo()
    }
  }

  /** See `seek.ts`. */
  async nextData (offset: number): Promise<number | undefined> {
    return await this.#untilDeadline(async (signal) => await nextData(this, offset, signal))
  }

  async nextHole (offset: number): Promise<number> {
    return await this.#untilDeadline(async (signal) => await nextHole(this, offset, signal))
  }

  async #fetch (from: number, to: number, signal: AbortSignal): Promise<void> {
    await this.#components.chunkFiles.ensure(this.#layers.table, this.#view.missingChunks(from, to), signal)
  }

  /** After what is waited for: it goes to the daemon as a request of its own. */
  async #fetchAhead (from: number, to: number): Promise<void> {
    const { table } = this.#layers
    const { chunkSize } = table.ref
    const ahead = this.#readAhead.missed(Math.floor(from / chunkSize), Math.ceil(to / chunkSize), table.slots)
    if (ahead.length === 0) return
    await afterIo()
    // Whoever reads it asks again, and hears what is wrong.
    await this.#components.chunkFiles.ensure(table, ahead, this.#components.signal).catch(() => {})
  }

  async #untilDeadline<T> (work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const { clock, missDeadlineMs, signal } = this.#components
    return await withDeadline(clock, missDeadlineMs, [signal], work)
  }
}
