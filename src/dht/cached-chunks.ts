/**
 * `Chunks` with a cache on this machine: what was got once is a file that the mounts open by path, and that this peer
 * serves to others. Order of a get: cache, own durable store and fabric (both in the `Chunks` underneath), cache again.
 *
 * State it owns: the fetches under way. Not for: eviction (`evicting-cache.ts`); verifying what was in the cache already (a mount does so at first use).
 */
import { errorCodeOf } from '../protocols/errors.ts'
import type { ChunkId } from '../protocols/cid.ts'
import type { Counters, Log } from '../protocols/seams.ts'
import type { ChunkCache } from './chunk-store.ts'
import type { ChunkAudit, ChunkOptions, Chunks, PutOutcome } from './chunks.ts'
import { mapAtMost } from './semaphore.ts'
import { SingleFlight } from './single-flight.ts'

export interface CachedChunksComponents {
  readonly chunks: Chunks
  readonly cache: ChunkCache
  readonly log: Log
  readonly counters: Counters
}

interface Fetched {
  readonly bytes: Uint8Array
  /** Why it is not in the cache. */
  readonly notCached: unknown
}

/** Chunks of one call that are on their way at a time; the bytes are bounded by admission. */
const FETCHES_AT_ONCE = 64

export class CachedChunks implements Chunks {
  readonly #components: CachedChunksComponents
  readonly #fetches = new SingleFlight<Fetched>()

  constructor (components: CachedChunksComponents) {
    this.#components = components
  }

  async put (id: ChunkId, bytes: Uint8Array, options?: ChunkOptions): Promise<PutOutcome> {
    return await this.#components.chunks.put(id, bytes, options)
  }

  async audit (ids: readonly ChunkId[], options?: ChunkOptions): Promise<ChunkAudit[]> {
    return await this.#components.chunks.audit(ids, options)
  }

  /** As `Chunks.get`; a cache that cannot take it (a full disk) is no reason to withhold the bytes. */
  async get (id: ChunkId, options: ChunkOptions = {}): Promise<Uint8Array> {
    return await this.#fromCache(id) ?? (await this.#fetch(id, options)).bytes
  }

  /**
   * Resolves when each of them is a file of the cache: all at once, so that the cache goes beyond its bound when they are more than
   * fit. Gives those that were not: they have been verified and written for it. What is evicted after that is a miss of whoever comes
   * too late. As `Chunks.get`, and ERR_DISK_FULL.
   */
  async ensureCached (ids: readonly ChunkId[], options: ChunkOptions = {}): Promise<ChunkId[]> {
    const letGo = this.#components.cache.hold(ids)
    try {
      const there = await this.#components.cache.have(ids)
      const missing = [...new Set(ids.filter((_, index) => there[index] !== true))]
      await mapAtMost(FETCHES_AT_ONCE, missing, async (id) => {
        const { notCached } = await this.#fetch(id, options)
        if (notCached !== undefined) throw notCached
      })
      return missing
    } finally {
      letGo()
    }
  }

  async #fetch (id: ChunkId, { signal, ...options }: ChunkOptions): Promise<Fetched> {
    return await this.#fetches.run(id, async (allGone) => {
      const bytes = await this.#components.chunks.get(id, { ...options, signal: allGone })
      try {
        await this.#components.cache.putChecked(id, bytes)
        return { bytes, notCached: undefined }
      } catch (error) {
        this.#components.counters.add('cache_put_failures_total')
        this.#components.log.warn('a chunk could not be cached', { chunk: id, error })
        return { bytes, notCached: error }
      }
    }, signal)
  }

  /** A bad file is in quarantine when this returns, so that a good one can take its place. */
  async #fromCache (id: ChunkId): Promise<Uint8Array | undefined> {
    try {
      const bytes = await this.#components.cache.get(id)
      this.#components.counters.add(bytes === undefined ? 'cache_misses_total' : 'cache_hits_total')
      return bytes
    } catch (error) {
      if (errorCodeOf(error) !== 'ERR_CORRUPT') this.#components.log.warn('the chunk cache cannot be read', { chunk: id, error })
      this.#components.counters.add('cache_misses_total')
      return undefined
    }
  }
}
