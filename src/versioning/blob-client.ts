/**
 * Blobs over chunks, records and the version manager: BlobSeer's operations (the talk, "What is BlobSeer?").
 *
 * A WRITE goes in the talk's order: whole chunks first, all in parallel, asking nobody; then a version number; then the chunks that are
 * written in part, over what the version before has there; then the tree; then `complete`. One whose bytes come in a stream
 * (streamed-write.ts) asks for its number when the last has come. Readers need no version manager.
 *
 * What the version manager shows must belong to what it has shown before (seen-versions.ts).
 *
 * State it owns: the chunk sizes of blobs. Publication records and tree nodes are cached where they are read.
 */
import type { Chunks } from '../dht/chunks.ts'
import type { Records } from '../dht/records.ts'
import { mapAtMost } from '../dht/semaphore.ts'
import { CHUNK_BYTES_DEFAULT, checkChunkSize, type ChunkId, chunkIdOf, isZero } from '../protocols/cid.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { Clock, KeyValueStore, Log, Random } from '../protocols/seams.ts'
import type { Signer } from '../protocols/signatures.ts'
import { MESSAGE_CHARACTERS_MAX, type VersionRequest } from '../protocols/version-protocol.ts'
import type { Assigned } from './assignment.ts'
import { FIRST_ATTEMPT } from './attempts.ts'
import { checkBlobId } from './blob-id.ts'
import { parseRef } from './blob-ref.ts'
import {
  type BlobId, type BlobOptions, type Blobs, type Extent, FAN_OUT_DEFAULT, type GroupRequest, type Image, type Outcome, type Part, type PublishRequest, type Target,
  type Version, type VersionId, type WriteOptions
} from './blobs.ts'
import { ChunkedWrite } from './chunked-write.ts'
import { GroupPublication } from './group-publication.ts'
import { checkImageName } from './image-name.ts'
import { LruCache } from './lru-cache.ts'
import { NodeStore, type NodeStoreInit, type TreeSource } from './node-store.ts'
import { decodeHeader, type Header } from './publication-codec.ts'
import { PublicationRecords } from './publication-records.ts'
import { checkRequestId, newRequestId } from './request-id.ts'
import { SeenVersions } from './seen-versions.ts'
import { type StoredChunk, storedChunks } from './stored-chunks.ts'
import { bytesOf, type Placed, placeStream } from './streamed-write.ts'
import { checkFanOut, namesWrittenBy } from './tree-names.ts'
import { readChunkIds } from './tree-reader.ts'
import type { VersionClient } from './version-client.ts'
import { changeOf, type Ending, VersionWriter } from './version-writer.ts'

export interface BlobClientComponents {
  readonly chunks: Chunks
  readonly records: Records
  readonly versions: VersionClient
  readonly clock: Clock
  readonly random: Random
  /** Of this peer: what it writes is assigned to this key. */
  readonly signer: Signer
  /** The public half, raw. */
  readonly fabricKey: Uint8Array
  readonly log: Log
  /** For what was seen of the version manager's histories; without one it is forgotten with the process. */
  readonly seen?: KeyValueStore | undefined
}

/** Chunks moved at once by one READ or WRITE: 8 × 4 MiB at most in memory beside the caller's own. */
const CHUNKS_AT_ONCE = 8
/** Some 100 bytes each. */
const CHUNK_SIZES_CACHED_MAX = 4096

export class BlobClient implements Blobs {
  readonly #components: BlobClientComponents
  readonly #nodes: NodeStore
  readonly #publications: PublicationRecords
  readonly #seen: SeenVersions
  readonly #writer: VersionWriter
  readonly #groups: GroupPublication
  readonly #chunkSizes = new LruCache<number>(CHUNK_SIZES_CACHED_MAX) // by blob

