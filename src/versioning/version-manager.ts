/**
 * The version manager: hands out version numbers, publishes versions in order, keeps the names of images. (BlobSeer's; the one
 * service of the fabric that is not replicated. `blob@version` is read without it.)
 *
 * State it owns: all keys of `version-store.ts`, and in memory the ends of those histories that are in use (`blob-history.ts`).
 * Every answer is durable before it is given; every request that changes something has an id, kept in the same atomic write as
 * what it changed, so that a repeated one, also after a crash, gets the same answer and changes nothing.
 *
 * A version is published when it and all before it are complete and its publication record is on W storage peers. When that fails nothing
 * is lost: the next `complete`, `wait` or restart tries again. Not here yet: leases of writers, signatures.
 */
import { untilAborted } from '../protocols/abort.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { Clock, KeyValueStore, Log, Random } from '../protocols/seams.ts'
import type { PeerId, RequestContext } from '../protocols/transport.ts'
import { type Assignment, PAGE_ROWS_MAX, type VersionAnswer, type VersionRequest, type VersionService } from '../protocols/version-protocol.ts'
import type { Records } from '../dht/records.ts'
import { mapAtMost } from '../dht/semaphore.ts'
import { BLOB_ID_PREFIX, randomBlobId } from './blob-id.ts'
import { BlobHistory, type Change } from './blob-history.ts'
import type { BlobId, Version, VersionId } from './blobs.ts'
import { sameExtents } from './extents.ts'
import { checkImageName } from './image-name.ts'
import { encodePublication, type PublicationRecord } from './node-codec.ts'
import { versionName } from './tree-names.ts'
import {
  type Assigned, type Operation, putAssigned, putBlob, putComplete, putName, putPublished, putRequest, type RequestEntry, VersionStore
} from './version-store.ts'
import { WriteQueue } from './write-queue.ts'

export interface VersionManagerComponents {
  readonly store: KeyValueStore
  readonly records: Records
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
}

/** Ends of histories in memory, some 500 bytes each; those of blobs that are being written stay beyond that. */
const HISTORIES_MAX = 4096
/** Publication records in one put: with the most extents 74 KB each, a megabyte. */
const PUBLISH_BATCH_MAX = 16
/** Longer than Records takes to try all who could hold a record; shorter than a client waits for the answer. */
const REPLICATE_DEADLINE_MS = 10_000
/** Blobs whose publication is made up for at once after a start: a storage peer that hangs must not hold up all of them. */
const RECOVER_AT_ONCE = 16
/** Candidates that are named when a prefix is ambiguous. */
const CANDIDATES_MAX = 10
/** Bytes of one page of images or versions, so that it fits a message. */
const PAGE_BYTES_MAX = 128 * 1024
/** One row without its message: keys, ids, numbers, the longest name. */
const ROW_BYTES = 512
/** UTF-8 of one UTF-16 unit at most. */
const CHARACTER_BYTES_MAX = 3

/** A history in use: its rules, its writes, its publication under way. */
interface Tracked {
  readonly history: BlobHistory
  readonly writes: WriteQueue
  publishing: Promise<void> | undefined
}

type Origin = { readonly kind: 'new', readonly chunkSize: number, readonly fanOut: number } | { readonly kind: 'clone', readonly source: VersionId }

export class VersionManager implements VersionService {
  readonly #store: VersionStore
  readonly #records: Records
  readonly #clock: Clock
  readonly #random: Random
  readonly #log: Log
  readonly #tracked = new Map<BlobId, Tracked>() // the least recently used first
  readonly #underWay = new Map<string, Promise<unknown>>() // by request id

  constructor ({ store, records, clock, random, log }: VersionManagerComponents) {
    this.#store = new VersionStore(store)
    this.#records = records
    this.#clock = clock
    this.#random = random
    this.#log = log
  }

