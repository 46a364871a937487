/**
 * The cache files that this mount has open. A chunk's first use after it was opened goes through here: the file is fetched
 * by the daemon when it is not there, checked against its name unless the daemon has just done so, and its descriptor is published
 * in the slots of every table that asks for it. From then on workers read it alone.
 *
 * The daemon may unlink a file at any time, to make room. One that is open here is read on, and given back when nobody has
 * read it for a while; one that is not is a miss. That a file is in use is said by its mtime (`USE_GRANULARITY_MS`): when it
 * is opened, and for as long as workers read it by a walk over all that are open.
 *
 * State it owns: the descriptors, at most `openMax` of them; the least recently used go, workers being past them first.
 * Not for: choosing what is evicted, fetching (both the daemon's).
 */
import { closeSync, fstatSync, futimesSync, openSync, read, type Stats, unlinkSync } from 'node:fs'
import { promisify } from 'node:util'
import { chunkPath } from '../dht/chunk-path.ts'
import { USE_GRANULARITY_MS } from '../dht/chunk-store.ts'
import { withDeadline } from '../protocols/abort.ts'
import { CHUNK_BYTES_MAX, type ChunkId, matches } from '../protocols/cid.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { Clock, Log } from '../protocols/seams.ts'
import { SLOT_UNKNOWN } from './file-view.ts'
import { isNodeError } from './files.ts'
import { Flights, patiently } from './patience.ts'
import type { MirrorSource } from './source.ts'
import type { VersionTable } from './version-table.ts'

const readAsync = promisify(read)

export interface ChunkFilesComponents {
  readonly source: Pick<MirrorSource, 'fetch'>
  readonly clock: Clock
  readonly log: Log
  /** Resolves when no worker can be reading from a slot that was set to unknown before. */
  readonly quiesce: () => Promise<void>
  /** Aborts when the mount ends. */
  readonly signal: AbortSignal
}

export interface ChunkFilesInit {
  readonly folder: string
  readonly openMax: number
  readonly missDeadlineMs: number
}

interface OpenChunk {
  readonly fd: number
  readonly users: Array<{ readonly table: VersionTable, readonly index: number }>
}

/** Chunks missed in this turn of the event loop, for one request. */
interface Wanted {
  readonly ids: ChunkId[]
  bytes: number
  /** Those that have been verified as they were written. */
  readonly fetched: Promise<ReadonlySet<ChunkId>>
}

/** A quiesce closes this many descriptors at least, so that its cost is shared. */
const CLOSE_BATCH = 64
/** Looks at one chunk's file in a row: bad so often, the disk is broken, and we say so; evicted so often, we wait before we ask again. */
const ATTEMPTS_MAX = 4
/**
 * Asked for in one request to the daemon, in bytes of chunks: as much as the largest request of the kernel covers. The answer comes when all
 * of them are here; of what is fetched ahead the reader is to have the first ones while the last ones are still on their way.
 */
const FETCH_BYTES_MAX = 1024 * 1024
/** As many as the thread pool reads at once. */
const BUFFERS_MAX = 4
/** A walk over all open files rests after so many, for requests that wait for the main thread. */
const WALK_BATCH = 64
const WALK_REST_MS = 1

export class ChunkFiles {
  readonly #components: ChunkFilesComponents
  readonly #init: ChunkFilesInit
  readonly #open = new Map<ChunkId, OpenChunk>()
  readonly #flights = new Flights<ChunkId>()
  /** To check files in: new ones for each would make the garbage collector look at the whole heap every few chunks. */
  readonly #buffers: Buffer[] = []
  #wanted: Wanted | undefined
  #making: Promise<void> | undefined
  readonly counters = { opened: 0, fetched: 0, corrupt: 0, closed: 0 }

  constructor (components: ChunkFilesComponents, init: ChunkFilesInit) {
    this.#components = components
    this.#init = init
  }