  constructor (components: BlobClientComponents, init: NodeStoreInit = {}) {
    this.#components = components
    this.#nodes = new NodeStore(components, init)
    this.#publications = new PublicationRecords(components)
    this.#seen = new SeenVersions({ ...components, publications: this.#publications, store: components.seen })
    this.#writer = new VersionWriter({
      ...components,
      shown: async (header, signal) => await this.#shown(header, signal),
      sourceOf: async (version, signal) => await this.#sourceOf(version, signal)
    })
    this.#groups = new GroupPublication({
      ...components, writer: this.#writer, chunkSizeAt: async (target, signal) => await this.#chunkSizeAt(target, signal)
    })
  }

  async create (
    { chunkSize = CHUNK_BYTES_DEFAULT, fanOut = FAN_OUT_DEFAULT, name }: { chunkSize?: number, fanOut?: number, name?: string } = {},
    { signal }: BlobOptions = {}
  ): Promise<Version> {
    return await this.#create({ kind: 'new', chunkSize: checkChunkSize(chunkSize), fanOut: checkFanOut(fanOut) }, name, signal)
  }

  async clone (source: VersionId, { name }: { name?: string } = {}, { signal }: BlobOptions = {}): Promise<Version> {
    checkBlobId(source.blob)
    return await this.#create({ kind: 'clone', source: { blob: source.blob, version: source.version } }, name, signal)
  }

  async write (blob: BlobId, parts: readonly Part[] | AsyncIterable<Part>, options: WriteOptions = {}): Promise<Version> {
    const ending = this.#endingOf(options)
    const chunkSize = await this.#chunkSizeOf(blob, options.signal)
    const placed = Symbol.asyncIterator in parts
      ? await this.#placeStream(parts, chunkSize, options.signal)
      : await this.#place(new ChunkedWrite(parts, chunkSize), parts, options.signal)
    const assigned = await this.#writer.assign(ending.requestId, targetOf(blob, options),
      { kind: 'write', extents: [...placed.extents], size: placed.end }, options.signal)
    return await this.#writer.whileRenewing([{ requestId: ending.requestId, assigned }], options.signal, async (signal) => await this.#finish(placed, assigned, ending, signal))
  }

  async append (blob: BlobId, bytes: Uint8Array | AsyncIterable<Uint8Array>, options: WriteOptions = {}): Promise<Version> {
    const { signal } = options
    const ending = this.#endingOf(options)
    const { size, chunkSize } = await this.recent(blob, options)
    const placeAt = async (at: number, source: AsyncIterable<Uint8Array> | Iterable<Uint8Array>, signal: AbortSignal | undefined): Promise<Placed & { at: number }> =>
      ({ at, ...await this.#placeStream(partsFrom(at, source), chunkSize, signal) })
    /** A stream is over when it turns out that it goes elsewhere: it is read again from where it lies. */
    const again = (placed: Placed): AsyncIterable<Uint8Array> | Iterable<Uint8Array> =>
      bytes instanceof Uint8Array ? [bytes] : bytesOf(placed, this.#components.chunks, signal)

    // A guess, so that chunks go before the version number here too. Another writer may have come in between.
    let placed = await placeAt(size, bytes instanceof Uint8Array ? [bytes] : bytes, signal)
    if (!(bytes instanceof Uint8Array) && placed.whole.size > 0) {
      // It may have taken hours. Better moved before others wait for it than after.
      const now = await this.recent(blob, options)
      if (now.size !== placed.at) placed = await placeAt(now.size, again(placed), signal)
    }
    const assigned = await this.#writer.assign(ending.requestId, targetOf(blob, options), { kind: 'append', size: placed.bytesChanged }, signal)
    return await this.#writer.whileRenewing([{ requestId: ending.requestId, assigned }], signal, async (signal) => {
      const { sizeBefore } = assigned.assignment
      if (sizeBefore !== placed.at) placed = await placeAt(sizeBefore, again(placed), signal)
      return await this.#finish(placed, assigned, ending, signal)
    })
  }

  async read (version: Version, offset: number, size: number, { signal }: BlobOptions = {}): Promise<Uint8Array> {
    if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(size) || offset < 0 || size < 0) {
      throw new P2pvmError('ERR_USAGE', `cannot read ${size} bytes at ${offset}`)
    }
    const end = Math.min(offset + size, version.size)
    if (offset >= end) return new Uint8Array(0)
    const { chunkSize } = version
    const first = Math.floor(offset / chunkSize)
    const ids = await this.chunkIds(version, first, Math.ceil(end / chunkSize) - first, { signal })
    const read = new Uint8Array(end - offset)
    await mapAtMost(CHUNKS_AT_ONCE, ids, async (id, at) => {
      if (id === null) return
      const chunk = await this.#components.chunks.get(id, { signal, priority: 'demand' })
      const begins = (first + at) * chunkSize
      const wanted = chunk.subarray(Math.max(0, offset - begins), end - begins)
      read.set(wanted, Math.max(0, begins - offset))
    })
    return read
  }

  async recent (blob: BlobId, { signal }: BlobOptions = {}): Promise<Version> {
    const mark = this.#seen.mark()
    const { version } = await this.#components.versions.ask({ op: 'recent', blob: checkBlobId(blob) }, { signal })
    return await this.#latest(decodeHeader(version), mark, signal)
  }

  async version (id: VersionId, { signal }: BlobOptions = {}): Promise<Version> {
    checkBlobId(id.blob)
    return this.#remember(await this.#seen.get(id, { signal }))
  }

  async resolve (text: string, { signal }: BlobOptions = {}): Promise<Version> {
    const { name, version, isBlobId } = parseRef(text)
    if (isBlobId && version !== undefined) {
      try {
        return await this.version({ blob: name, version }, { signal })
      } catch (error) {
        // It may be the name of an image after all.
        if (!(error instanceof P2pvmError) || error.code !== 'ERR_NOT_FOUND') throw error
      }
    }
    const mark = this.#seen.mark()
    const answer = await this.#components.versions.ask(
      { op: 'resolve', ref: name, ...version === undefined ? {} : { version } }, { signal })
    const header = decodeHeader(answer.version)
    return version === undefined ? await this.#latest(header, mark, signal) : await this.#shown(header, signal)
  }

  async images ({ signal }: BlobOptions = {}): Promise<Image[]> {
    const images: Image[] = []
    for (;;) {
      const mark = this.#seen.mark()
      const page = await this.#components.versions.ask({ op: 'images', after: images.at(-1)?.name ?? '' }, { signal })
      if (page.images.length === 0) return images
      images.push(...await Promise.all(page.images.map(async ({ name, latest: signed }) => {
        const latest = await this.#latest(decodeHeader(signed), mark, signal)
        return { name, blob: latest.blob, latest }
      })))
    }
  }

  async log (blob: BlobId, { signal }: BlobOptions = {}): Promise<Version[]> {
    const headers: Header[] = []
    const mark = this.#seen.mark()
    for (;;) {
      const page = await this.#components.versions.ask({ op: 'log', blob: checkBlobId(blob), from: headers.length }, { signal })
      if (page.versions.length === 0) break
      headers.push(...page.versions.map(decodeHeader))
    }
    await this.#seen.checkHistory(headers, mark, { signal })
    return headers.map(({ version }) => version)
  }

  async chunkIds (version: Version, first: number, count: number, { signal }: BlobOptions = {}): Promise<Array<ChunkId | null>> {
    return await readChunkIds(version, first, count, await this.#sourceOf(version, signal), { signal })
  }

  async * storedChunks (version: Version, within: Extent, { signal }: BlobOptions = {}): AsyncGenerator<StoredChunk> {
    yield * storedChunks(version, within, await this.#sourceOf(version, signal), { signal })
  }

  async publish (request: PublishRequest, { signal }: BlobOptions = {}): Promise<Version> {
    const { target, chunks } = request
    const ending = this.#endingOf(request)
    const assigned = await this.#writer.assign(ending.requestId, target, changeOf(request, await this.#chunkSizeAt(target, signal)), signal)
    return await this.#writer.whileRenewing([{ requestId: ending.requestId, assigned }], signal, async (signal) => await this.#writer.complete(assigned, chunks, ending, signal))
  }

  async outcome (requestId: string, { signal }: BlobOptions = {}): Promise<Outcome> {
    const { assigned } = await this.#components.versions.ask({ op: 'outcome', requestId: checkRequestId(requestId) }, { signal })
    if (assigned === null) return undefined
    if (assigned.aborted) return 'aborted'
    const version = await this.#shown(await this.#components.versions.waitPublished(assigned, { signal }), signal)
    return version.attempt === FIRST_ATTEMPT ? version : 'aborted'
  }

  async publishGroup (request: GroupRequest, { signal }: BlobOptions = {}): Promise<Version[]> {
    const { message } = this.#endingOf(request)
    return await this.#groups.publish({ ...request, message }, signal)
  }

  async groupOutcome (request: Parameters<Blobs['groupOutcome']>[0], { signal }: BlobOptions = {}): Promise<Version[] | 'aborted' | undefined> {
    return await this.#groups.outcome(request, signal)
  }

  /** What was seen is on disk when it returns. */
  async stop (): Promise<void> {
    await this.#seen.flush()
  }

  async #create (of: VersionRequest<'create'>['of'], name: string | undefined, signal: AbortSignal | undefined): Promise<Version> {
    const requestId = newRequestId(this.#components.random)
    const { version } = await this.#components.versions.ask(
      { op: 'create', requestId, of, ...name === undefined ? {} : { name: checkImageName(name) } }, { signal })
    return await this.#shown(decodeHeader(version), signal)
  }

  /** Puts all of a write's chunks that need nothing of the blob. */
  async #place (content: ChunkedWrite, parts: readonly Part[], signal: AbortSignal | undefined): Promise<Placed> {
    const { chunkSize, extents, end, bytesChanged } = content
    const whole = content.indices.filter((index) => content.covers(index, chunkSize))
    const ids = await mapAtMost(CHUNKS_AT_ONCE, whole, async (index) => {
      const bytes = new Uint8Array(chunkSize)
      content.writeOver(index, bytes)
      return await this.#upload(bytes, signal)
    })
    return { chunkSize, extents, end, bytesChanged, whole: new Map(whole.map((index, at) => [index, ids[at]!])), inPart: parts }
  }

  async #placeStream (parts: AsyncIterable<Part>, chunkSize: number, signal: AbortSignal | undefined): Promise<Placed> {
    return await placeStream(parts, { chunkSize, chunks: this.#components.chunks, signal })
  }

  /** Merges the chunks that are written in part, and publishes. */
  async #finish ({ whole, inPart, chunkSize, bytesChanged }: Placed, assigned: Assigned, ending: Ending, signal: AbortSignal | undefined): Promise<Version> {
    const { assignment } = assigned
    const { blob, base } = assignment
    const inFlight = assignment.inFlight.map((one) => ({ version: one.version, names: namesWrittenBy(one, base) })).reverse()
    const content = new ChunkedWrite(inPart, chunkSize)
    const indices = content.indices.filter((index) => !whole.has(index))
    const ids = await mapAtMost(CHUNKS_AT_ONCE, indices, async (index) => {
      const begins = index * chunkSize
      const bytes = new Uint8Array(Math.min(chunkSize, assignment.sizeAfter - begins))
      if (!content.covers(index, Math.min(bytes.length, assignment.sizeBefore - begins))) {
        const writer = inFlight.find(({ names }) => names.writesChunk(index))
        // Of one in flight the bytes are known when it is published, and only this chunk has to wait for that.
        const before = writer === undefined ? base : await this.#shown(await this.#components.versions.waitPublished({ blob, version: writer.version }, { signal }), signal)
        bytes.set(await this.read(before, begins, bytes.length, { signal }))
      }
      content.writeOver(index, bytes)
      return await this.#upload(bytes, signal)
    })
    const chunks = new Map(whole)
    for (const [at, index] of indices.entries()) chunks.set(index, ids[at]!)
    return await this.#writer.complete(assigned, chunks, { ...ending, bytesChanged }, signal)
  }

  async #upload (bytes: Uint8Array, signal: AbortSignal | undefined): Promise<ChunkId | null> {
    if (isZero(bytes)) return null
    const id = chunkIdOf(bytes)
    await this.#components.chunks.put(id, bytes, { signal, priority: 'commit' })
    return id
  }

  async #chunkSizeAt (target: Target, signal: AbortSignal | undefined): Promise<number> {
    if (target.kind === 'new') return checkChunkSize(target.chunkSize)
    return await this.#chunkSizeOf(target.kind === 'blob' ? target.blob : target.source.blob, signal)
  }

  async #chunkSizeOf (blob: BlobId, signal: AbortSignal | undefined): Promise<number> {
    return this.#chunkSizes.get(blob) ?? (await this.recent(blob, { signal })).chunkSize
  }

  async #sourceOf (version: Version, signal: AbortSignal | undefined): Promise<TreeSource> {
    return { nodes: this.#nodes, attempts: await this.#publications.attemptsOf(version, { signal }) }
  }

  /** What the version manager showed, checked. */
  async #shown (header: Header, signal: AbortSignal | undefined): Promise<Version> {
    await this.#seen.check(header, { signal })
    return this.#remember(header)
  }

  async #latest (header: Header, mark: number, signal: AbortSignal | undefined): Promise<Version> {
    await this.#seen.checkLatest(header, mark, { signal })
    return this.#remember(header)
  }

  #remember ({ version }: Header): Version {
    this.#chunkSizes.set(version.blob, version.chunkSize, 1)
    return version
  }

  #endingOf (
    { requestId = newRequestId(this.#components.random), message = '', bytesChanged = 0 }: { requestId?: string, message?: string | undefined, bytesChanged?: number }
  ): Ending {
    if (message.length > MESSAGE_CHARACTERS_MAX) {
      throw new P2pvmError('ERR_USAGE', `a message has at most ${MESSAGE_CHARACTERS_MAX} characters, not ${message.length}`)
    }
    return { requestId: checkRequestId(requestId), message, bytesChanged }
  }

}

/** One after the other, from `at` on. */
async function * partsFrom (at: number, source: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): AsyncGenerator<Part> {
  let offset = at
  for await (const bytes of source) {
    yield { offset, bytes }
    offset += bytes.length
  }
}

function targetOf (blob: BlobId, { expectedBase }: WriteOptions): Target {
  return { kind: 'blob', blob, ...expectedBase === undefined ? {} : { expectedBase } }
}
