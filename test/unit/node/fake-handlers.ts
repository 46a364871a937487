/** A daemon without a fabric: blobs in memory, enough to drive the control socket and the commands against. */
import type { Call, ControlHandlers, ImportResult, ReadRange, VersionRow, WriteRequest, WriteResult } from '../../../src/node/control-api.ts'
import { P2pvmError } from '../../../src/protocols/errors.ts'
import type { Log } from '../../../src/protocols/seams.ts'
import type { Part } from '../../../src/versioning/blobs.ts'
import type { SparseItem } from '../../../src/versioning/image-import.ts'

export const quiet: Log = { debug () {}, info () {}, warn () {}, error () {} }

export interface StoredImage extends VersionRow {
  readonly name: string
  readonly items: readonly SparseItem[]
}

interface StoredBlob {
  version: number
  bytes: Uint8Array
}

export class FakeDaemon implements ControlHandlers {
  readonly images_ = new Map<string, StoredImage>()
  /** By name; the id of one is `blob-NAME`. */
  readonly blobs_ = new Map<string, StoredBlob>()
  readonly calls: Array<{ readonly name: string, readonly argument: unknown }> = []
  /** Thrown by the next call of that name. */
  readonly failures = new Map<string, Error>()
  folder = '/nonexistent'
  /** Called for each piece of an import, write or append. */
  onPiece: () => void = () => {}
  onVerify: (signal: AbortSignal) => Promise<void> = async () => {}

