/**
 * `ChunkStore` on a disk. One class for storage peers (durable, packed) and compute caches (not durable: no syncs, no leases; unpacked).
 *
 *     <root>/chunks/<shard>/<chunk id>   what is stored; mtime + LEASE_MS is the end of its lease
 *     <root>/tmp/                        being written; emptied at open
 *     <root>/quarantine/<chunk id>       did not match its name when it was read
 *
 * A durable put: write aside → fdatasync → rename → fsync of the shard's folder → answer. So a file in a shard is whole,
 * whenever the power goes. State it owns: the counts of `usage`, and which puts are under way (a second put of the same id
 * waits for the first). Not for: deciding what may be deleted, or where else a chunk is.
 */
import { dirname, join } from 'node:path'
import { type ChunkId, isZero } from '../protocols/cid.ts'
import { errorCodeOf, P2pvmError } from '../protocols/errors.ts'
import type { Clock, Counters, Disk, Log } from '../protocols/seams.ts'
import { CHUNK_ID_PATTERN, chunkPath, SHARDS, shardPath } from './chunk-path.ts'
import type { ChunkStore } from './chunk-store.ts'
import { DirectorySync } from './directory-sync.ts'
import { unpack } from './packed-chunk.ts'
import { mapAtMost } from './semaphore.ts'

export interface DiskChunkStoreComponents {
  readonly disk: Disk
  readonly clock: Clock
  readonly log: Log
  readonly counters: Counters
}

export interface DiskChunkStoreInit {
  /** Absolute; created when it is not there. */
  readonly root: string
  /** A storage peer's: synced, leased, and kept in the form in which it came. A cache's is always the chunk's bytes: mounts open the files. */
  readonly durable: boolean
  /** A put that would leave less than this free on the file system is refused with ERR_DISK_FULL. */
  readonly freeFloorBytes: number
  /** Told of each chunk that is here already, before `open` resolves. */
  readonly onFound?: (chunk: FoundChunk) => void
}

export interface FoundChunk {
  readonly id: ChunkId
  readonly sizeBytes: number
  readonly mtimeMs: number
}

/** `have` renews a lease that has lost more than this: at most one inode is written per chunk and hour. */
export const LEASE_GRANULARITY_MS = 60 * 60 * 1000

/** statfs costs a round through the thread pool: asked once per second, and reckoned down in between. */
const FREE_SAMPLE_MS = 1000
const SCANS_AT_ONCE = 16

export class DiskChunkStore implements ChunkStore {
  readonly #components: DiskChunkStoreComponents
  readonly #init: DiskChunkStoreInit
  readonly #directorySync: DirectorySync
  readonly #puts = new Map<ChunkId, Promise<boolean>>()
  readonly #usage = { chunks: 0, bytes: 0 }
  #free = { bytes: 0, sampledAtMs: -Infinity }
  #asideNext = 0

  /** Makes the folders, removes what an earlier life left in tmp/, and counts what is there. */
  static async open (components: DiskChunkStoreComponents, init: DiskChunkStoreInit): Promise<DiskChunkStore> {
    const store = new DiskChunkStore(components, init)
    await store.#makeFolders()
    await store.#removeLeftovers()
    await store.#scan()
    return store
  }

  private constructor (components: DiskChunkStoreComponents, init: DiskChunkStoreInit) {
    this.#components = components
    this.#init = init
    this.#directorySync = new DirectorySync(components.disk)
  }

