/**
 * A compute peer's cache: a `ChunkStore` of bounded size. What was not used for longest is unlinked, in passes, when a put
 * would go beyond the bound, or when the store finds too little free on its file system. Mounts have files open all the
 * same: the kernel keeps those alive.
 *
 * Order of use: in memory, exact for what this process does. Mounts read files by themselves and say so in a file's mtime
 * (`USE_GRANULARITY_MS`): it is looked at when the file's turn has come, and a use that we did not know of puts it back to
 * the end. At a start the mtimes are the order.
 *
 * State it owns: per chunk its size and the mtime that we know (some 150 bytes: 150 MB for the million chunks of 256 GiB),
 * what is held, the pass under way. Not for: a storage peer's durable store, in which nothing may be forgotten.
 */
import type { ChunkId } from '../protocols/cid.ts'
import { errorCodeOf } from '../protocols/errors.ts'
import type { Clock, Counters, Disk, Log } from '../protocols/seams.ts'
import { type ChunkCache, USE_GRANULARITY_MS } from './chunk-store.ts'
import { DiskChunkStore, type FoundChunk } from './disk-chunk-store.ts'

export interface EvictingCacheComponents {
  readonly disk: Disk
  readonly clock: Clock
  readonly log: Log
  readonly counters: Counters
}

export interface EvictingCacheInit {
  /** Absolute; created when it is not there. */
  readonly root: string
  /** What chunk files may take. */
  readonly bytesMax: number
  /** As DiskChunkStoreInit. */
  readonly freeFloorBytes: number
}

interface Entry {
  readonly bytes: number
  /** The file's mtime as we know it: a later one is somebody else's use. Whole seconds, which V8 keeps without a box. */
  usedS: number
}

/** A pass leaves a twentieth free, so that it is worth its start; and no more than this, so that the puts behind it do not wait for long. */
const PASS_BYTES_MAX = 256 * 1024 * 1024
const PASS_SHARE = 1 / 20
const UNLINKS_AT_ONCE = 8
/** What was held beyond the bound and is let go was just handed to somebody: he has so long to open it. */
const HANDOVER_MS = 1000

export class EvictingCache implements ChunkCache {
  readonly #components: EvictingCacheComponents
  readonly #store: DiskChunkStore
  readonly #bytesMax: number
  /** A pass ends here. */
  readonly #bytesAfterPass: number
  /** In order of use, the latest last. */
  readonly #entries = new Map<ChunkId, Entry>()
  readonly #held = new Map<ChunkId, number>()
  /** Taken out of the order, and perhaps not off the disk yet. */
  readonly #leaving = new Map<ChunkId, Promise<unknown>>()
  #bytes = 0
  /** Puts under way, by chunk, and what they will take. */
  readonly #arrivals = new Map<ChunkId, number>()
  #arrivingBytes = 0
  #pass: Promise<boolean> | undefined
  #trim: Promise<void> | undefined

  /** As DiskChunkStore.open; what is beyond the bound is gone then. */
  static async open (components: EvictingCacheComponents, { bytesMax, ...init }: EvictingCacheInit): Promise<EvictingCache> {
    const found: FoundChunk[] = []
    const store = await DiskChunkStore.open(components, { ...init, durable: false, onFound: (chunk) => { found.push(chunk) } })
    const cache = new EvictingCache(components, store, bytesMax)
    found.sort((a, b) => a.mtimeMs - b.mtimeMs)
    for (const { id, sizeBytes, mtimeMs } of found) cache.#enter(id, { bytes: sizeBytes, usedS: secondsOf(mtimeMs) })
    await cache.#makeRoom()
    return cache
  }

  private constructor (components: EvictingCacheComponents, store: DiskChunkStore, bytesMax: number) {
    this.#components = components
    this.#store = store
    this.#bytesMax = bytesMax
    this.#bytesAfterPass = bytesMax - this.#passBytes
  }

  pathOf (id: ChunkId): string {
    return this.#store.pathOf(id)
  }