  #called (name: string, argument?: unknown): void {
    this.calls.push({ name, argument })
    const failure = this.failures.get(name)
    this.failures.delete(name)
    if (failure !== undefined) throw failure
  }

  #find (ref: string): StoredImage {
    const image = this.images_.get(ref.split('@')[0] ?? '')
    if (image === undefined) throw new P2pvmError('ERR_NOT_FOUND', `no such image: ${ref}`, { ref })
    return image
  }

  async status (): ReturnType<ControlHandlers['status']> {
    this.#called('status')
    return {
      peerId: 'peer', fabric: 'fabric', roles: ['storage'], addresses: [], pid: process.pid, version: '0', uptimeMs: 1, control: '', dataDir: '',
      members: 1, membersUp: 1, memberListComplete: true, stored: { chunks: 0, bytes: 0, records: 0 }, cache: { chunks: 3, bytes: 3 * 262_144, bytesMax: 2 ** 30 }, mounts: [], counters: {}
    }
  }

  async peers (): ReturnType<ControlHandlers['peers']> {
    this.#called('peers')
    return [{ peerId: 'peer', addresses: ['/ip4/127.0.0.1/tcp/1'], roles: ['storage'], capacityBytes: 2 ** 30, state: 'up', self: true }]
  }

  async folders (): ReturnType<ControlHandlers['folders']> {
    this.#called('folders')
    return { cache: `${this.folder}/cache`, working: `${this.folder}/working`, mounts: `${this.folder}/mounts` }
  }

  async images (): ReturnType<ControlHandlers['images']> {
    this.#called('images')
    return [...this.images_.values()].map(({ items, ...row }) => row)
  }

  async versions (ref: string): ReturnType<ControlHandlers['versions']> {
    this.#called('versions', ref)
    return [await this.resolve(ref)]
  }

  async resolve (ref: string): ReturnType<ControlHandlers['resolve']> {
    this.#called('resolve', ref)
    const { items, name, ...row } = this.#find(ref)
    return row
  }

  async chunkIds (range: Parameters<ControlHandlers['chunkIds']>[0]): ReturnType<ControlHandlers['chunkIds']> {
    this.#called('chunkIds', range)
    return Array.from({ length: range.count }, (_, at) => at % 2 === 0 ? null : `id-${range.first + at}`)
  }

  async fetch (chunks: readonly string[], { priority, signal }: { priority?: string | undefined, signal: AbortSignal }): Promise<string[]> {
    this.#called('fetch', { chunks, priority })
    if (chunks.includes('never')) await new Promise((_, reject) => { signal.addEventListener('abort', () => { reject(signal.reason); this.#called('fetch aborted') }) })
    return chunks.slice(1)
  }

  async import (request: Parameters<ControlHandlers['import']>[0], source: AsyncIterable<SparseItem>, { onProgress }: Parameters<ControlHandlers['import']>[2]): Promise<ImportResult> {
    this.#called('import', request)
    if (this.images_.has(request.name)) throw new P2pvmError('ERR_CONFLICT', `the name ${request.name} is taken`, { name: request.name })
    const items: SparseItem[] = []
    let size = 0
    for await (const item of source) {
      items.push(item)
      this.onPiece()
      if ('size' in item) size = item.size
      else onProgress({ doneBytes: item.offset + item.bytes.length, chunks: items.length, holes: 0, alreadyThere: 0 })
    }
    const chunks = items.length - 1
    this.images_.set(request.name, {
      name: request.name, items, size, blob: `blob-${request.name}`, version: 1, chunkSize: request.chunkSize, fanOut: 64, timeMs: 0,
      writer: 'peer', message: request.message ?? '', bytesChanged: size, parent: null, aborted: false
    })
    const bytes = items.reduce((sum, item) => 'bytes' in item ? sum + item.bytes.length : sum, 0)
    return {
      blob: `blob-${request.name}`, version: 1, name: request.name, size, chunkSize: request.chunkSize, chunks, holes: Math.ceil(size / request.chunkSize) - chunks,
      newChunks: chunks, storedBytes: bytes, sentBytes: bytes, replicas: { wanted: 1, degradedChunks: 0 }
    }
  }

  async export (ref: string): ReturnType<ControlHandlers['export']> {
    this.#called('export', ref)
    const image = this.#find(ref)
    const failures = this.failures
    async function * items (): AsyncGenerator<SparseItem> {
      for (const item of image.items) {
        const failure = failures.get('export items')
        if (failure !== undefined) throw failure
        yield item
      }
    }
    const { items: _, name, ...version } = image
    return { version, items: items() }
  }

  async verify (ref: string, { signal }: Call): ReturnType<ControlHandlers['verify']> {
    this.#called('verify', ref)
    await this.onVerify(signal)
    const { blob, version } = this.#find(ref)
    return { blob, version, chunks: 4, replicas: { wanted: 12, found: 11 }, missing: 0, degraded: 1, corrupt: 0, unreachable: 1 }
  }

  async createBlob (request: Parameters<ControlHandlers['createBlob']>[0]): ReturnType<ControlHandlers['createBlob']> {
    this.#called('createBlob', request)
    const { chunkSize = 262_144, fanOut = 64, name = 'unnamed' } = request
    this.blobs_.set(name, { version: 0, bytes: new Uint8Array(0) })
    return { blob: `blob-${name}`, version: 0, chunkSize, fanOut, name: request.name ?? null }
  }

  async writeBlob (request: WriteRequest, parts: AsyncIterable<Part>): Promise<WriteResult> {
    this.#called('writeBlob', request)
    const blob = this.#blob(request)
    const written: Part[] = []
    for await (const part of parts) {
      written.push(part)
      this.onPiece()
    }
    const after = new Uint8Array(Math.max(blob.bytes.length, ...written.map(({ offset, bytes }) => offset + bytes.length)))
    after.set(blob.bytes)
    for (const { offset, bytes } of written) after.set(bytes, offset)
    blob.bytes = after
    blob.version += 1
    return { blob: `blob-${request.ref}`, version: blob.version, size: after.length, bytes: written.reduce((sum, { bytes }) => sum + bytes.length, 0) }
  }

  async appendBlob (request: WriteRequest, bytes: AsyncIterable<Uint8Array>): ReturnType<ControlHandlers['appendBlob']> {
    this.#called('appendBlob', request)
    const start = this.#blob(request).bytes.length
    async function * parts (): AsyncGenerator<Part> {
      let offset = start
      for await (const piece of bytes) {
        yield { offset, bytes: piece }
        offset += piece.length
      }
    }
    return { ...await this.writeBlob(request, parts()), offset: start }
  }

  async readBlob (ref: string, { offset = 0, size = Infinity }: ReadRange): ReturnType<ControlHandlers['readBlob']> {
    this.#called('readBlob', { ref, offset, size })
    const blob = this.#blob({ ref })
    const bytes = blob.bytes.subarray(offset, offset + size)
    const failures = this.failures
    async function * items (): AsyncGenerator<SparseItem> {
      // One hole in it: the zeros at the beginning.
      const first = Math.max(0, bytes.findIndex((byte) => byte !== 0))
      if (bytes.length > first) yield { offset: first, bytes: bytes.subarray(first) }
      const failure = failures.get('readBlob items')
      if (failure !== undefined) throw failure
      yield { size: bytes.length }
    }
    return { version: this.#row(ref, blob), items: items() }
  }

  async recent (ref: string): ReturnType<ControlHandlers['recent']> {
    this.#called('recent', ref)
    return this.#row(ref, this.#blob({ ref }))
  }

  #blob ({ ref, expectedBase }: WriteRequest): StoredBlob {
    const blob = this.blobs_.get(ref)
    if (blob === undefined) throw new P2pvmError('ERR_NOT_FOUND', `no such blob: ${ref}`, { ref })
    if (expectedBase !== undefined && expectedBase !== blob.version) throw new P2pvmError('ERR_CONFLICT', `${ref} has moved on`, { ref })
    return blob
  }

  #row (ref: string, { version, bytes }: StoredBlob): VersionRow {
    return { blob: `blob-${ref}`, version, size: bytes.length, chunkSize: 4096, fanOut: 64, timeMs: 0, writer: 'peer', message: '', bytesChanged: 0, parent: null, aborted: false }
  }

  async workingCopies (): ReturnType<ControlHandlers['workingCopies']> {
    this.#called('workingCopies')
    return []
  }

  async createWorkingCopy (request: { name: string, ref: string }): ReturnType<ControlHandlers['createWorkingCopy']> {
    this.#called('createWorkingCopy', request)
    const { blob, version, size } = this.#find(request.ref)
    return { name: request.name, blob, version, size, dirtyBytes: 0, path: null }
  }

  async removeWorkingCopy (name: string): Promise<void> {
    this.#called('removeWorkingCopy', name)
  }

  async revertWorkingCopy (name: string): ReturnType<ControlHandlers['revertWorkingCopy']> {
    this.#called('revertWorkingCopy', name)
    return { name, blob: 'b', version: 1, size: 1, dirtyBytes: 0, path: null }
  }

  async clone (request: Parameters<ControlHandlers['clone']>[0]): ReturnType<ControlHandlers['clone']> {
    this.#called('clone', request)
    return { blob: 'c', version: 0, name: request.name ?? null, path: request.path ?? null }
  }

  async commit (request: Parameters<ControlHandlers['commit']>[0]): ReturnType<ControlHandlers['commit']> {
    this.#called('commit', request)
    return { blob: 'b', version: 2, name: request.as ?? null, chunks: 1, bytes: 4096, freezeMs: 0.5, path: request.path ?? '' }
  }

  async commitGroup (request: Parameters<ControlHandlers['commitGroup']>[0]): ReturnType<ControlHandlers['commitGroup']> {
    this.#called('commitGroup', request)
    return { members: request.members.map(({ path = '', as }) => ({ blob: 'b', version: 2, name: as ?? null, chunks: 1, bytes: 4096, freezeMs: 0.5, path })) }
  }

  async metrics (): Promise<string> {
    this.#called('metrics')
    return '# TYPE p2pvm_x_total counter\np2pvm_x_total 1\n'
  }
}
