/**
 * A fabric that can be had as it was at any moment of a run: versions, requests and chunks in maps, the part of `Blobs` and
 * `Chunks` that a commit uses. It does not crash: what it has answered, and what it has done and not answered, stays.
 */
import type { ChunkStore } from '../../src/dht/chunk-store.ts'
import type { Chunks } from '../../src/dht/chunks.ts'
import type { VersionRef } from '../../src/mirror/source.ts'
import { type ChunkId, chunkIdOf, isZero } from '../../src/protocols/cid.ts'
import { P2pvmError } from '../../src/protocols/errors.ts'
import type { Blobs, GroupMember, GroupRequest, VersionId } from '../../src/versioning/blobs.ts'

type Ids = ReadonlyArray<ChunkId | null>

/** What becomes of the next publication: done, refused by nobody being there, or done and the answer lost. */
export type Fate = 'answered' | 'unavailable' | 'answer lost'

export class ForkedFabric {
  readonly chunkSize: number
  readonly #chunks: Map<ChunkId, Uint8Array>
  readonly #versions = new Map<string, { readonly ref: VersionRef, readonly ids: Ids }>()
  readonly #requests = new Map<string, VersionRef>()
  fate: Fate = 'answered'
  /** While a commit uploads. */
  onPut: () => Promise<void> = async () => {}

  constructor (chunkSize: number, chunks = new Map<ChunkId, Uint8Array>()) {
    this.chunkSize = chunkSize
    this.#chunks = chunks
  }

  /** Chunks never change, and are shared. */
  fork (): ForkedFabric {
    const fork = new ForkedFabric(this.chunkSize, this.#chunks)
    for (const [id, version] of this.#versions) fork.#versions.set(id, version)
    for (const [id, ref] of this.#requests) fork.#requests.set(id, ref)
    return fork
  }

  add (blob: string, version: number, bytes: Uint8Array): VersionRef {
    const ids: Array<ChunkId | null> = []
    for (let at = 0; at < bytes.length; at += this.chunkSize) ids.push(this.#keep(bytes.slice(at, at + this.chunkSize)))
    return this.#add({ blob, version, size: bytes.length, chunkSize: this.chunkSize }, ids)
  }

  #add (ref: VersionRef, ids: Ids): VersionRef {
    this.#versions.set(`${ref.blob}@${ref.version}`, { ref, ids })
    return ref
  }

  #keep (bytes: Uint8Array): ChunkId | null {
    if (isZero(bytes)) return null
    const id = chunkIdOf(bytes)
    this.#chunks.set(id, bytes)
    return id
  }

  #of ({ blob, version }: VersionId): { readonly ref: VersionRef, readonly ids: Ids } {
    const found = this.#versions.get(`${blob}@${version}`)
    if (found === undefined) throw new P2pvmError('ERR_NOT_FOUND', `there is no ${blob}@${version}`)
    return found
  }

  bytesOf (id: VersionId): Uint8Array {
    const { ref, ids } = this.#of(id)
    const bytes = new Uint8Array(ref.size)
    ids.forEach((chunk, index) => { if (chunk !== null) bytes.set(this.chunk(chunk).subarray(0, ref.size - index * this.chunkSize), index * this.chunkSize) })
    return bytes
  }

  chunk (id: ChunkId): Uint8Array {
    const bytes = this.#chunks.get(id)
    if (bytes === undefined) throw new P2pvmError('ERR_MISSING', `nobody has ${id}`)
    return bytes
  }

  idsOf (id: VersionId): Ids {
    return this.#of(id).ids
  }

  /** Of a request that was published: what it has become. */
  published (requestId: string): VersionRef | undefined {
    return this.#requests.get(requestId)
  }

  get blobs (): Blobs {
    return {
      version: async (id: VersionId) => this.#of(id).ref,
      chunkIds: async (ref: VersionRef, first: number, count: number) => Array.from({ length: count }, (_, at) => this.idsOf(ref)[first + at] ?? null),
      clone: async (source: VersionId) => {
        const { ref, ids } = this.#of(source)
        return this.#add({ ...ref, blob: `clone-of-${ref.blob}`, version: 0 }, ids)
      },
      publishGroup: async (request: GroupRequest) => [this.#publish(request)],
      groupOutcome: async ({ requestId }: Pick<GroupRequest, 'requestId'>) => {
        const version = this.#requests.get(requestId)
        return version === undefined ? undefined : [version]
      }
    } as unknown as Blobs
  }

  #publish ({ requestId, members: [member] }: GroupRequest): VersionRef {
    const before = this.#requests.get(requestId)
    if (before !== undefined) return before
    const { fate } = this
    this.fate = 'answered'
    if (fate === 'unavailable') throw new P2pvmError('ERR_UNAVAILABLE', 'the version manager is gone')
    const version = this.#assign(member!)
    this.#requests.set(requestId, version)
    if (fate === 'answer lost') throw new P2pvmError('ERR_UNAVAILABLE', 'the answer was lost')
    return version
  }

  #assign ({ target, chunks, size = 0 }: GroupMember): VersionRef {
    if (target.kind !== 'blob') throw new Error('no such commits here')
    const base = this.#of({ blob: target.blob, version: target.expectedBase ?? 0 })
    const next = { blob: target.blob, version: base.ref.version + 1, size, chunkSize: this.chunkSize }
    if (this.#versions.has(`${next.blob}@${next.version}`)) throw new P2pvmError('ERR_CONFLICT', 'the blob has moved on')
    const ids = Array.from({ length: Math.ceil(size / this.chunkSize) }, (_, index) => chunks.get(index) === undefined ? base.ids[index] ?? null : chunks.get(index) ?? null)
    chunks.forEach((id, index) => { ids[index] = id })
    return this.#add(next, ids)
  }

  get chunks (): Chunks {
    return {
      get: async (id: ChunkId) => this.chunk(id),
      put: async (id: ChunkId, bytes: Uint8Array) => {
        await this.onPut()
        this.#chunks.set(id, bytes.slice())
      }
    } as unknown as Chunks
  }

  get cache (): ChunkStore {
    return { put: async () => true } as unknown as ChunkStore
  }
}