  usage (): { chunks: number, bytes: number, bytesMax: number } {
    return { chunks: this.#entries.size, bytes: this.#bytes, bytesMax: this.#bytesMax }
  }

  hold (ids: readonly ChunkId[]): () => void {
    for (const id of ids) addTo(this.#held, id, 1)
    return () => {
      for (const id of ids) addTo(this.#held, id, -1)
      if (this.#isOver()) this.#trimSoon()
    }
  }

  async put (id: ChunkId, chunk: Uint8Array): Promise<boolean> {
    return await this.#arriving(id, chunk.length, async () => {
      const isNew = await this.#putWherePossible(chunk.length, async () => await this.#store.put(id, chunk))
      await this.#use(id)
      return isNew
    })
  }

  async putChecked (id: ChunkId, bytes: Uint8Array): Promise<boolean> {
    // What is in the books may be gone, or bad: the store looks.
    if (this.#entries.has(id)) return await this.put(id, bytes)
    return await this.#arriving(id, bytes.length, async () => {
      const isNew = await this.#putWherePossible(bytes.length, async () => await this.#store.putNew(id, bytes))
      // Not before it was written: a later mtime would be somebody else's use.
      if (!this.#entries.has(id)) this.#enter(id, { bytes: bytes.length, usedS: secondsOf(this.#components.clock.now()) })
      return isNew
    })
  }

  /** There is room for it, and it is not evicted meanwhile. */
  async #arriving (id: ChunkId, sizeBytes: number, put: () => Promise<boolean>): Promise<boolean> {
    const letGo = this.hold([id])
    addTo(this.#arrivals, id, 1)
    if (this.#leaving.has(id)) await this.#leaving.get(id)
    const bytes = this.#entries.has(id) ? 0 : sizeBytes
    this.#arrivingBytes += bytes
    try {
      if (this.#isOver()) await this.#makeRoom()
      return await put()
    } finally {
      this.#arrivingBytes -= bytes
      addTo(this.#arrivals, id, -1)
      letGo()
    }
  }

  async get (id: ChunkId): Promise<Uint8Array | undefined> {
    return await this.#read(id, async () => await this.#store.get(id))
  }

  async getPacked (id: ChunkId): Promise<Uint8Array | undefined> {
    return await this.#read(id, async () => await this.#store.getPacked(id))
  }

  async have (ids: readonly ChunkId[]): Promise<boolean[]> {
    for (const id of ids) this.pathOf(id) // ERR_USAGE for what is no chunk id
    const letGo = this.hold(ids)
    try {
      if (this.#leaving.size > 0) for (const id of ids) await this.#leaving.get(id)
      // Whatever is here is in the books. What is in them is looked for: a mount unlinks a file that it finds bad.
      const listed = ids.filter((id) => this.#entries.has(id) || this.#arrivals.has(id))
      const found = await this.#store.have(listed)
      const there = new Set(listed.filter((_, index) => found[index] === true))
      for (const id of there) await this.#use(id)
      return ids.map((id) => there.has(id))
    } finally {
      letGo()
    }
  }

  async delete (id: ChunkId): Promise<void> {
    await this.#leaving.get(id)
    await this.#store.delete(id)
    this.#forget(id)
  }

  async #read (id: ChunkId, read: () => Promise<Uint8Array | undefined>): Promise<Uint8Array | undefined> {
    const letGo = this.hold([id])
    try {
      await this.#leaving.get(id)
      const bytes = await read()
      if (bytes !== undefined) await this.#use(id)
      return bytes
    } catch (error) {
      if (errorCodeOf(error) === 'ERR_CORRUPT') this.#forget(id) // it is in quarantine
      throw error
    } finally {
      letGo()
    }
  }

  /** Where the file system is too full, the cache gives way, a pass at a time, until it has nothing left to give. */
  async #putWherePossible (sizeBytes: number, put: () => Promise<boolean>): Promise<boolean> {
    for (;;) {
      try {
        return await put()
      } catch (error) {
        if (errorCodeOf(error) !== 'ERR_DISK_FULL') throw error
        const goal = this.#bytes - Math.max(this.#passBytes, sizeBytes)
        if (!await this.#evict(() => this.#bytes <= goal)) throw error
      }
    }
  }

  /** It is here: at the end of the order from now on. */
  async #use (id: ChunkId): Promise<void> {
    const { clock, disk, log } = this.#components
    const entry = this.#entries.get(id)
    if (entry === undefined) {
      await this.#learn(id)
      return
    }
    this.#entries.delete(id)
    this.#entries.set(id, entry)
    const nowMs = clock.now()
    if (nowMs - entry.usedS * 1000 < USE_GRANULARITY_MS) return
    entry.usedS = secondsOf(nowMs)
    try {
      await disk.setMtime(this.pathOf(id), nowMs)
    } catch (error) {
      // Whoever deleted it has said so. Else it is forgotten a little early after a restart.
      if (!isAbsent(error)) log.debug('the use of a cached chunk could not be noted', { chunk: id, error })
    }
  }

  /** What it takes is asked of the disk: it may have come packed. */
  async #learn (id: ChunkId): Promise<void> {
    const found = await this.#stat(id)
    if (found !== undefined && !this.#entries.has(id)) this.#enter(id, { bytes: found.sizeBytes, usedS: secondsOf(found.mtimeMs) })
  }

  #isOver (): boolean {
    return this.#bytes + this.#arrivingBytes > this.#bytesMax
  }

  get #passBytes (): number {
    return Math.min(PASS_BYTES_MAX, Math.ceil(this.#bytesMax * PASS_SHARE))
  }

  /** Returns also when what is left is all held: then the cache is beyond its bound by that. */
  async #makeRoom (): Promise<void> {
    while (this.#isOver() && await this.#evict(() => this.#bytes + this.#arrivingBytes <= this.#bytesAfterPass));
  }

  #trimSoon (): void {
    this.#trim ??= this.#components.clock.sleep(HANDOVER_MS)
      .then(async () => { await this.#makeRoom() })
      .finally(() => { this.#trim = undefined })
  }

  /** False when nothing was left to look at. One pass at a time: who comes while one runs waits for it, and looks again. */
  async #evict (enough: () => boolean): Promise<boolean> {
    this.#pass ??= this.#runPass(enough).finally(() => { this.#pass = undefined })
    return await this.#pass
  }

  async #runPass (enough: () => boolean): Promise<boolean> {
    let moved = false
    let failed = false
    const oldest = this.#entries.entries() // live: what is put back to the end comes by once more
    const lane = async (): Promise<void> => {
      while (!failed && !enough()) {
        const next = oldest.next()
        if (next.done === true) return
        const [id, entry] = next.value
        if (this.#held.has(id)) continue
        // Out of the books before the first wait: nobody counts it twice, and whoever asks for it now waits until it is gone.
        this.#forget(id)
        const leaving = this.#unlink(id, entry)
        this.#leaving.set(id, leaving)
        if (await leaving) moved = true
        else failed = true
        this.#leaving.delete(id)
      }
    }
    await Promise.all(Array.from({ length: UNLINKS_AT_ONCE }, lane))
    return moved
  }

  /** False when the disk refuses. A use that we did not know of puts the chunk back, once. */
  async #unlink (id: ChunkId, entry: Entry): Promise<boolean> {
    const { counters, log } = this.#components
    try {
      const found = await this.#stat(id)
      // A mount that finds a file bad unlinks it.
      if (found === undefined) return true
      const usedS = secondsOf(found.mtimeMs)
      if (usedS > entry.usedS) {
        this.#enter(id, { bytes: found.sizeBytes, usedS })
        return true
      }
      await this.#store.delete(id)
    } catch (error) {
      log.warn('a chunk could not be evicted from the cache', { chunk: id, error })
      this.#enter(id, entry)
      return false
    }
    counters.add('cache_evictions_total')
    counters.add('cache_evicted_bytes_total', entry.bytes)
    return true
  }

  async #stat (id: ChunkId): Promise<{ sizeBytes: number, mtimeMs: number } | undefined> {
    try {
      return await this.#components.disk.stat(this.pathOf(id))
    } catch (error) {
      if (isAbsent(error)) return undefined
      throw error
    }
  }

  #enter (id: ChunkId, entry: Entry): void {
    this.#entries.set(id, entry)
    this.#bytes += entry.bytes
  }

  #forget (id: ChunkId): void {
    const entry = this.#entries.get(id)
    if (entry === undefined) return
    this.#entries.delete(id)
    this.#bytes -= entry.bytes
  }
}

/** A count that has come to 0 is out of the map. */
function addTo (counts: Map<ChunkId, number>, id: ChunkId, amount: number): void {
  const count = (counts.get(id) ?? 0) + amount
  if (count > 0) counts.set(id, count)
  else counts.delete(id)
}

function secondsOf (ms: number): number {
  return Math.floor(ms / 1000)
}

function isAbsent (error: unknown): boolean {
  return (error as { code?: unknown } | null)?.code === 'ENOENT'
}
