/**
 * The typed client of the control socket, shared by the commands, the mount and the library (`connect`). It is the daemon
 * as its clients see it: the same interface, the same errors. It owns the kept connections; `close` ends them.
 */
import { Agent, type IncomingMessage } from 'node:http'
import { text } from 'node:stream/consumers'
import type { Priority } from '../dht/chunks.ts'
import type { ChunkId } from '../protocols/cid.ts'
import { abortErrorOf } from '../protocols/abort.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { MirrorFolders } from '../mirror/source.ts'
import type { Part } from '../versioning/blobs.ts'
import type { SparseItem } from '../versioning/image-import.ts'
import {
  type AppendResult, type ChunkRange, type CloneRequest, type CloneResult, type CommitRequest, type CommitResult, type ControlHandlers, type GroupCommitRequest, type GroupCommitResult,
  type CreateRequest, type CreateResult, type ImageRow, type ImportProgress, type ImportRequest, type ImportResult, LINES_TYPE, type PeerRow,
  type ReadRange, SPARSE_STREAM_TYPE, type Status, type VerifyResult, VERSION_HEADER, type VersionRow, type WorkingCopyRow, type WriteProgress,
  type WriteRequest, type WriteResult
} from './control-api.ts'
import { readErrorDocument } from './error-document.ts'
import { type RequestInit, requestJson, requestStream } from './http-json.ts'
import { decodeSparse, encodeSparse } from './sparse-stream.ts'
import { nodeClock } from './world.ts'

export interface CallOptions {
  readonly signal?: AbortSignal | undefined
}

/** Answers that need at most a few round trips on the fabric. */
const QUERY_DEADLINE_MS = 30_000
/** The daemon's own deadlines are shorter: it then says what is wrong, which a timeout here cannot. */
const FETCH_DEADLINE_MS = 60_000
/** Uploads what a machine has written since the last one; a version manager that restarts is waited for. */
const COMMIT_DEADLINE_MS = 60 * 60_000
/** Every replica of every chunk is read from disk. */
const VERIFY_DEADLINE_MS = 60 * 60_000
/** A stream from which nothing has come for so long has hung. */
const SILENCE_MS_MAX = 120_000
const CONNECTIONS_MAX = 128
/** Of `readBytes`: a program that wants more at once wants a stream. */
const READ_BYTES_MAX = 256 * 1024 * 1024

export class ControlClient implements ControlHandlers {
  readonly socket: string
  readonly #agent = new Agent({ keepAlive: true, maxSockets: CONNECTIONS_MAX })

  constructor (socket: string) {
    this.socket = socket
  }

  /** Ends the kept connections. Requests under way fail. */
  close (): void {
    this.#agent.destroy()
  }

  async status (options?: CallOptions): Promise<Status> {
    return await this.#get('/v1/status', {}, options)
  }

  /** The fabric's members as this peer knows them, itself included. */
  async peers (options?: CallOptions): Promise<PeerRow[]> {
    return await this.#get('/v1/peers', {}, options)
  }

  async folders (options?: CallOptions): Promise<MirrorFolders> {
    return await this.#get('/v1/folders', {}, options)
  }

  async images (options?: CallOptions): Promise<ImageRow[]> {
    return await this.#get('/v1/images', {}, options)
  }

  /** The history, oldest first. ERR_NOT_FOUND. */
  async versions (ref: string, options?: CallOptions): Promise<VersionRow[]> {
    return await this.#get('/v1/versions', { ref }, options)
  }

  /** NAME, NAME@VERSION, NAME@latest, BLOB@VERSION or a prefix of a blob id. ERR_NOT_FOUND. */
  async resolve (ref: string, options?: CallOptions): Promise<VersionRow> {
    return await this.#get('/v1/resolve', { ref }, options)
  }

  async chunkIds (range: ChunkRange, options?: CallOptions): Promise<Array<ChunkId | null>> {
    return await this.#get('/v1/chunk-ids', { ...range }, options)
  }