  /** After a start: publishes what was complete when the last run ended. Never rejects; what fails is tried again when asked for. */
  async recover (): Promise<void> {
    await mapAtMost(RECOVER_AT_ONCE, this.#store.blobsWithOpenVersions(), async (blob) => {
      try {
        await this.#publishReady(this.#track(blob))
      } catch (error) {
        this.#log.warn('cannot publish yet what was complete before the restart', { blob, error })
      }
    })
  }

  async create (request: VersionRequest<'create'>, { peer }: RequestContext): Promise<VersionAnswer<'create'>> {
    return await this.#once(request.requestId, async () => {
      const id = this.#known(request.requestId, 'create') ??
        await this.#begin(request.of, { requestId: request.requestId, op: 'create', writer: peer, name: request.name })
      await this.#publish(this.#track(id.blob), id.version)
      return { version: this.#published(id) }
    })
  }

  async assign (request: VersionRequest<'assign'>, { peer }: RequestContext): Promise<Assignment> {
    return await this.#once(request.requestId, async () => {
      const known = this.#known(request.requestId, 'assign')
      const id = known ?? await this.#assignNew(request, peer)
      const tracked = this.#track(id.blob)
      if (known !== undefined) checkSameChange(request.change, this.#assigned(tracked, id.version))
      // A new blob's version 0 is the base of its version 1: published before anybody is told.
      await this.#publish(tracked, 0)
      return this.#assignment(tracked, id.version)
    })
  }

  async complete (request: VersionRequest<'complete'>, _context: RequestContext): Promise<VersionAnswer<'complete'>> {
    const { blob, version } = request
    const tracked = this.#track(blob)
    const { history, writes } = tracked
    const assigned = this.#assigned(tracked, version)
    if (assigned.requestId !== request.requestId) {
      throw new P2pvmError('ERR_NOT_ALLOWED', `version ${version} of ${blob} was assigned to another request`, { blob, version })
    }
    await history.complete(version,
      () => this.#publicationOf(history, version, assigned, request),
      async (publication) => { await writes.write([putComplete(publication)]) })
    await this.#publish(tracked, version)
    return { published: history.isPublished(version) ? this.#published({ blob, version }) : null }
  }

  async wait ({ blob, version, waitMs }: VersionRequest<'wait'>, { signal }: RequestContext): Promise<VersionAnswer<'wait'>> {
    const tracked = this.#track(blob)
    const { history } = tracked
    if (version > history.lastAssigned) throw noSuchVersion(blob, version)
    const deadline = this.#clock.deadline(waitMs, signal)
    try {
      while (!history.isPublished(version)) {
        // Also what failed before is tried again, for as long as somebody waits for it.
        if (history.ready(1).length > 0) await untilAborted(this.#publishReady(tracked), deadline.signal)
        else await untilAborted(history.nextPublication(), deadline.signal)
      }
      return { published: this.#published({ blob, version }) }
    } catch (error) {
      if (deadline.signal.aborted && !signal.aborted) return { published: null }
      throw error
    } finally {
      deadline[Symbol.dispose]()
    }
  }

  async recent ({ blob }: VersionRequest<'recent'>): Promise<VersionAnswer<'recent'>> {
    return { version: this.#latest(blob) }
  }

  async resolve ({ ref, version }: VersionRequest<'resolve'>): Promise<VersionAnswer<'resolve'>> {
    const latest = this.#latest(this.#blobOf(ref))
    if (version === undefined || version === latest.version) return { version: latest }
    return { version: this.#published({ blob: latest.blob, version }) }
  }

  async images ({ after }: VersionRequest<'images'>): Promise<VersionAnswer<'images'>> {
    const page = new Page<VersionAnswer<'images'>['images'][number]>()
    for (const { name, shows } of this.#store.namesAfter(after)) {
      const latest = this.#shown(shows)
      if (latest !== undefined && !page.add({ name, latest }, latest)) break
    }
    return { images: page.rows }
  }

  async log ({ blob, from }: VersionRequest<'log'>): Promise<VersionAnswer<'log'>> {
    const latest = this.#latest(blob)
    const page = new Page<Version>()
    for (const { version } of this.#store.publications(blob, from, Math.min(PAGE_ROWS_MAX, Math.max(0, latest.version + 1 - from)))) {
      if (!page.add(version, version)) break
    }
    return { versions: page.rows }
  }

  async outcome ({ requestId }: VersionRequest<'outcome'>): Promise<VersionAnswer<'outcome'>> {
    await this.#underWay.get(requestId)?.catch(() => {}) // what is not durable yet is no outcome
    const entry = this.#store.request(requestId)
    if (entry === undefined) return { assigned: null }
    const { blob, version } = entry
    return { assigned: { blob, version, complete: this.#track(blob).history.isComplete(version) } }
  }

  /** Concurrent repeats of a request share one answer; later ones find what was stored. */
  async #once<T> (requestId: string, work: () => Promise<T>): Promise<T> {
    const underWay = this.#underWay.get(requestId)
    if (underWay !== undefined) return await (underWay as Promise<T>)
    const answer = work().finally(() => { this.#underWay.delete(requestId) })
    this.#underWay.set(requestId, answer)
    return await answer
  }

  #known (requestId: string, op: RequestEntry['op']): VersionId | undefined {
    const entry = this.#store.request(requestId)
    if (entry !== undefined && entry.op !== op) throw usedOtherwise(requestId)
    return entry
  }

  async #assignNew ({ requestId, target, change }: VersionRequest<'assign'>, writer: PeerId): Promise<VersionId> {
    if (target.kind !== 'blob') return await this.#begin(target, { requestId, op: 'assign', writer, name: target.name, change })
    this.#latest(target.blob) // ERR_NOT_FOUND
    const { history, writes } = this.#track(target.blob)
    const { blob, version, assigned } = history.assign(change, { requestId, writer, expectedBase: target.expectedBase })
    await writes.write([...putAssigned({ blob, version }, assigned), putRequest(requestId, { blob, version, op: 'assign' })])
    return { blob, version }
  }

  /** A new blob with version 0, and, when there is a change, version 1 assigned: in one atomic write with the name. */
  async #begin (
    origin: Origin,
    { requestId, op, writer, name, change }: { requestId: string, op: RequestEntry['op'], writer: PeerId, name?: string | undefined, change?: Change }
  ): Promise<VersionId> {
    if (name !== undefined) this.#checkNameIsFree(checkImageName(name))
    const source = origin.kind === 'clone' ? this.#published(origin.source) : { ...origin, size: 0, root: null }
    const { size, chunkSize, fanOut, root } = source
    const blob = randomBlobId(this.#random)
    const first: Assigned = { requestId, writer, base: 0, extents: [], sizeBefore: size, sizeAfter: size }
    const publication: PublicationRecord = {
      version: {
        blob, version: 0, size, chunkSize, fanOut, root, parent: origin.kind === 'clone' ? origin.source : null,
        timeMs: Math.floor(this.#clock.now()), writer, message: '', bytesChanged: 0
      },
      sizeBefore: size,
      extents: []
    }
    const history = new BlobHistory(blob, { geometry: { chunkSize, fanOut }, published: undefined, open: [] })
    history.begin(first, publication)
    const operations: Operation[] = [
      putBlob(blob, { chunkSize, fanOut }), ...putAssigned({ blob, version: 0 }, first), putComplete(publication)
    ]
    const id = { blob, version: change === undefined ? 0 : 1 }
    if (change !== undefined) operations.push(...putAssigned(id, history.assign(change, { requestId, writer }).assigned))
    operations.push(putRequest(requestId, { ...id, op }))
    if (name !== undefined) operations.push(putName(name, id))
    await this.#add(history).writes.write(operations)
    return id
  }

  #checkNameIsFree (name: string): void {
    const shows = this.#store.name(name)
    if (shows === undefined) return
    const tracked = this.#track(shows.blob)
    const writer = tracked.history.assignedOf(shows.version)?.writer
    const holder = writer === undefined ? `blob ${shows.blob}` : `a write of ${writer} that is not published yet`
    throw new P2pvmError('ERR_CONFLICT', `the name ${name} is taken by ${holder}; choose another`, { name, blob: shows.blob })
  }

  #publicationOf (history: BlobHistory, version: number, assigned: Assigned, { message, bytesChanged }: VersionRequest<'complete'>): PublicationRecord {
    const { blob, geometry: { chunkSize, fanOut } } = history
    return {
      version: {
        blob, version, size: assigned.sizeAfter, chunkSize, fanOut, root: { blob, version }, parent: { blob, version: version - 1 },
        timeMs: Math.floor(this.#clock.now()), writer: assigned.writer, message, bytesChanged
      },
      sizeBefore: assigned.sizeBefore,
      extents: assigned.extents
    }
  }

  /** Publishes the version if its turn has come. Returns also if not. */
  async #publish (tracked: Tracked, version: number): Promise<void> {
    while (tracked.history.isReady(version)) await this.#publishReady(tracked)
  }

  async #publishReady (tracked: Tracked): Promise<void> {
    tracked.publishing ??= this.#replicate(tracked).finally(() => { tracked.publishing = undefined })
    await tracked.publishing
  }

  /**
   * In order, some at once: a record is only replicated when all versions up to it are complete, so none that a reader could come
   * upon depends on a writer that may still fail; and none is called published before all up to it are replicated.
   */
  async #replicate ({ history, writes }: Tracked): Promise<void> {
    try {
      for (let ready; (ready = history.ready(PUBLISH_BATCH_MAX)).length > 0;) {
        const deadline = this.#clock.deadline(REPLICATE_DEADLINE_MS)
        try {
          await this.#records.put(ready.map((publication) => ({
            name: versionName(history.blob, publication.version.version),
            value: encodePublication(publication)
          })), { signal: deadline.signal })
        } finally {
          deadline[Symbol.dispose]()
        }
        await writes.write(ready.map(({ version }) => putPublished(version)))
        history.published(ready)
      }
    } catch (error) {
      history.publicationFailed(error)
      throw error
    }
  }

  #assignment (tracked: Tracked, version: number): Assignment {
    const { blob } = tracked.history
    const { base, extents, sizeBefore, sizeAfter } = this.#assigned(tracked, version)
    const inFlight = Array.from({ length: version - base - 1 }, (_, at) => {
      const one = this.#assigned(tracked, base + 1 + at)
      return { version: base + 1 + at, extents: [...one.extents], sizeBefore: one.sizeBefore, sizeAfter: one.sizeAfter }
    })
    return { blob, version, base: this.#published({ blob, version: base }), extents: [...extents], sizeBefore, sizeAfter, inFlight }
  }

  #assigned ({ history }: Tracked, version: number): Assigned {
    const assigned = history.assignedOf(version) ?? (history.isPublished(version) ? this.#store.assigned(history.blob, version) : undefined)
    if (assigned === undefined) throw noSuchVersion(history.blob, version)
    return assigned
  }

  /** ERR_NOT_FOUND when it is not published. */
  #published ({ blob, version }: VersionId): Version {
    const { latest } = this.#track(blob).history
    if (latest?.version === version) return latest
    const publication = latest !== undefined && version < latest.version ? this.#store.publication({ blob, version }) : undefined
    if (publication === undefined) throw noSuchVersion(blob, version)
    return publication.version
  }

  /** ERR_NOT_FOUND. */
  #latest (blob: BlobId): Version {
    const { latest } = this.#track(blob).history
    if (latest === undefined) throw new P2pvmError('ERR_NOT_FOUND', `no blob ${blob}`, { blob })
    return latest
  }

  /** What a name shows: its blob's latest version, once the version that brought the name is published. */
  #shown (shows: VersionId): Version | undefined {
    const { history } = this.#track(shows.blob)
    return history.isPublished(shows.version) ? history.latest : undefined
  }

  /** A name wins over a prefix of an id. */
  #blobOf (ref: string): BlobId {
    const shows = this.#store.name(ref)
    if (shows !== undefined && this.#shown(shows) !== undefined) return shows.blob
    const candidates = BLOB_ID_PREFIX.test(ref) ? this.#store.blobs(ref, CANDIDATES_MAX + 1) : []
    const [blob, ...others] = candidates
    if (blob === undefined) {
      const pending = shows === undefined ? '' : ' (the name is reserved by a write that is not published yet)'
      throw new P2pvmError('ERR_NOT_FOUND', `no image or blob ${ref}${pending}`, { ref })
    }
    if (others.length > 0) {
      const named = candidates.slice(0, CANDIDATES_MAX).join(', ') + (candidates.length > CANDIDATES_MAX ? ', …' : '')
      throw new P2pvmError('ERR_CONFLICT', `${ref} could be any of ${named}`, { ref })
    }
    return blob
  }

  /** The blob's history, loaded when it is not in memory. ERR_NOT_FOUND. */
  #track (blob: BlobId): Tracked {
    const known = this.#tracked.get(blob)
    if (known !== undefined) {
      this.#tracked.delete(blob)
      this.#tracked.set(blob, known)
      return known
    }
    const history = this.#store.history(blob)
    if (history === undefined) throw new P2pvmError('ERR_NOT_FOUND', `no blob ${blob}`, { blob })
    return this.#add(new BlobHistory(blob, history))
  }

  #add (history: BlobHistory): Tracked {
    const { blob } = history
    const writes = new WriteQueue(
      async (operations) => { await this.#store.write(operations) },
      (error) => {
        // What is in memory is ahead of the disk: the store decides what happened.
        this.#tracked.delete(blob)
        history.publicationFailed(error)
        this.#log.error('cannot write the history of a blob', { blob, error })
      })
    const tracked: Tracked = { history, writes, publishing: undefined }
    this.#tracked.set(blob, tracked)
    this.#forgetOldest()
    return tracked
  }

  #forgetOldest (): void {
    if (this.#tracked.size <= HISTORIES_MAX) return
    for (const [blob, { history, writes, publishing }] of this.#tracked) {
      if (!history.settled || !writes.idle || publishing !== undefined) continue
      this.#tracked.delete(blob)
      return
    }
  }
}

/** Rows of an answer, as many as fit. */
class Page<Row> {
  readonly rows: Row[] = []
  #bytes = 0

  /** False when it is full; at least one row always fits. */
  add (row: Row, { message }: Version): boolean {
    this.#bytes += ROW_BYTES + CHARACTER_BYTES_MAX * message.length
    if (this.rows.length >= PAGE_ROWS_MAX || (this.rows.length > 0 && this.#bytes > PAGE_BYTES_MAX)) return false
    this.rows.push(row)
    return true
  }
}

function checkSameChange (change: Change, assigned: Assigned): void {
  const { extents, sizeBefore, sizeAfter } = assigned
  const same = change.kind === 'append'
    ? sizeAfter - sizeBefore === change.size
    : sizeAfter === Math.max(sizeBefore, change.size) && sameExtents(change.extents, extents)
  if (!same) throw usedOtherwise(assigned.requestId)
}

function usedOtherwise (requestId: string): P2pvmError {
  return new P2pvmError('ERR_USAGE', `request id ${requestId} was used for something else before`, { requestId })
}

function noSuchVersion (blob: BlobId, version: number): P2pvmError {
  return new P2pvmError('ERR_NOT_FOUND', `no version ${version} of ${blob}`, { blob, version })
}
