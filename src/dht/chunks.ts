/**
 * Chunks on the fabric, as versioning and mirror use them: `replicated-chunks.ts` implements this over placement,
 * membership and the chunk protocol.
 */
import type { ChunkId } from '../protocols/cid.ts'
import type { PeerId } from '../protocols/transport.ts'

/** A read that a machine waits for, then commit, then prefetch, then serving others. */
export type Priority = 'demand' | 'commit' | 'prefetch'

export interface ChunkOptions {
  readonly signal?: AbortSignal | undefined
  readonly priority?: Priority
}

export interface PutOutcome {
  /** No replica that was asked had it before. */
  readonly isNew: boolean
  /** What it takes on the disk of one replica; 0 when it was there before. */
  readonly storedBytes: number
  /** Replicas that had it on disk when W was reached. */
  readonly replicas: number
  /** Resolves (never rejects) when the put has gone on to all R, or has given up on some. */
  readonly settled: Promise<{ replicas: number, wanted: number, sentBytes: number }>
}

export interface Chunks {
  /** Acknowledged when W of R replicas have it on disk. ERR_UNAVAILABLE or ERR_DISK_FULL when W cannot be reached. */
  put (id: ChunkId, bytes: Uint8Array, options?: ChunkOptions): Promise<PutOutcome>
  /**
   * Verified bytes. Tries R in placement order, hedges a slow one, then the rest of the closest. Concurrent gets of one
   * chunk are one fetch. ERR_MISSING when all answered that they have it not, ERR_CORRUPT when the only copies are bad,
   * ERR_UNAVAILABLE when somebody did not answer.
   */
  get (id: ChunkId, options?: ChunkOptions): Promise<Uint8Array>
  /** For `p2pvm verify`: each replica in the placement reads its copy and checks the hash. Order as `ids`. */
  audit (ids: readonly ChunkId[], options?: ChunkOptions): Promise<ChunkAudit[]>
}

export interface ChunkAudit {
  readonly found: readonly PeerId[]
  readonly corrupt: readonly PeerId[]
  readonly unreachable: readonly PeerId[]
  readonly wanted: number
}