  /** Returns when each is a file in the cache folder: those that it was given now, verified. (A daemon of an earlier build does not say.) */
  async fetch (chunks: readonly ChunkId[], options?: CallOptions & { readonly priority?: Priority | undefined }): Promise<ChunkId[]> {
    const { verified = [] } = await this.#request<{ readonly verified?: ChunkId[] }>('POST', '/v1/fetch', {
      body: { chunks, priority: options?.priority }, deadlineMs: FETCH_DEADLINE_MS, signal: options?.signal, idempotent: true
    })
    return verified
  }

  /**
   * A new image from the parts of it that are not zeros: ascending, not overlapping, the size last. What `source` throws is
   * thrown here, and nothing is published. ERR_USAGE for the name or the chunk size, ERR_CONFLICT when the name is taken.
   */
  async import (request: ImportRequest, source: AsyncIterable<SparseItem>, options?: CallOptions & { readonly onProgress?: (progress: ImportProgress) => void }): Promise<ImportResult> {
    return await this.#upload('/v1/import', { ...request }, encodeSparse(source), options)
  }

  /** The parts of a version that are not zeros, ascending, then its size. Errors of the fabric come out of the iteration. */
  async export (ref: string, options?: CallOptions): Promise<{ readonly version: VersionRow, readonly items: AsyncIterable<SparseItem> }> {
    return await this.#download('/v1/export', { ref }, options)
  }

  /** A blob without content: version 0. ERR_USAGE for the sizes or the name, ERR_CONFLICT when the name is taken. */
  async createBlob (request: CreateRequest = {}, options?: CallOptions): Promise<CreateResult> {
    return await this.#post('/v1/blobs', request, options)
  }

  /**
   * One version from any number of parts, of any offset and size, which ascend and do not overlap; a part may be as long as fits
   * into memory, and all together more. What `parts` throws is thrown here, and nothing is published. ERR_NOT_FOUND,
   * ERR_CONFLICT when the blob has moved on from `expectedBase`.
   */
  async writeBlob (
    request: WriteRequest, parts: AsyncIterable<Part> | Iterable<Part>, options?: CallOptions & { readonly onProgress?: (progress: WriteProgress) => void }
  ): Promise<WriteResult> {
    return await this.#upload('/v1/write', { ...request }, encodeSparse(untilEnd(parts)), options)
  }

  /** One version from bytes at the end of the blob, wherever that is by then. As `writeBlob`. */
  async appendBlob (
    request: WriteRequest, bytes: Uint8Array | AsyncIterable<Uint8Array>, options?: CallOptions & { readonly onProgress?: (progress: WriteProgress) => void }
  ): Promise<AppendResult> {
    return await this.#upload('/v1/append', { ...request }, encodeSparse(untilEnd(inOrder(bytes instanceof Uint8Array ? [bytes] : bytes))), options)
  }

  /**
   * What of a range of a version is not zeros, ascending, counted from the first byte of the range; then how many bytes the range
   * has, cut at the version's end. Errors of the fabric come out of the iteration.
   */
  async readBlob (ref: string, range: ReadRange = {}, options?: CallOptions): Promise<{ readonly version: VersionRow, readonly items: AsyncIterable<SparseItem> }> {
    return await this.#download('/v1/read', { ref, ...range }, options)
  }

  /** As `readBlob`, in memory: at most READ_BYTES_MAX, ERR_USAGE for more. */
  async readBytes (ref: string, range: ReadRange = {}, options?: CallOptions): Promise<Uint8Array> {
    const { version, items } = await this.readBlob(ref, range, options)
    const { offset = 0, size = Infinity } = range
    const length = Math.max(0, Math.min(size, version.size - offset))
    if (length > READ_BYTES_MAX) throw new P2pvmError('ERR_USAGE', `${length} bytes are more than is read into memory, ${READ_BYTES_MAX}: use readBlob`)
    const bytes = new Uint8Array(length)
    for await (const item of items) if ('bytes' in item) bytes.set(item.bytes, item.offset)
    return bytes
  }

  /** The latest version of a blob, by its id or name. ERR_NOT_FOUND. */
  async recent (ref: string, options?: CallOptions): Promise<VersionRow> {
    return await this.#get('/v1/recent', { ref }, options)
  }

  /** Has every replica of every chunk of a version read and hashed where it lies. */
  async verify (ref: string, options?: CallOptions): Promise<VerifyResult> {
    return await this.#get('/v1/verify', { ref }, options, VERIFY_DEADLINE_MS)
  }

  async workingCopies (options?: CallOptions): Promise<WorkingCopyRow[]> {
    return await this.#get('/v1/working-copies', {}, options)
  }

  /** ERR_CONFLICT when there is one of that name, ERR_NOT_FOUND for the version. */
  async createWorkingCopy (request: { readonly name: string, readonly ref: string }, options?: CallOptions): Promise<WorkingCopyRow> {
    return await this.#post('/v1/working-copies', request, options)
  }

  /** ERR_CONFLICT while it is open. */
  async removeWorkingCopy (name: string, options?: CallOptions): Promise<void> {
    await this.#request('DELETE', `/v1/working-copies/${encodeURIComponent(name)}`, { deadlineMs: QUERY_DEADLINE_MS, signal: options?.signal })
  }

  /** Throws away what it has written since its base. ERR_CONFLICT while it is open. */
  async revertWorkingCopy (name: string, options?: CallOptions): Promise<WorkingCopyRow> {
    return await this.#post(`/v1/working-copies/${encodeURIComponent(name)}/revert`, {}, options)
  }

  /** A new blob that shares everything. A working copy belongs to it afterwards. */
  async clone (request: CloneRequest, options?: CallOptions): Promise<CloneResult> {
    return await this.#post('/v1/clone', request, options)
  }

  /** A new version from what a working copy has written. ERR_CONFLICT when its blob has moved on. */
  async commit (request: CommitRequest, options?: CallOptions): Promise<CommitResult> {
    return await this.#post('/v1/commit', request, options, COMMIT_DEADLINE_MS)
  }

  /** The same of several working copies, cut at one moment and published together: all or none. */
  async commitGroup (request: GroupCommitRequest, options?: CallOptions): Promise<GroupCommitResult> {
    return await this.#post('/v1/commit-group', request, options, COMMIT_DEADLINE_MS)
  }

  /** In Prometheus' text format. */
  async metrics (options?: CallOptions): Promise<string> {
    const response = await requestStream(this.socket, 'GET', '/metrics', { deadlineMs: QUERY_DEADLINE_MS, signal: options?.signal, agent: this.#agent })
    return await text(unbroken(response, options?.signal))
  }

  /** A sparse stream, and progress while it goes, however long it takes. */
  async #upload<Progress, Result> (
    path: string, query: Readonly<Record<string, string | number | undefined>>, body: AsyncIterable<Uint8Array>,
    { signal, onProgress }: CallOptions & { readonly onProgress?: (progress: Progress) => void } = {}
  ): Promise<Result> {
    const response = await requestStream(this.socket, 'POST', path, {
      query, headers: { accept: LINES_TYPE, 'content-type': SPARSE_STREAM_TYPE }, body, deadlineMs: QUERY_DEADLINE_MS, signal, agent: this.#agent
    })
    for await (const line of lines(unbroken(response, signal))) {
      const message = JSON.parse(line) as { progress?: Progress, result?: Result }
      if (message.result !== undefined) return message.result
      if (message.progress === undefined) throw readErrorDocument(message)
      onProgress?.(message.progress)
    }
    throw new P2pvmError('ERR_UNAVAILABLE', 'the daemon went away before it was done')
  }

  async #download (
    path: string, query: Readonly<Record<string, string | number | undefined>>, options?: CallOptions
  ): Promise<{ readonly version: VersionRow, readonly items: AsyncIterable<SparseItem> }> {
    const response = await requestStream(this.socket, 'GET', path, { query, deadlineMs: QUERY_DEADLINE_MS, signal: options?.signal, agent: this.#agent })
    const version = JSON.parse(decodeURIComponent(String(response.headers[VERSION_HEADER]))) as VersionRow
    return { version, items: decodeSparse(unbroken(response, options?.signal)) }
  }

  async #get<T> (path: string, query: Readonly<Record<string, string | number>>, options?: CallOptions, deadlineMs = QUERY_DEADLINE_MS): Promise<T> {
    return await this.#request('GET', path, { query, deadlineMs, signal: options?.signal })
  }

  async #post<T> (path: string, body: object, options?: CallOptions, deadlineMs = QUERY_DEADLINE_MS): Promise<T> {
    return await this.#request('POST', path, { body, deadlineMs, signal: options?.signal })
  }

  async #request<T> (method: 'GET' | 'POST' | 'DELETE', path: string, init: RequestInit): Promise<T> {
    return await requestJson<T>(this.socket, method, path, { ...init, agent: this.#agent })
  }
}

