/**
 * The version manager: hands out version numbers, publishes versions in order, keeps the names of images. (BlobSeer's; the one
 * service of the fabric that is not replicated. `blob@version` is read without it.)
 *
 * State it owns: all keys of `version-store.ts`, and what is under way. The ends of those histories that are in use are in `tracked-histories.ts`.
 * Every answer is durable before it is given; every request that changes something has an id, kept in the same atomic write as
 * what it changed, so that a repeated one, also after a crash, gets the same answer and changes nothing. What the members of a group are
 * assigned is one such write, and that they are complete another. Only that a version is published is written later: it follows from its
 * being complete and being replicated, which is found out again after a crash, before anybody is told what the blob's latest version is.
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
import {
  GROUP_IN_FLIGHT_EXTENTS_MAX, GROUP_IN_FLIGHT_VERSIONS_MAX, LEASE_MS, PAGE_ROWS_MAX, type VersionAnswer, type VersionRequest, type VersionService
} from '../protocols/version-protocol.ts'
import type { Records } from '../dht/records.ts'
import { mapAtMost } from '../dht/semaphore.ts'
import { AnswerPage } from './answer-page.ts'
import { FIRST_ATTEMPT } from './attempts.ts'
import { randomBlobId } from './blob-id.ts'
import { BlobHistory, type Change } from './blob-history.ts'
import type { BlobId, VersionId } from './blobs.ts'
import { certify } from './certificates.ts'
import { checkMemberCount, checkMembers, ofMember } from './group-members.ts'
import { checkImageName } from './image-name.ts'
import { NameRegistry } from './name-registry.ts'
import { Publisher } from './publisher.ts'
import { memberRequestId } from './request-id.ts'
import { InDoubt, type Tracked, TrackedHistories } from './tracked-histories.ts'
import { Upkeep } from './upkeep.ts'
import { assignedOtherwise, checkSameRequest, noSuchVersion, oneOfGroup, stillInDoubt, usedOtherwise, writerFenced } from './version-errors.ts'
import {
  type Assigned, type Author, type Completion, type Operation, putAssigned, putBlob, putInherited, putName, putOpen, putRequest, type RequestEntry, VersionStore
} from './version-store.ts'
import { type WritePart, WriteQueue } from './write-queue.ts'

export interface VersionManagerComponents {
  readonly store: KeyValueStore
  readonly records: Records
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
  /** Of the fabric: certifies what is assigned. */
  readonly signer: Signer
}

/** Blobs whose publication is made up for at once after a start: a storage peer that hangs must not hold up all of them. */
const RECOVER_AT_ONCE = 16

type Origin = { readonly kind: 'new', readonly chunkSize: number, readonly fanOut: number } | { readonly kind: 'clone', readonly source: VersionId }

type Assigning = Pick<VersionRequest<'assign'>, 'target' | 'change'> & { readonly author: Author }

/** What a request will be given: nothing stands against it, and nothing is changed yet. */
interface Plan {
  readonly id: VersionId
  readonly operations: readonly Operation[]
  /** How much there will be in front of it. */
  readonly inFlight: BlobHistory['inFlight']
  /** Changes what is in memory. Nothing may have come between; the operations must be written now. */
  readonly enter: () => Tracked
}

/** A version of a history in use. */
interface TrackedVersion {
  readonly tracked: Tracked
  readonly version: number
}

export class VersionManager implements VersionService {
  readonly #store: VersionStore
  readonly #clock: Clock
  readonly #random: Random
  readonly #log: Log
  readonly #signer: Signer
  readonly #publisher: Publisher
  readonly #upkeep: Upkeep
  readonly #histories: TrackedHistories
  readonly #names: NameRegistry
  readonly #underWay = new Map<string, { readonly op: string, readonly answer: Promise<unknown> }>() // by request id

