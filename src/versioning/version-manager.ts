/**
 * The version manager: hands out version numbers, publishes versions in order, keeps the names of images. (BlobSeer's; the one
 * service of the fabric that is not replicated. `blob@version` is read without it.)
 *
 * State it owns: all keys of `version-store.ts`, and in memory the ends of those histories that are in use (`blob-history.ts`).
 * Every answer is durable before it is given; every request that changes something has an id, kept in the same atomic write as
 * what it changed, so that a repeated one, also after a crash, gets the same answer and changes nothing.
 *
 * A version is published when it and all before it are complete and its publication record is on W storage peers. An assignment is a
 * lease: a writer that is not heard of for LEASE_MS is fenced, durably, and its version is written in its place
 * (`publisher.ts`). What fails is tried again in the background (`upkeep.ts`), and whenever somebody waits for it. Leases are
 * in memory only: after a restart each is a whole one.
 */
import { untilAborted } from '../protocols/abort.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { Clock, KeyValueStore, Log, Random } from '../protocols/seams.ts'
import type { Signer } from '../protocols/signatures.ts'
import type { PeerId, RequestContext } from '../protocols/transport.ts'
import { LEASE_MS, PAGE_ROWS_MAX, type VersionAnswer, type VersionRequest, type VersionService } from '../protocols/version-protocol.ts'
import type { Records } from '../dht/records.ts'
import { mapAtMost } from '../dht/semaphore.ts'
import { AnswerPage } from './answer-page.ts'
import { FIRST_ATTEMPT } from './attempts.ts'
import { BLOB_ID_PREFIX, randomBlobId } from './blob-id.ts'
import { BlobHistory, type Change } from './blob-history.ts'
import type { BlobId, VersionId } from './blobs.ts'
import { certify } from './certificates.ts'
import { sameExtents } from './extents.ts'
import { checkImageName } from './image-name.ts'
import type { Header } from './publication-codec.ts'
import { Publisher, type Tracked } from './publisher.ts'
import { Upkeep } from './upkeep.ts'
import {
  type Assigned, type Completion, type Operation, putAssigned, putBlob, putComplete, putInherited, putName, putRequest, type RequestEntry, VersionStore
} from './version-store.ts'
import { WriteQueue } from './write-queue.ts'

export interface VersionManagerComponents {
  readonly store: KeyValueStore
  readonly records: Records
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
  /** Of the fabric: certifies what is assigned. */
  readonly signer: Signer
}

/** Ends of histories in memory, some 500 bytes each; those of blobs that are being written stay beyond that. */
const HISTORIES_MAX = 4096
/** Blobs whose publication is made up for at once after a start: a storage peer that hangs must not hold up all of them. */
const RECOVER_AT_ONCE = 16
/** Candidates that are named when a prefix is ambiguous. */
const CANDIDATES_MAX = 10
type Origin = { readonly kind: 'new', readonly chunkSize: number, readonly fanOut: number } | { readonly kind: 'clone', readonly source: VersionId }

export class VersionManager implements VersionService {
  readonly #store: VersionStore
  readonly #clock: Clock
  readonly #random: Random
  readonly #log: Log
  readonly #signer: Signer
  readonly #publisher: Publisher
  readonly #upkeep: Upkeep
  readonly #tracked = new Map<BlobId, Tracked>() // the least recently used first
  readonly #underWay = new Map<string, Promise<unknown>>() // by request id