/** As a sparse stream has it: the parts, then where the last one ends. ERR_USAGE for what is not in order. */
async function * untilEnd (parts: AsyncIterable<Part> | Iterable<Part>): AsyncGenerator<SparseItem> {
  let size = 0
  for await (const { offset, bytes } of parts) {
    if (bytes.length === 0) continue
    if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(offset + bytes.length)) throw new P2pvmError('ERR_USAGE', `cannot write ${bytes.length} bytes at ${offset}`)
    if (offset < size) throw new P2pvmError('ERR_USAGE', `cannot write at ${offset} after what ends at ${size}: extents ascend and do not overlap`)
    yield { offset, bytes }
    size = offset + bytes.length
  }
  yield { size }
}

async function * inOrder (source: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): AsyncGenerator<Part> {
  let offset = 0
  for await (const bytes of source) {
    yield { offset, bytes }
    offset += bytes.length
  }
}

/** The answer's bytes; a connection that breaks, falls silent or is given up is thrown as that. */
async function * unbroken (response: IncomingMessage, signal: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
  const parts = response.iterator({ destroyOnReturn: false }) as AsyncIterator<Uint8Array>
  const giveUp = (): void => { response.destroy() }
  signal?.addEventListener('abort', giveUp)
  try {
    for (;;) {
      if (signal?.aborted === true) throw abortErrorOf(signal)
      // Only the wait counts: a reader that is slow to take what has come is not the daemon's silence.
      const silence = nodeClock.deadline(SILENCE_MS_MAX)
      silence.signal.addEventListener('abort', giveUp)
      let part
      try {
        part = await parts.next()
      } catch (error) {
        throw silence.signal.aborted ? abortErrorOf(silence.signal) : error
      } finally {
        silence[Symbol.dispose]()
      }
      if (part.done === true) return
      yield part.value
    }
  } catch (error) {
    if (signal?.aborted === true) throw abortErrorOf(signal)
    if (error instanceof P2pvmError) throw error
    throw new P2pvmError('ERR_UNAVAILABLE', 'the daemon went away before its answer was complete', {}, error)
  } finally {
    signal?.removeEventListener('abort', giveUp)
    response.destroy()
  }
}

async function * lines (parts: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder()
  let rest = ''
  for await (const part of parts) {
    const whole = (rest + decoder.decode(part, { stream: true })).split('\n')
    rest = whole.pop() ?? ''
    yield * whole
  }
}
