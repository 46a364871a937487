/**
 * The chunks on one machine. One class (`disk-chunk-store.ts`) serves storage peers (durable) and compute caches (not):
 * a file per chunk in sharded folders, written aside and renamed, so that the mirror opens cached chunks by path, `unlink`
 * is eviction, and the kernel keeps a file alive for whoever has it open. Storage peers keep the packed form (`packed-chunk.ts`).
 */
import type { ChunkId } from '../protocols/cid.ts'

export interface ChunkStore {
  /**
   * Stores a chunk, packed or not, verified first; true when it was not there before. Durable stores return after fdatasync and
   * the directory's fsync, with the lease renewed (the file's mtime). ERR_CORRUPT when the bytes do not match, ERR_USAGE for
   * zeros, which are a hole, ERR_DISK_FULL.
   */
  put (id: ChunkId, chunk: Uint8Array): Promise<boolean>
  /** The bytes, hash checked; undefined when not here. A file that does not match is quarantined, counted, ERR_CORRUPT. */
  get (id: ChunkId): Promise<Uint8Array | undefined>
  /** As `get`, in the form in which it is kept. */
  getPacked (id: ChunkId): Promise<Uint8Array | undefined>
  /** Which of these are here; renews the lease of those, durably, before it answers. */
  have (ids: readonly ChunkId[]): Promise<boolean[]>
  delete (id: ChunkId): Promise<void>
  /** Where the chunk's file is, whether it exists or not. A pure function of the id. */
  pathOf (id: ChunkId): string
  usage (): { chunks: number, bytes: number }
}

/**
 * A store that may forget: each of its files is unlinked when the room is needed, least recently used first. Every put, get
 * and have of a chunk is a use of it.
 */
export interface ChunkCache extends ChunkStore {
  /** None of these is forgotten until the returned function has been called, also when the cache goes beyond its bound so. */
  hold (ids: readonly ChunkId[]): () => void
  /** As `put`, for a chunk's bytes that the caller has just checked against its name: they are not hashed a second time. */
  putChecked (id: ChunkId, bytes: Uint8Array): Promise<boolean>
  usage (): { chunks: number, bytes: number, bytesMax: number }
}

/**
 * The mtime of a cache's file is its last use, to within this: whoever uses it, the daemon or a mount, writes it when what is
 * there is older. So a restart and the other process know, and a read costs no write.
 */
export const USE_GRANULARITY_MS = 10 * 60 * 1000

/**
 * have and put renew a lease of this length, once it has lost an hour: of what either says is here 23 h are left at least, and collection can
 * never take what a writer counts on.
 */
export const LEASE_MS = 24 * 60 * 60 * 1000