  /** Returns when the slots of these chunks are set. Whatever cannot be had fails the whole call. */
  async ensure (table: VersionTable, indices: readonly number[], signal: AbortSignal): Promise<void> {
    const results = await Promise.allSettled(indices.map(async (index) => { await this.#ensureOne(table, index, signal) }))
    for (const result of results) if (result.status === 'rejected') throw result.reason
  }

  async #ensureOne (table: VersionTable, index: number, signal: AbortSignal): Promise<void> {
    const { clock, signal: ending } = this.#components
    const { missDeadlineMs } = this.#init
    const id = await table.idOf(index, signal)
    if (id === null) return // a hole, and its slot says so
    while (!this.#publish(id, table, index)) {
      await this.#flights.join(id, signal, async () => {
        await withDeadline(clock, missDeadlineMs, [ending], async (own) => {
          await patiently(clock, own, async () => { await this.#obtain(id, table.ref.chunkSize, own) })
        })
      })
    }
  }

  #publish (id: ChunkId, table: VersionTable, index: number): boolean {
    const chunk = this.#open.get(id)
    if (chunk === undefined) return false
    if (Atomics.load(table.slots, index) === SLOT_UNKNOWN) chunk.users.push({ table, index })
    Atomics.store(table.slots, index, chunk.fd + 1)
    return true
  }

  /** Opens the chunk's file and checks it, fetching it when it is not there or bad. ERR_UNAVAILABLE when it is evicted faster than that. */
  async #obtain (id: ChunkId, sizeBytes: number, signal: AbortSignal): Promise<void> {
    let outcome: 'open' | 'absent' | 'corrupt' = 'absent'
    let isVerified = false
    for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
      if (this.#open.size >= this.#init.openMax) await this.#makeRoom()
      outcome = await this.#openFile(id, isVerified)
      if (outcome === 'open') return
      isVerified = await this.#fetch(id, sizeBytes, signal)
    }
    throw new P2pvmError(outcome === 'corrupt' ? 'ERR_CORRUPT' : 'ERR_UNAVAILABLE', `the cache file of ${id} is ${outcome} however often it is fetched`, { cid: id })
  }

  async #openFile (id: ChunkId, isVerified: boolean): Promise<'open' | 'absent' | 'corrupt'> {
    const path = chunkPath(this.#init.folder, id)
    let fd
    try {
      fd = openSync(path, 'r')
    } catch (error) {
      if (isNodeError(error, 'ENOENT')) return 'absent'
      throw error
    }
    const found = fstatSync(fd)
    if (isVerified || await this.#matches(fd, found.size, id)) {
      this.#noteUse(fd, found)
      this.#open.set(id, { fd, users: [] })
      this.counters.opened++
      return 'open'
    }
    closeSync(fd)
    this.counters.corrupt++
    this.#components.log.warn('a cache file does not match its name: dropped, and fetched again', { cid: id })
    try {
      unlinkSync(path)
    } catch (error) {
      if (!isNodeError(error, 'ENOENT')) throw error
    }
    return 'corrupt'
  }

  async #matches (fd: number, size: number, id: ChunkId): Promise<boolean> {
    if (size > CHUNK_BYTES_MAX) return false
    const kept = this.#buffers.pop()
    const buffer = kept !== undefined && kept.length >= size ? kept : Buffer.allocUnsafeSlow(size)
    try {
      return await fileMatches(fd, buffer.subarray(0, size), id)
    } finally {
      if (this.#buffers.length < BUFFERS_MAX) this.#buffers.push(buffer)
    }
  }

