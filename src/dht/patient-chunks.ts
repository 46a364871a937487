/**
 * `Chunks` for which a fabric that was away for a moment is a pause, not a failure: what nobody answered is asked again, from
 * the first candidate, until the deadline. A network that is back after some seconds, or storage peers that were starved for
 * as long, then fail no import and no machine's read. State it owns: none. Not for: what somebody did answer (missing,
 * corrupt, full).
 */
import type { ChunkId } from '../protocols/cid.ts'
import { untilAvailable } from '../protocols/retry.ts'
import type { Clock, Random } from '../protocols/seams.ts'
import type { ChunkAudit, ChunkOptions, Chunks, PutOutcome } from './chunks.ts'

export interface PatientChunksComponents {
  readonly chunks: Chunks
  readonly clock: Clock
  readonly random: Random
}

/** A machine's read fails after it (EIO). */
const GET_DEADLINE_MS = 30_000
/** Nobody waits for a single one: an import of hours is worth a minute. */
const PUT_DEADLINE_MS = 60_000

export class PatientChunks implements Chunks {
  readonly #components: PatientChunksComponents

  constructor (components: PatientChunksComponents) {
    this.#components = components
  }

  /** What an attempt has stored before it failed is there for the next, which sends and counts it no more. */
  async put (id: ChunkId, bytes: Uint8Array, options: ChunkOptions = {}): Promise<PutOutcome> {
    return await this.#patiently(PUT_DEADLINE_MS, options, async (own) => await this.#components.chunks.put(id, bytes, own))
  }

  async get (id: ChunkId, options: ChunkOptions = {}): Promise<Uint8Array> {
    return await this.#patiently(GET_DEADLINE_MS, options, async (own) => await this.#components.chunks.get(id, own))
  }

  /** Not again: that somebody does not answer is what it is asked for. */
  async audit (ids: readonly ChunkId[], options?: ChunkOptions): Promise<ChunkAudit[]> {
    return await this.#components.chunks.audit(ids, options)
  }

  async #patiently<T> (deadlineMs: number, options: ChunkOptions, attempt: (own: ChunkOptions) => Promise<T>): Promise<T> {
    return await untilAvailable(async (signal) => await attempt({ ...options, signal }), { deadlineMs, signal: options.signal }, this.#components)
  }
}