  pathOf (id: ChunkId): string {
    return chunkPath(this.#init.root, id)
  }

  usage (): { chunks: number, bytes: number } {
    return { ...this.#usage }
  }

  async put (id: ChunkId, chunk: Uint8Array): Promise<boolean> {
    const bytes = unpack(id, chunk)
    if (bytes === undefined) throw new P2pvmError('ERR_CORRUPT', `bytes do not match the chunk ${id}`, { cid: id })
    return await this.#putOnce(id, bytes, async () => {
      // Rare (writers ask `have` first), so there is time to read it: good bytes in hand heal a copy that has rotted.
      if (await this.#isIntact(id) && await this.#renewLease(id)) return false
      await this.#write(id, this.#init.durable ? chunk : bytes)
      return true
    })
  }

  /**
   * A put of bytes that the caller has just checked against the name, and that are not here as far as he knows: neither they nor the
   * file are looked at, and a file that is here all the same is replaced.
   */
  async putNew (id: ChunkId, bytes: Uint8Array): Promise<boolean> {
    return await this.#putOnce(id, bytes, async () => {
      await this.#write(id, bytes)
      return true
    })
  }

  async #putOnce (id: ChunkId, bytes: Uint8Array, work: () => Promise<boolean>): Promise<boolean> {
    if (isZero(bytes)) throw new P2pvmError('ERR_USAGE', 'a chunk of zeros is a hole and is not stored', { cid: id })
    const running = this.#puts.get(id)
    if (running !== undefined) {
      await running
      return false
    }
    const put = work()
    this.#puts.set(id, put)
    try {
      return await put
    } finally {
      this.#puts.delete(id)
    }
  }

  async get (id: ChunkId): Promise<Uint8Array | undefined> {
    return (await this.#read(id))?.bytes
  }

  async getPacked (id: ChunkId): Promise<Uint8Array | undefined> {
    return (await this.#read(id))?.kept
  }

  async #read (id: ChunkId): Promise<{ kept: Uint8Array, bytes: Uint8Array } | undefined> {
    const path = this.pathOf(id)
    let kept
    try {
      kept = await this.#components.disk.read(path)
    } catch (error) {
      if (codeOf(error) === 'ENOENT') return undefined
      // A sector that cannot be read: the copy is as lost as one that reads wrong.
      if (codeOf(error) !== 'EIO') throw diskError(error)
    }
    const bytes = kept === undefined ? undefined : unpack(id, kept)
    if (kept !== undefined && bytes !== undefined) return { kept, bytes }
    await this.#quarantine(id)
    throw new P2pvmError('ERR_CORRUPT', `the stored chunk ${id} does not match its name; moved to quarantine`, { cid: id, path })
  }

  async have (ids: readonly ChunkId[]): Promise<boolean[]> {
    return await mapAtMost(SCANS_AT_ONCE, ids, async (id) => {
      // Also one that is being written counts, when it is durable: it spares the asker from sending it once more.
      const put = this.#puts.get(id)
      if (put !== undefined) return await put.then(() => true, () => false)
      return await this.#renewLease(id)
    })
  }

  async delete (id: ChunkId): Promise<void> {
    await this.#puts.get(id)?.catch(() => {})
    const path = this.pathOf(id)
    const found = await this.#stat(path)
    if (found === undefined) return
    try {
      await this.#components.disk.unlink(path)
    } catch (error) {
      if (codeOf(error) === 'ENOENT') return
      throw diskError(error)
    }
    this.#count(-1, -found.sizeBytes)
    this.#free.sampledAtMs = -Infinity // there may be room now: the next put asks
  }

  async #write (id: ChunkId, chunk: Uint8Array): Promise<void> {
    await this.#assertRoom(chunk.length)
    const { disk } = this.#components
    const path = this.pathOf(id)
    const aside = join(this.#init.root, 'tmp', `${id}.${this.#asideNext++}`)
    try {
      await this.#writeAside(aside, chunk)
      await disk.rename(aside, path)
    } catch (error) {
      await this.#discard(aside)
      throw diskError(error)
    }
    try {
      if (this.#init.durable) await this.#directorySync.sync(dirname(path))
    } catch (error) {
      // Nobody may be told later, by `have`, that it is here: a failed sync is not tried again by the kernel.
      await this.#discard(path)
      throw diskError(error)
    }
    this.#count(1, chunk.length)
    this.#free.bytes -= chunk.length
  }

  async #writeAside (path: string, bytes: Uint8Array): Promise<void> {
    const file = await this.#components.disk.create(path)
    try {
      await file.write(bytes, 0)
      if (this.#init.durable) await file.datasync()
    } finally {
      await file.close()
    }
  }

  async #isIntact (id: ChunkId): Promise<boolean> {
    try {
      return await this.get(id) !== undefined
    } catch (error) {
      if (errorCodeOf(error) === 'ERR_CORRUPT') return false
      throw error
    }
  }

  /** False when the chunk is not here. */
  async #renewLease (id: ChunkId): Promise<boolean> {
    const { clock, disk } = this.#components
    const path = this.pathOf(id)
    const found = await this.#stat(path)
    if (found === undefined) return false
    if (!this.#init.durable || clock.now() - found.mtimeMs <= LEASE_GRANULARITY_MS) return true
    try {
      await disk.touch(path, clock.now())
      return true
    } catch (error) {
      if (codeOf(error) === 'ENOENT') return false
      throw diskError(error)
    }
  }

  async #assertRoom (bytes: number): Promise<void> {
    const { clock, disk } = this.#components
    if (clock.monotonic() - this.#free.sampledAtMs >= FREE_SAMPLE_MS) {
      this.#free = { bytes: await disk.freeBytes(this.#init.root), sampledAtMs: clock.monotonic() }
    }
    if (this.#free.bytes - bytes >= this.#init.freeFloorBytes) return
    throw new P2pvmError('ERR_DISK_FULL', `${Math.max(0, this.#free.bytes)} bytes are free at ${this.#init.root}, and ${this.#init.freeFloorBytes} are to stay free`)
  }

  async #quarantine (id: ChunkId): Promise<void> {
    const { disk, log, counters } = this.#components
    const path = this.pathOf(id)
    const found = await this.#stat(path)
    try {
      await disk.rename(path, join(this.#init.root, 'quarantine', id))
    } catch (error) {
      // Another reader of the same chunk was faster.
      if (codeOf(error) === 'ENOENT') return
      throw diskError(error)
    }
    this.#count(-1, -(found?.sizeBytes ?? 0))
    counters.add('chunk_quarantined_total')
    log.error('a stored chunk does not match its name: moved to quarantine', { chunk: id, path })
  }

  async #makeFolders (): Promise<void> {
    const { disk } = this.#components
    const { root, durable } = this.#init
    const shards = SHARDS.map((shard) => shardPath(root, shard))
    for (const folder of [...shards, join(root, 'tmp'), join(root, 'quarantine')]) await disk.mkdir(folder)
    if (!durable) return
    // The shards too: a process that was killed between rename and fsync left a name that `have` sees and a power cut takes.
    for (const folder of [...shards, join(root, 'chunks'), root, dirname(root)]) await disk.syncDirectory(folder)
  }

  async #removeLeftovers (): Promise<void> {
    const tmp = join(this.#init.root, 'tmp')
    for (const name of await this.#components.disk.readdir(tmp)) await this.#components.disk.unlink(join(tmp, name))
  }

  async #scan (): Promise<void> {
    for (const shard of SHARDS) {
      const ids = (await this.#components.disk.readdir(shardPath(this.#init.root, shard))).filter((name) => CHUNK_ID_PATTERN.test(name))
      await mapAtMost(SCANS_AT_ONCE, ids, async (id) => {
        const found = await this.#stat(this.pathOf(id))
        if (found === undefined) return
        this.#count(1, found.sizeBytes)
        this.#init.onFound?.({ id, ...found })
      })
    }
  }

  async #stat (path: string): Promise<{ sizeBytes: number, mtimeMs: number } | undefined> {
    try {
      return await this.#components.disk.stat(path)
    } catch (error) {
      if (codeOf(error) === 'ENOENT') return undefined
      throw diskError(error)
    }
  }

  /** After a failure: the first error is the one to tell. */
  async #discard (path: string): Promise<void> {
    try {
      await this.#components.disk.unlink(path)
    } catch (error) {
      if (codeOf(error) !== 'ENOENT') this.#components.log.warn('a file of a failed put stays behind', { path, error })
    }
  }

  #count (chunks: number, bytes: number): void {
    this.#usage.chunks += chunks
    this.#usage.bytes += bytes
  }
}

function codeOf (error: unknown): unknown {
  return (error as { code?: unknown } | null)?.code
}

function diskError (error: unknown): Error {
  if (error instanceof P2pvmError) return error
  const code = errorCodeOf(error)
  return new P2pvmError(code, code === 'ERR_DISK_FULL' ? 'the disk of the chunk store is full' : `the chunk store's disk failed: ${String((error as Error).message)}`, {}, error)
}