  /**
   * Chunks that are missed in one turn of the event loop are one request to the daemon, or a few when they are many. True: the file was
   * written for it, of bytes that were verified.
   */
  async #fetch (id: ChunkId, sizeBytes: number, signal: AbortSignal): Promise<boolean> {
    let wanted = this.#wanted
    if (wanted === undefined || wanted.bytes + sizeBytes > FETCH_BYTES_MAX) {
      const ids: ChunkId[] = []
      const fetched = Promise.resolve().then(async () => {
        this.#wanted = undefined
        const verified = await this.#components.source.fetch(ids, signal)
        this.counters.fetched += ids.length
        return new Set(verified)
      })
      this.#wanted = wanted = { ids, bytes: 0, fetched }
    }
    wanted.ids.push(id)
    wanted.bytes += sizeBytes
    return (await wanted.fetched).has(id)
  }

  async #makeRoom (): Promise<void> {
    this.#making ??= this.#evict().finally(() => { this.#making = undefined })
    await this.#making
  }

  /** Second chance: in order of opening, whoever was read since the last time gets another round. */
  async #evict (): Promise<void> {
    const wanted = Math.max(CLOSE_BATCH, this.#open.size - this.#init.openMax + CLOSE_BATCH)
    const victims: number[] = []
    for (const [id, chunk] of this.#open) { // one that is put back comes by once more
      if (victims.length >= wanted) break
      this.#open.delete(id)
      if (chunk.users.some(({ table, index }) => table.used[index] === 1)) {
        for (const { table, index } of chunk.users) table.used[index] = 0
        this.#open.set(id, chunk)
      } else victims.push(this.#withdraw(chunk))
    }
    await this.#close(victims)
  }

  /** Until the mount ends: what is read from now on is known to the daemon as used, and evicted files that nobody reads are closed. */
  async keepNotingUses (): Promise<void> {
    const { clock, log, signal } = this.#components
    while (!signal.aborted) {
      try {
        await clock.sleep(USE_GRANULARITY_MS, signal)
        await this.#noteUses(signal)
      } catch (error) {
        if (!signal.aborted) log.warn('which chunks are in use could not be noted', { error })
      }
    }
  }

  async #noteUses (signal: AbortSignal): Promise<void> {
    const ids = [...this.#open.keys()]
    for (let at = 0; at < ids.length; at += WALK_BATCH) {
      await this.#close(ids.slice(at, at + WALK_BATCH).flatMap((id) => this.#noteUseOf(id)))
      await this.#components.clock.sleep(WALK_REST_MS, signal)
    }
  }

  /** The descriptor, when it is to be closed. In one go: across a wait it could become another file's. */
  #noteUseOf (id: ChunkId): number[] {
    const chunk = this.#open.get(id)
    if (chunk === undefined) return []
    const used = chunk.users.some(({ table, index }) => table.used[index] === 1)
    const found = fstatSync(chunk.fd)
    if (!used && found.nlink > 0) return []
    this.#open.delete(id)
    if (!used) return [this.#withdraw(chunk)]
    // To the end: who comes to close some finds no other trace of this use.
    for (const { table, index } of chunk.users) table.used[index] = 0
    this.#open.set(id, chunk)
    this.#noteUse(chunk.fd, found)
    return []
  }

  #noteUse (fd: number, { mtimeMs }: Stats): void {
    const nowMs = this.#components.clock.now()
    if (nowMs - mtimeMs < USE_GRANULARITY_MS) return
    try {
      futimesSync(fd, nowMs / 1000, nowMs / 1000)
    } catch {
      // Another user's file, or a disk that is read-only: it counts as used when it was fetched, and may go a little early.
    }
  }

  /** The tables are used no more: their slots are forgotten, and descriptors that nobody else uses are closed. */
  async release (tables: ReadonlySet<VersionTable>): Promise<void> {
    const victims: number[] = []
    for (const [id, chunk] of this.#open) {
      const users = chunk.users.filter(({ table }) => !tables.has(table))
      if (users.length === chunk.users.length && users.length > 0) continue
      this.#open.delete(id)
      if (users.length === 0) victims.push(this.#withdraw(chunk))
      else this.#open.set(id, { fd: chunk.fd, users })
    }
    await this.#close(victims)
  }

  #withdraw (chunk: OpenChunk): number {
    for (const { table, index } of chunk.users) Atomics.store(table.slots, index, SLOT_UNKNOWN)
    return chunk.fd
  }

  async #close (fds: readonly number[]): Promise<void> {
    if (fds.length === 0) return
    await this.#components.quiesce()
    for (const fd of fds) closeSync(fd)
    this.counters.closed += fds.length
  }
}

/** `bytes`: as large as the file, filled with it. */
async function fileMatches (fd: number, bytes: Buffer, id: ChunkId): Promise<boolean> {
  for (let done = 0; done < bytes.length;) {
    const { bytesRead } = await readAsync(fd, bytes, done, bytes.length - done, done)
    if (bytesRead === 0) return false
    done += bytesRead
  }
  return matches(id, bytes)
}
