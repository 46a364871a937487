/**
 * Chunks on their way to their replicas, all in parallel within a bound on bytes: what an import and a streamed WRITE share.
 * Not for: which chunk of a blob it is, which the caller keeps.
 */
import type { Chunks } from '../dht/chunks.ts'
import { type ChunkId, chunkIdOf, isZero } from '../protocols/cid.ts'
import { P2pvmError } from '../protocols/errors.ts'

/** Enough to keep some ten peers busy over a 256 KiB chunk's round trip and its fdatasync; bounds the memory of an import. */
const IN_FLIGHT_BYTES_MAX = 8 * 1024 * 1024

export interface UploadTotals {
  readonly newChunks: number
  readonly storedBytes: number // of new chunks as they are kept, packed, counted once
  readonly sentBytes: number // chunk bytes written to sockets, all replicas
  readonly replicasWanted: number
  /** Chunks that W replicas hold but not all R, because peers were down or full. */
  readonly degradedChunks: number
}

export class ChunkUpload {
  readonly #chunks: Chunks
  readonly #pending = new Set<Promise<void>>()
  readonly #settling = new Set<Promise<void>>()
  readonly #seen = new Set<ChunkId>()
  readonly #abort = new AbortController()
  readonly #signal: AbortSignal
  #pendingBytes = 0
  #failure: unknown
  #newChunks = 0
  #alreadyThere = 0
  #storedBytes = 0
  #sentBytes = 0
  #replicasWanted = 0
  #degradedChunks = 0

  constructor (chunks: Chunks, signal: AbortSignal | undefined) {
    this.#chunks = chunks
    this.#signal = signal === undefined ? this.#abort.signal : AbortSignal.any([this.#abort.signal, signal])
  }

  /** Its id, null for zeros. Returns when there is room for more; `bytes` stay as they are until `flush`. As Chunks.put, also of earlier ones. */
  async add (bytes: Uint8Array): Promise<ChunkId | null> {
    if (isZero(bytes)) return null
    const id = chunkIdOf(bytes)
    if (this.#seen.has(id)) {
      this.#alreadyThere += 1
      return id
    }
    this.#seen.add(id)
    while (this.#pendingBytes > 0 && this.#pendingBytes + bytes.length > IN_FLIGHT_BYTES_MAX) await Promise.race(this.#pending)
    this.#throwFailure()
    this.#pendingBytes += bytes.length
    const put = this.#put(id, bytes).catch((error: unknown) => { this.#failure ??= error }).finally(() => {
      this.#pendingBytes -= bytes.length
      this.#pending.delete(put)
    })
    this.#pending.add(put)
    return id
  }

  async #put (id: ChunkId, bytes: Uint8Array): Promise<void> {
    const outcome = await this.#chunks.put(id, bytes, { signal: this.#signal, priority: 'commit' })
    if (outcome.isNew) {
      this.#newChunks += 1
      this.#storedBytes += outcome.storedBytes
    } else {
      this.#alreadyThere += 1
    }
    const settled = outcome.settled.then((last) => {
      this.#sentBytes += last.sentBytes
      this.#replicasWanted = Math.max(this.#replicasWanted, last.wanted)
      if (last.replicas < last.wanted) this.#degradedChunks += 1
      this.#settling.delete(settled)
    })
    this.#settling.add(settled)
  }

  /** All chunks are on W replicas. */
  async flush (): Promise<void> {
    await Promise.all(this.#pending)
    this.#throwFailure()
  }

  /** Those that go on to R replicas have got there, or given up on some. After `flush`. */
  async settle (): Promise<void> {
    await Promise.all(this.#settling)
  }

  /** Gives up what is under way, and returns when it has ended. */
  async abandon (): Promise<void> {
    this.#abort.abort(new P2pvmError('ERR_ABORTED', 'the upload was given up'))
    await Promise.all(this.#pending)
  }

  /** Chunks that need not be stored: somebody has them, or they came before. */
  get alreadyThere (): number {
    return this.#alreadyThere
  }

  totals (): UploadTotals {
    return {
      newChunks: this.#newChunks,
      storedBytes: this.#storedBytes,
      sentBytes: this.#sentBytes,
      replicasWanted: this.#replicasWanted,
      degradedChunks: this.#degradedChunks
    }
  }

  #throwFailure (): void {
    if (this.#failure !== undefined) throw this.#failure
  }
}