  constructor ({ store, records, clock, random, log, signer }: VersionManagerComponents) {
    this.#store = new VersionStore(store)
    this.#clock = clock
    this.#random = random
    this.#log = log
    this.#signer = signer
    this.#upkeep = new Upkeep({ clock, random, log }, async (blob) => await this.#bringForward(blob))
    this.#histories = new TrackedHistories({ store: this.#store, clock, log }, {
      onOpen: (blob) => { this.#upkeep.watch(blob) },
      onFailure: (blob) => { this.#upkeep.hurry(blob) }
    })
    this.#names = new NameRegistry({ store: this.#store, histories: this.#histories })
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
        await this.#publisher.advance(this.#histories.get(blob))
      } catch (error) {
        this.#log.warn('cannot publish yet what was complete before the restart', { blob, error })
      }
    })
  }

  /** Ends what it does unasked. */
  async stop (): Promise<void> {
    await this.#upkeep.stop()
    await this.#publisher.stop()
  }

  async create (request: VersionRequest<'create'>, { peer }: RequestContext): Promise<VersionAnswer<'create'>> {
    return await this.#once('create', [request.requestId], async () => {
      const id = this.#known(request.requestId, 'create') ?? await this.#createNew(request, peer)
      await this.#publisher.publish(this.#histories.get(id.blob), id.version)
      return { version: this.#histories.published(id).signed }
    })
  }

  async assign (request: VersionRequest<'assign'>, { peer }: RequestContext): Promise<VersionAnswer<'assign'>> {
    return await this.#once('assign', [request.requestId], async () => {
      const known = this.#known(request.requestId, 'assign')
      const { requestId, target, change, writerKey } = request
      const id = known ?? await this.#assignNew({ target, change, author: { requestId, writer: peer, writerKey } })
      const tracked = this.#histories.get(id.blob)
      if (known !== undefined) {
        checkSameRequest(request, this.#histories.assigned(tracked, id.version))
        await this.#heard({ tracked, version: id.version })
      }
      // A new blob's version 0 is the base of its version 1: published before anybody is told.
      await this.#publisher.publish(tracked, 0)
      return this.#assignment(tracked, id.version)
    })
  }

  async assignGroup ({ requestId, members, writerKey }: VersionRequest<'assignGroup'>, { peer }: RequestContext): Promise<VersionAnswer<'assignGroup'>> {
    checkMembers(members.map(({ target }) => target))
    const requests = members.map(({ target, change }, at) =>
      ({ target, change, author: { requestId: memberRequestId(requestId, at), writer: peer, writerKey, members: members.length } }))
    return await this.#once('assignGroup', [requestId, ...requests.map(({ author }) => author.requestId)], async () => {
      const known = this.#knownGroup(requestId, members.length)
      const group = (known ?? await this.#assignGroup(requests)).map(({ blob, version }) => ({ tracked: this.#histories.get(blob), version }))
      if (known !== undefined) {
        for (const [at, { tracked, version }] of group.entries()) checkSameRequest({ change: requests[at]!.change, writerKey }, this.#histories.assigned(tracked, version))
        await this.#heard(...group)
      }
      await Promise.all(group.map(async ({ tracked }) => { await this.#publisher.publish(tracked, 0) }))
      return { members: group.map(({ tracked, version }) => this.#assignment(tracked, version)) }
    })
  }

  async renew ({ blob, version, requestId }: VersionRequest<'renew'>): Promise<VersionAnswer<'renew'>> {
    const tracked = this.#histories.get(blob)
    this.#checkAssignedTo(requestId, tracked, version)
    await this.#heard({ tracked, version })
    return { leaseMs: LEASE_MS }
  }

  async complete (request: VersionRequest<'complete'>, _context: RequestContext): Promise<VersionAnswer<'complete'>> {
    const { blob, version } = request
    const tracked = this.#histories.get(blob)
    const { history, writes } = tracked
    this.#checkAssignedTo(request.requestId, tracked, version)
    const { members } = this.#histories.assigned(tracked, version)
    if (members !== undefined) throw oneOfGroup(blob, version, members)
    await this.#heard({ tracked, version })
    await history.complete(version,
      () => this.#completionOf(request),
      async (completion) => { await writes.write([putOpen(request, completion)]) })
    await this.#publisher.publish(tracked, version)
    return { published: this.#publishedIfSo({ tracked, version }) }
  }

  async completeGroup ({ requestId, message, members }: VersionRequest<'completeGroup'>): Promise<VersionAnswer<'completeGroup'>> {
    const group = members.map(({ blob, version }) => ({ tracked: this.#histories.get(blob), version }))
    for (const [at, { tracked, version }] of group.entries()) this.#checkAssignedTo(memberRequestId(requestId, at), tracked, version)
    if (this.#knownGroup(requestId, members.length) === undefined) throw usedOtherwise(requestId)
    await this.#heard(...group)
    // From here to the joint write nothing is waited for: none can be taken for dead, or completed, apart from the others.
    const parts: WritePart[] = []
    const written = Promise.withResolvers<void>()
    const completing = group.map(async ({ tracked: { history, writes }, version }, at) => {
      await history.complete(version,
        () => this.#completionOf({ ...members[at]!, message }),
        async (completion) => {
          parts.push({ queue: writes, operations: [putOpen(members[at]!, completion)] })
          await written.promise
        })
    })
    WriteQueue.writeJointly(parts).then(written.resolve, written.reject)
    await Promise.all(completing)
    await Promise.all(group.map(async ({ tracked, version }) => { await this.#publisher.publish(tracked, version) }))
    return { published: group.map((one) => this.#publishedIfSo(one)) }
  }

  async wait ({ blob, version, waitMs }: VersionRequest<'wait'>, { signal }: RequestContext): Promise<VersionAnswer<'wait'>> {
    const tracked = this.#histories.get(blob)
    const { history } = tracked
    if (version > history.lastAssigned) throw noSuchVersion(blob, version)
    const deadline = this.#clock.deadline(waitMs, signal)
    try {
      while (!history.isPublished(version)) {
        // Also what failed before is tried again, for as long as somebody waits for it.
        if (history.isPending) await untilAborted(this.#publisher.advance(tracked), deadline.signal)
        else await untilAborted(history.nextChange(), deadline.signal)
      }
      return { published: this.#histories.published({ blob, version }).signed }
    } catch (error) {
      if (deadline.signal.aborted && !signal.aborted) return { published: null }
      throw error
    } finally {
      deadline[Symbol.dispose]()
    }
  }

  async recent ({ blob }: VersionRequest<'recent'>): Promise<VersionAnswer<'recent'>> {
    return { version: await this.#certain(() => this.#histories.latest(blob).signed) }
  }

  async resolve ({ ref, version }: VersionRequest<'resolve'>): Promise<VersionAnswer<'resolve'>> {
    return await this.#certain(() => {
      const latest = this.#histories.latest(this.#names.blobOf(ref))
      if (version === undefined) return { version: latest.signed }
      return { version: this.#histories.published({ blob: latest.version.blob, version }).signed }
    })
  }

  async images ({ after }: VersionRequest<'images'>): Promise<VersionAnswer<'images'>> {
    return await this.#certain(() => {
      const page = new AnswerPage<VersionAnswer<'images'>['images'][number]>()
      for (const { name, shows } of this.#store.namesAfter(after)) {
        const latest = this.#names.shown(shows)?.signed
        if (latest !== undefined && !page.add({ name, latest }, latest)) break
      }
      return { images: page.rows }
    })
  }

  async log ({ blob, from }: VersionRequest<'log'>): Promise<VersionAnswer<'log'>> {
    const latest = await this.#certain(() => this.#histories.latest(blob).version.version)
    const page = new AnswerPage<Uint8Array>()
    for (const signed of this.#store.publishedFrom(blob, from, Math.min(PAGE_ROWS_MAX, Math.max(0, latest + 1 - from)))) {
      if (!page.add(signed, signed)) break
    }
    return { versions: page.rows }
  }

  async outcome ({ requestId }: VersionRequest<'outcome'>): Promise<VersionAnswer<'outcome'>> {
    await this.#underWay.get(requestId)?.answer.catch(() => {}) // what is not durable yet is no outcome
    const entry = this.#store.request(requestId)
    if (entry === undefined) return { assigned: null }
    const { blob, version } = entry
    const { history, fencing } = this.#histories.get(blob)
    const aborted = history.isFenced(version)
    if (aborted) await fencing
    return { assigned: { blob, version, complete: history.isComplete(version), aborted } }
  }

  /** Concurrent repeats of a request share one answer; later ones find what was stored. A group's members are requests of their own. */
  async #once<T> (op: string, requestIds: readonly string[], work: () => Promise<T>): Promise<T> {
    for (const requestId of requestIds) {
      const underWay = this.#underWay.get(requestId)
      if (underWay !== undefined && underWay.op !== op) throw usedOtherwise(requestId)
      if (underWay !== undefined) return await (underWay.answer as Promise<T>)
    }
    const answer = work().finally(() => { for (const requestId of requestIds) this.#underWay.delete(requestId) })
    for (const requestId of requestIds) this.#underWay.set(requestId, { op, answer })
    return await answer
  }

  /** What `read` says once nothing that it needs is in doubt. It may be called more than once, and changes nothing before it is certain. */
  async #certain<T> (read: () => T): Promise<T> {
    for (;;) {
      try {
        return read()
      } catch (error) {
        if (!(error instanceof InDoubt)) throw error
        const { tracked } = error
        await this.#publisher.advance(tracked).catch((reason: unknown) => { throw stillInDoubt(tracked.history.blob, reason) })
      }
    }
  }

  #known (requestId: string, op: RequestEntry['op']): VersionId | undefined {
    const entry = this.#store.request(requestId)
    if (entry !== undefined && entry.op !== op) throw usedOtherwise(requestId)
    return entry
  }

  /** What the members were assigned, in one write: all are known or none is. ERR_USAGE when that was not a group of so many. */
  #knownGroup (requestId: string, count: number): VersionId[] | undefined {
    checkMemberCount(count)
    const entries = Array.from({ length: count }, (_, at) => this.#store.request(memberRequestId(requestId, at)))
    const known = entries.filter((entry) => entry !== undefined)
    if (known.length === 0) return undefined
    const membersOf = ({ blob, version }: VersionId): number | undefined => this.#histories.assigned(this.#histories.get(blob), version).members
    if (known.length < count || known.some((id) => membersOf(id) !== count)) throw usedOtherwise(requestId)
    return known
  }

  async #createNew ({ requestId, of, name }: VersionRequest<'create'>, writer: PeerId): Promise<VersionId> {
    const { id, written } = await this.#certain(() => {
      const { id, operations, enter } = this.#planNew(of, { requestId, writer, writerKey: this.#signer.publicKey }, { name })
      return { id, written: enter().writes.write([...operations, putRequest(requestId, { ...id, op: 'create' })]) }
    })
    await written
    return id
  }

  async #assignNew (request: Assigning): Promise<VersionId> {
    const { id, written } = await this.#certain(() => {
      const { id, operations, enter } = this.#plan(request)
      return { id, written: enter().writes.write([...operations, putRequest(request.author.requestId, { ...id, op: 'assign' })]) }
    })
    this.#upkeep.watch(id.blob)
    await written
    return id
  }

  /** All that can stand against one of them is found before anything changes; then all of it does, and goes to disk in one write. */
  async #assignGroup (requests: readonly Assigning[]): Promise<VersionId[]> {
    const { ids, written } = await this.#certain(() => {
      const plans = requests.map((request, at) => ofMember(request.target, at, () => this.#plan(request)))
      const inFlight = (of: keyof Plan['inFlight']): number => plans.reduce((sum, plan) => sum + plan.inFlight[of], 0)
      if (inFlight('versions') > GROUP_IN_FLIGHT_VERSIONS_MAX || inFlight('extents') > GROUP_IN_FLIGHT_EXTENTS_MAX) {
        throw new P2pvmError('ERR_UNAVAILABLE', 'too many writes to the blobs of the group are in flight')
      }
      const parts = plans.map(({ id, operations, enter }, at) => ({
        queue: enter().writes, operations: [...operations, putRequest(requests[at]!.author.requestId, { ...id, op: 'assign' })]
      }))
      const names = requests.flatMap(({ target }) => target.kind === 'blob' || target.name === undefined ? [] : [target.name])
      return { ids: plans.map(({ id }) => id), written: this.#names.reserve(names, async () => { await WriteQueue.writeJointly(parts) }) }
    })
    for (const { blob } of ids) this.#upkeep.watch(blob)
    await written
    return ids
  }

  #plan ({ target, change, author }: Assigning): Plan {
    if (target.kind !== 'blob') return this.#planNew(target, author, { name: target.name, change })
    this.#histories.latest(target.blob) // ERR_NOT_FOUND
    const { history } = this.#histories.get(target.blob)
    const planned = history.plan(change, author, target.expectedBase)
    const id = { blob: target.blob, version: planned.version }
    return {
      id,
      operations: putAssigned(id, planned.assigned),
      inFlight: history.inFlight,
      enter: () => {
        const tracked = this.#histories.get(target.blob)
        tracked.history.assign(planned, this.#clock.monotonic())
        return tracked
      }
    }
  }

  /** A new blob with version 0, and, when there is a change, version 1 assigned: in one atomic write with the name. */
  #planNew (origin: Origin, author: Author, { name, change }: { name?: string | undefined, change?: Change }): Plan {
    if (name !== undefined) this.#names.checkIsFree(checkImageName(name))
    const source = origin.kind === 'clone' ? this.#histories.published(origin.source).version : { ...origin, size: 0, root: null }
    const inherited = origin.kind === 'clone' ? this.#histories.get(origin.source.blob).history.exceptionsUpTo(origin.source.version) : []
    const { size, chunkSize, fanOut, root } = source
    const blob = randomBlobId(this.#random)
    const first: Assigned = { ...author, base: 0, extents: [], sizeBefore: size, sizeAfter: size }
    const completion: Completion = {
      timeMs: Math.floor(this.#clock.now()), message: '', bytesChanged: 0, attempt: FIRST_ATTEMPT, root, parent: origin.kind === 'clone' ? origin.source : null
    }
    const nowMs = this.#clock.monotonic()
    const history = new BlobHistory(blob, { geometry: { chunkSize, fanOut }, inherited, aborted: [], published: undefined, open: [] }, nowMs)
    history.begin(first, completion, nowMs)
    const operations: Operation[] = [
      putBlob(blob, { chunkSize, fanOut }), ...putAssigned({ blob, version: 0 }, first, completion)
    ]
    if (inherited.length > 0) operations.push(putInherited(blob, inherited))
    const id = { blob, version: change === undefined ? 0 : 1 }
    if (change !== undefined) {
      const planned = history.plan(change, author)
      history.assign(planned, nowMs)
      operations.push(...putAssigned(id, planned.assigned))
    }
    if (name !== undefined) operations.push(putName(name, id))
    return { id, operations, inFlight: { versions: 0, extents: 0 }, enter: () => this.#histories.add(history) }
  }

  #completionOf ({ blob, version, message, bytesChanged }: Pick<VersionRequest<'complete'>, 'blob' | 'version' | 'message' | 'bytesChanged'>): Completion {
    return {
      timeMs: Math.floor(this.#clock.now()), message, bytesChanged, attempt: FIRST_ATTEMPT, root: { blob, version }, parent: { blob, version: version - 1 }
    }
  }

  /** A sign of life of all of them. ERR_CONFLICT, durably so, when it comes too late for one. */
  async #heard (...versions: readonly TrackedVersion[]): Promise<void> {
    const fenced = versions.find(({ tracked, version }) => tracked.history.isFenced(version))
    if (fenced !== undefined) {
      await fenced.tracked.fencing
      throw writerFenced(fenced.tracked.history.blob, fenced.version)
    }
    for (const { tracked, version } of versions) tracked.history.renew(version, this.#clock.monotonic())
  }

  /** What is due of a blob unasked: a step of `Upkeep`. */
  async #bringForward (blob: BlobId): Promise<number | undefined> {
    if (!this.#histories.has(blob)) return undefined // its first write failed
    const tracked = this.#histories.get(blob)
    await this.#publisher.abortExpired(tracked)
    await this.#publisher.advance(tracked)
    return tracked.history.leaseLeftMs(this.#clock.monotonic())
  }

  #assignment (tracked: Tracked, version: number): VersionAnswer<'assign'> {
    const { blob } = tracked.history
    const { base, extents, sizeBefore, sizeAfter, writerKey } = this.#histories.assigned(tracked, version)
    const { signature } = certify({ blob, version, attempt: FIRST_ATTEMPT, writerKey }, this.#signer)
    const inFlight = Array.from({ length: version - base - 1 }, (_, at) => {
      const one = this.#histories.assigned(tracked, base + 1 + at)
      return { version: base + 1 + at, extents: [...one.extents], sizeBefore: one.sizeBefore, sizeAfter: one.sizeAfter }
    })
    return { blob, version, base: this.#histories.published({ blob, version: base }).signed, extents: [...extents], sizeBefore, sizeAfter, inFlight, certificate: signature }
  }

  /** ERR_NOT_ALLOWED. */
  #checkAssignedTo (requestId: string, tracked: Tracked, version: number): void {
    if (this.#histories.assigned(tracked, version).requestId !== requestId) throw assignedOtherwise(tracked.history.blob, version)
  }

  #publishedIfSo ({ tracked: { history }, version }: TrackedVersion): Uint8Array | null {
    return history.isPublished(version) ? this.#histories.published({ blob: history.blob, version }).signed : null
  }
}