  constructor ({ store, records, clock, random, log, signer }: VersionManagerComponents) {
    this.#store = new VersionStore(store)
    this.#clock = clock
    this.#random = random
    this.#log = log
    this.#signer = signer
    this.#upkeep = new Upkeep({ clock, random, log }, async (blob) => await this.#bringForward(blob))
    this.#publisher = new Publisher({ store: this.#store, records, clock, log, signer }, {
      signal: this.#upkeep.signal,
      onDue: (blob) => { this.#upkeep.hurry(blob) }
    })
  }

  /**
   * After a start: publishes what was complete when the last run ended, and what was aborted. Never rejects; what fails is tried
   * again in the background.
   */
  async recover (): Promise<void> {
    await mapAtMost(RECOVER_AT_ONCE, this.#store.blobsWithOpenVersions(), async (blob) => {
      try {
        await this.#publisher.advance(this.#track(blob))
      } catch (error) {
        this.#log.warn('cannot publish yet what was complete before the restart', { blob, error })
      }
    })
  }

  /** Ends what it does unasked. */
  async stop (): Promise<void> {
    await this.#upkeep.stop()
  }

  async create (request: VersionRequest<'create'>, { peer }: RequestContext): Promise<VersionAnswer<'create'>> {
    return await this.#once(request.requestId, async () => {
      const id = this.#known(request.requestId, 'create') ??
        await this.#begin(request.of, { requestId: request.requestId, writer: peer, writerKey: this.#signer.publicKey }, { op: 'create', name: request.name })
      await this.#publisher.publish(this.#track(id.blob), id.version)
      return { version: this.#published(id).signed }
    })
  }

  async assign (request: VersionRequest<'assign'>, { peer }: RequestContext): Promise<VersionAnswer<'assign'>> {
    return await this.#once(request.requestId, async () => {
      const known = this.#known(request.requestId, 'assign')
      const id = known ?? await this.#assignNew(request, peer)
      const tracked = this.#track(id.blob)
      if (known !== undefined) {
        checkSameRequest(request, this.#assigned(tracked, id.version))
        await this.#heard(tracked, id.version)
      }
      // A new blob's version 0 is the base of its version 1: published before anybody is told.
      await this.#publisher.publish(tracked, 0)
      return this.#assignment(tracked, id.version)
    })
  }

  async renew ({ blob, version, requestId }: VersionRequest<'renew'>): Promise<VersionAnswer<'renew'>> {
    const tracked = this.#track(blob)
    this.#checkAssignedTo(requestId, tracked, version)
    await this.#heard(tracked, version)
    return { leaseMs: LEASE_MS }
  }

  async complete (request: VersionRequest<'complete'>, _context: RequestContext): Promise<VersionAnswer<'complete'>> {
    const { blob, version } = request
    const tracked = this.#track(blob)
    const { history, writes } = tracked
    this.#checkAssignedTo(request.requestId, tracked, version)
    await this.#heard(tracked, version)
    await history.complete(version,
      () => this.#completionOf(request),
      async (completion) => { await writes.write([putComplete(request, completion)]) })
    await this.#publisher.publish(tracked, version)
    return { published: history.isPublished(version) ? this.#published({ blob, version }).signed : null }
  }

  async wait ({ blob, version, waitMs }: VersionRequest<'wait'>, { signal }: RequestContext): Promise<VersionAnswer<'wait'>> {
    const tracked = this.#track(blob)
    const { history } = tracked
    if (version > history.lastAssigned) throw noSuchVersion(blob, version)
    const deadline = this.#clock.deadline(waitMs, signal)
    try {
      while (!history.isPublished(version)) {
        // Also what failed before is tried again, for as long as somebody waits for it.
        if (history.isPending) await untilAborted(this.#publisher.advance(tracked), deadline.signal)
        else await untilAborted(history.nextChange(), deadline.signal)
      }
      return { published: this.#published({ blob, version }).signed }
    } catch (error) {
      if (deadline.signal.aborted && !signal.aborted) return { published: null }
      throw error
    } finally {
      deadline[Symbol.dispose]()
    }
  }

  async recent ({ blob }: VersionRequest<'recent'>): Promise<VersionAnswer<'recent'>> {
    return { version: this.#latest(blob).signed }
  }

  async resolve ({ ref, version }: VersionRequest<'resolve'>): Promise<VersionAnswer<'resolve'>> {
    const latest = this.#latest(this.#blobOf(ref))
    if (version === undefined) return { version: latest.signed }
    return { version: this.#published({ blob: latest.version.blob, version }).signed }
  }

  async images ({ after }: VersionRequest<'images'>): Promise<VersionAnswer<'images'>> {
    const page = new AnswerPage<VersionAnswer<'images'>['images'][number]>()
    for (const { name, shows } of this.#store.namesAfter(after)) {
      const latest = this.#shown(shows)?.signed
      if (latest !== undefined && !page.add({ name, latest }, latest)) break
    }
    return { images: page.rows }
  }

  async log ({ blob, from }: VersionRequest<'log'>): Promise<VersionAnswer<'log'>> {
    const { version: { version: latest } } = this.#latest(blob)
    const page = new AnswerPage<Uint8Array>()
    // Of one that is being published there is a header before it shows.
    for (const signed of this.#store.publishedFrom(blob, from, Math.min(PAGE_ROWS_MAX, Math.max(0, latest + 1 - from)))) {
      if (!page.add(signed, signed)) break
    }
    return { versions: page.rows }
  }

  async outcome ({ requestId }: VersionRequest<'outcome'>): Promise<VersionAnswer<'outcome'>> {
    await this.#underWay.get(requestId)?.catch(() => {}) // what is not durable yet is no outcome
    const entry = this.#store.request(requestId)
    if (entry === undefined) return { assigned: null }
    const { blob, version } = entry
    const { history, fencing } = this.#track(blob)
    const aborted = history.isFenced(version)
    if (aborted) await fencing
    return { assigned: { blob, version, complete: history.isComplete(version), aborted } }
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

  async #assignNew ({ requestId, target, change, writerKey }: VersionRequest<'assign'>, writer: PeerId): Promise<VersionId> {
    if (target.kind !== 'blob') return await this.#begin(target, { requestId, writer, writerKey }, { op: 'assign', name: target.name, change })
    this.#latest(target.blob) // ERR_NOT_FOUND
    const { history, writes } = this.#track(target.blob)
    const nowMs = this.#clock.monotonic()
    const { blob, version, assigned } = history.assign(change, { requestId, writer, writerKey, expectedBase: target.expectedBase, nowMs })
    this.#upkeep.watch(blob)
    await writes.write([...putAssigned({ blob, version }, assigned), putRequest(requestId, { blob, version, op: 'assign' })])
    return { blob, version }
  }

  /** A new blob with version 0, and, when there is a change, version 1 assigned: in one atomic write with the name. */
  async #begin (
    origin: Origin, request: Pick<Assigned, 'requestId' | 'writer' | 'writerKey'>,
    { op, name, change }: { op: RequestEntry['op'], name?: string | undefined, change?: Change }
  ): Promise<VersionId> {
    if (name !== undefined) this.#checkNameIsFree(checkImageName(name))
    const source = origin.kind === 'clone' ? this.#published(origin.source).version : { ...origin, size: 0, root: null }
    const inherited = origin.kind === 'clone' ? this.#track(origin.source.blob).history.exceptionsUpTo(origin.source.version) : []
    const { size, chunkSize, fanOut, root } = source
    const blob = randomBlobId(this.#random)
    const first: Assigned = { ...request, base: 0, extents: [], sizeBefore: size, sizeAfter: size }
    const completion: Completion = {
      timeMs: Math.floor(this.#clock.now()), message: '', bytesChanged: 0, attempt: FIRST_ATTEMPT, root, parent: origin.kind === 'clone' ? origin.source : null
    }
    const nowMs = this.#clock.monotonic()
    const history = new BlobHistory(blob, { geometry: { chunkSize, fanOut }, inherited, aborted: [], published: undefined, open: [] }, nowMs)
    history.begin(first, completion, nowMs)
    const operations: Operation[] = [
      putBlob(blob, { chunkSize, fanOut }), ...putAssigned({ blob, version: 0 }, first), putComplete({ blob, version: 0 }, completion)
    ]
    if (inherited.length > 0) operations.push(putInherited(blob, inherited))
    const id = { blob, version: change === undefined ? 0 : 1 }
    if (change !== undefined) operations.push(...putAssigned(id, history.assign(change, { ...request, nowMs }).assigned))
    operations.push(putRequest(request.requestId, { ...id, op }))
    if (name !== undefined) operations.push(putName(name, id))
    const written = this.#add(history).writes.write(operations)
    if (change !== undefined) this.#upkeep.watch(blob)
    await written
    return id
  }

  #checkNameIsFree (name: string): void {
    const shows = this.#store.name(name)
    if (shows === undefined) return
    const tracked = this.#track(shows.blob)
    if (tracked.history.isAborted(shows.version)) return // nothing that it was to show will ever be there
    const writer = tracked.history.assignedOf(shows.version)?.writer
    const holder = writer === undefined ? `blob ${shows.blob}` : `a write of ${writer} that is not published yet`
    throw new P2pvmError('ERR_CONFLICT', `the name ${name} is taken by ${holder}; choose another`, { name, blob: shows.blob })
  }

  #completionOf ({ blob, version, message, bytesChanged }: VersionRequest<'complete'>): Completion {
    return {
      timeMs: Math.floor(this.#clock.now()), message, bytesChanged, attempt: FIRST_ATTEMPT, root: { blob, version }, parent: { blob, version: version - 1 }
    }
  }

  /** A sign of life. ERR_CONFLICT, durably so, when it comes too late. */
  async #heard ({ history, fencing }: Tracked, version: number): Promise<void> {
    if (history.isFenced(version)) {
      await fencing
      throw writerFenced(history.blob, version)
    }
    history.renew(version, this.#clock.monotonic())
  }

  /** What is due of a blob unasked: a step of `Upkeep`. */
  async #bringForward (blob: BlobId): Promise<number | undefined> {
    if (!this.#tracked.has(blob) && this.#store.history(blob) === undefined) return undefined // its first write failed
    const tracked = this.#track(blob)
    await this.#publisher.abortExpired(tracked)
    await this.#publisher.advance(tracked)
    return tracked.history.leaseLeftMs(this.#clock.monotonic())
  }

  #assignment (tracked: Tracked, version: number): VersionAnswer<'assign'> {
    const { blob } = tracked.history
    const { base, extents, sizeBefore, sizeAfter, writerKey } = this.#assigned(tracked, version)
    const { signature } = certify({ blob, version, attempt: FIRST_ATTEMPT, writerKey }, this.#signer)
    const inFlight = Array.from({ length: version - base - 1 }, (_, at) => {
      const one = this.#assigned(tracked, base + 1 + at)
      return { version: base + 1 + at, extents: [...one.extents], sizeBefore: one.sizeBefore, sizeAfter: one.sizeAfter }
    })
    return { blob, version, base: this.#published({ blob, version: base }).signed, extents: [...extents], sizeBefore, sizeAfter, inFlight, certificate: signature }
  }

  #assigned ({ history }: Tracked, version: number): Assigned {
    const assigned = history.assignedOf(version) ?? (history.isPublished(version) ? this.#store.assigned(history.blob, version) : undefined)
    if (assigned === undefined) throw noSuchVersion(history.blob, version)
    return assigned
  }

  /** ERR_NOT_ALLOWED. */
  #checkAssignedTo (requestId: string, tracked: Tracked, version: number): void {
    if (this.#assigned(tracked, version).requestId === requestId) return
    const { blob } = tracked.history
    throw new P2pvmError('ERR_NOT_ALLOWED', `version ${version} of ${blob} was assigned to another request`, { blob, version })
  }

  /** ERR_NOT_FOUND when it is not published. */
  #published ({ blob, version }: VersionId): Header {
    const { latestHeader: latest, lastPublished } = this.#track(blob).history
    if (latest?.version.version === version) return latest
    const header = version < lastPublished ? this.#store.published({ blob, version }) : undefined
    if (header === undefined) throw noSuchVersion(blob, version)
    return header
  }

  /** ERR_NOT_FOUND. */
  #latest (blob: BlobId): Header {
    const { latestHeader } = this.#track(blob).history
    if (latestHeader === undefined) throw new P2pvmError('ERR_NOT_FOUND', `no blob ${blob}`, { blob })
    return latestHeader
  }

  /** What a name shows: its blob's latest version, once the version that brought the name is published. */
  #shown (shows: VersionId): Header | undefined {
    const { history } = this.#track(shows.blob)
    return history.isPublished(shows.version) && !history.isAborted(shows.version) ? history.latestHeader : undefined
  }

  /** A name wins over a prefix of an id. */
  #blobOf (ref: string): BlobId {
    const shows = this.#store.name(ref)
    if (shows !== undefined && this.#shown(shows) !== undefined) return shows.blob
    const candidates = BLOB_ID_PREFIX.test(ref) ? this.#store.blobs(ref, CANDIDATES_MAX + 1) : []
    const [blob, ...others] = candidates
    if (blob === undefined) {
      const pending = shows === undefined || this.#track(shows.blob).history.isAborted(shows.version) ? '' : ' (the name is reserved by a write that is not published yet)'
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
    const tracked = this.#add(new BlobHistory(blob, history, this.#clock.monotonic()))
    if (!tracked.history.settled) this.#upkeep.watch(blob)
    return tracked
  }

  #add (history: BlobHistory): Tracked {
    const { blob } = history
    const writes = new WriteQueue(
      async (operations) => { await this.#store.write(operations) },
      (error) => {
        // What is in memory is ahead of the disk: the store decides what happened.
        this.#tracked.delete(blob)
        history.publicationFailed(error)
        this.#upkeep.hurry(blob)
        this.#log.error('cannot write the history of a blob', { blob, error })
      })
    const tracked: Tracked = { history, writes, publishing: undefined, writingAborted: undefined, fencing: Promise.resolve() }
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

/** ERR_USAGE, ERR_CONFLICT. */
function checkSameRequest ({ change, writerKey }: VersionRequest<'assign'>, assigned: Assigned): void {
  const { extents, sizeBefore, sizeAfter } = assigned
  const same = change.kind === 'append'
    ? sizeAfter - sizeBefore === change.size
    : sizeAfter === Math.max(sizeBefore, change.size) && sameExtents(change.extents, extents)
  if (!same) throw usedOtherwise(assigned.requestId)
  if (Buffer.compare(writerKey, assigned.writerKey) === 0) return
  const { requestId, writer } = assigned
  throw new P2pvmError('ERR_CONFLICT',
    `request id ${requestId} belongs to the peer ${writer}: what it was assigned can be written with that peer's key only`, { requestId, peer: writer })
}

function usedOtherwise (requestId: string): P2pvmError {
  return new P2pvmError('ERR_USAGE', `request id ${requestId} was used for something else before`, { requestId })
}

function writerFenced (blob: BlobId, version: number): P2pvmError {
  return new P2pvmError('ERR_CONFLICT',
    `nothing was heard of the writer of version ${version} of ${blob} for ${LEASE_MS / 1000} s, so that it was aborted and shows nothing; ` +
    'nothing else has changed: do it again, as a new request', { blob, version })
}

function noSuchVersion (blob: BlobId, version: number): P2pvmError {
  return new P2pvmError('ERR_NOT_FOUND', `no version ${version} of ${blob}`, { blob, version })
}
