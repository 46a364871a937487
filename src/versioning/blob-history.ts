/**
 * One blob's history, as the version manager has it in memory: the rules of assigning, completing and publishing, without I/O.
 * State it owns: the latest published version and all that were assigned after it. Older ones are in the store alone.
 *
 *     assigned ──complete──▶ complete ──its turn, and replicated──▶ published
 *        └──its lease ends──▶ aborted ──its turn, and written anew──▶ complete
 *
 * Version numbers are handed out without gaps. Published is always a beginning of assigned.
 */
import assert from 'node:assert/strict'
import { P2pvmError } from '../protocols/errors.ts'
import { IN_FLIGHT_EXTENTS_MAX, IN_FLIGHT_VERSIONS_MAX, LEASE_MS, type VersionRequest } from '../protocols/version-protocol.ts'
import { ABORTED_ATTEMPT, type Exception, EXCEPTIONS_MAX } from './attempts.ts'
import type { BlobId, Version } from './blobs.ts'
import type { Header, Publication } from './publication-codec.ts'
import { BLOB_BYTES_MAX, chunkCount, type Geometry } from './tree-names.ts'
import type { Aborted, Assigned, Author, Completion, StoredHistory } from './version-store.ts'

interface OpenVersion {
  readonly assigned: Assigned
  /** Of a monotonic clock. */
  leaseEndsMs: number
  /** Its writer's time is over, durably so once it is among the aborted. */
  fenced: boolean
  /** Being made durable. A repeated `complete` joins it: a version ends once, at one time. */
  completing?: Promise<Completion>
  /** Durable. */
  complete?: Completion
}

export type Change = VersionRequest<'assign'>['change']

export interface PlannedVersion {
  readonly version: number
  readonly assigned: Assigned
}

export class BlobHistory {
  readonly blob: BlobId
  readonly geometry: Geometry
  readonly #open = new Map<number, OpenVersion>()
  readonly #inherited: readonly Exception[]
  readonly #aborted = new Map<number, Aborted>()
  #latest: Header | undefined
  /** Up to here all were complete when the history was loaded. */
  readonly #inDoubtTo: number
  #openExtents = 0
  #change = newSignal()

  /** Whatever is open gets a whole new lease, from `nowMs` of a monotonic clock on. */
  constructor (blob: BlobId, { geometry, inherited, aborted, published, open }: StoredHistory, nowMs: number) {
    this.blob = blob
    this.geometry = geometry
    this.#inherited = inherited
    for (const one of aborted) this.#aborted.set(one.version, one)
    this.#latest = published
    for (const { version, assigned, complete } of open) {
      assert.equal(version, this.lastAssigned + 1, 'version numbers have no gaps')
      this.#add(version, assigned, nowMs)
      const added = this.#open.get(version)!
      added.fenced = this.#aborted.has(version)
      if (complete !== undefined) added.complete = complete
    }
    const incomplete = open.find(({ complete }) => complete === undefined)
    this.#inDoubtTo = (incomplete?.version ?? this.lastAssigned + 1) - 1
  }

  /** The latest published version; undefined while version 0 is not replicated. */
  get latest (): Version | undefined {
    return this.#latest?.version
  }

  get latestHeader (): Header | undefined {
    return this.#latest
  }

  get lastPublished (): number {
    return this.#latest?.version.version ?? -1
  }

  get lastAssigned (): number {
    return this.lastPublished + this.#open.size
  }

  /** Nothing is under way: what is in memory is in the store. */
  get settled (): boolean {
    return this.#open.size === 0
  }

  /**
   * Of a history that was loaded: versions were complete, and their turn had come, but not that they are published: which is made durable
   * later than it is told. Whether anybody saw them is not known; so nothing older may be shown before they are published, again or at last.
   */
  get inDoubt (): boolean {
    return this.lastPublished < this.#inDoubtTo
  }

  isPublished (version: number): boolean {
    return version <= this.lastPublished
  }

  isComplete (version: number): boolean {
    return this.isPublished(version) || this.#open.get(version)?.complete !== undefined
  }

  /** Durably so. */
  isAborted (version: number): boolean {
    return this.#aborted.has(version)
  }

  /** Aborted, or about to be. */
  isFenced (version: number): boolean {
    return this.isAborted(version) || this.#open.get(version)?.fenced === true
  }

  /** Of a version that is not published. */
  assignedOf (version: number): Assigned | undefined {
    return this.#open.get(version)?.assigned
  }

  /** How much a version that is assigned now finds in flight. */
  get inFlight (): { readonly versions: number, readonly extents: number } {
    return { versions: this.#open.size, extents: this.#openExtents }
  }

  /**
   * What a write is assigned, if it is now: the next version number. Nothing changes before `assign`. ERR_CONFLICT when what `expectedBase` says is not what the write would come upon: another writer was
   * faster, published or not, and is not aborted. ERR_USAGE for extents beyond the size, ERR_UNAVAILABLE when too much is in flight,
   * ERR_NOT_ALLOWED when too many writers of the blob have died.
   */
  plan (change: Change, author: Author, expectedBase?: number): PlannedVersion {
    const sizeBefore = this.#sizeOfLast()
    const assigned = { ...author, base: Math.max(this.lastPublished, 0), sizeBefore, ...this.#placed(change, sizeBefore) }
    if (expectedBase !== undefined && !this.#comesUpon(expectedBase, change, assigned)) throw this.#movedOn(expectedBase)
    const exceptions = this.#inherited.length + this.#aborted.size
    if (exceptions >= EXCEPTIONS_MAX) throw tooManyExceptions(this.blob)
    // Every writer at work may die.
    const atWork = [...this.#open.values()].filter(({ complete, fenced }) => complete === undefined && !fenced).length
    if (
      this.#open.size >= IN_FLIGHT_VERSIONS_MAX || this.#openExtents + assigned.extents.length > IN_FLIGHT_EXTENTS_MAX ||
      exceptions + atWork >= EXCEPTIONS_MAX
    ) {
      throw new P2pvmError('ERR_UNAVAILABLE', `too many writes to ${this.blob} are in flight`, { blob: this.blob })
    }
    return { version: this.lastAssigned + 1, assigned }
  }

  /** What was planned, and nothing has changed since. */
  assign ({ version, assigned }: PlannedVersion, nowMs: number): void {
    assert.equal(version, this.lastAssigned + 1, 'version numbers have no gaps')
    this.#add(version, assigned, nowMs)
  }

  /** Version 0 of a new blob: complete from the beginning. */
  begin (assigned: Assigned, completion: Completion, nowMs: number): void {
    assert.equal(this.lastAssigned, -1, 'a blob begins once')
    this.#add(0, assigned, nowMs)
    this.#open.get(0)!.complete = completion
  }

  /** A sign of life of its writer. Harmless when there is nothing to wait for any more. */
  renew (version: number, nowMs: number): void {
    const open = this.#open.get(version)
    if (open !== undefined) open.leaseEndsMs = nowMs + LEASE_MS
  }

  /** Fences the writers whose leases have ended. From then on they are refused; what becomes of their versions must be made durable now. */
  fenceExpired (nowMs: number): Aborted[] {
    return [...this.#open].filter(([, open]) => hasLease(open) && open.leaseEndsMs <= nowMs).map(([version, open]) => {
      open.fenced = true
      return { version, attempt: ABORTED_ATTEMPT, sizeBefore: open.assigned.sizeBefore }
    })
  }

  /** It is durable that they are. */
  aborted (versions: readonly Aborted[]): void {
    for (const one of versions) this.#aborted.set(one.version, one)
    this.#wake()
  }

  /** Until the next lease ends; undefined when there is none. */
  leaseLeftMs (nowMs: number): number | undefined {
    const ends = [...this.#open.values()].filter(hasLease).map(({ leaseEndsMs }) => leaseEndsMs)
    return ends.length === 0 ? undefined : Math.max(0, Math.min(...ends) - nowMs)
  }

  /** Those up to this version and of what the blob was cloned from. Final once all versions up to it are complete. */
  exceptionsUpTo (last: number): Exception[] {
    const own = [...this.#aborted.values()].filter(({ version }) => version <= last).sort((a, b) => a.version - b.version)
    return [...this.#inherited, ...own.map(({ version, attempt }) => ({ blob: this.blob, version, attempt }))]
  }

  /** Something can be done about the next version, whoever writes: it is complete, or it was aborted. */
  get isPending (): boolean {
    return this.isReady(this.lastPublished + 1) || this.abortedNext !== undefined
  }

  /** The next version to be published, when the version manager has to write it. */
  get abortedNext (): number | undefined {
    const next = this.lastPublished + 1
    return this.isAborted(next) && !this.isComplete(next) ? next : undefined
  }

  /** `makeDurable` is called once per version, however often it is completed. */
  async complete (version: number, completion: () => Completion, makeDurable: (completion: Completion) => Promise<void>): Promise<void> {
    const open = this.#open.get(version)
    if (open === undefined || open.complete !== undefined) return
    open.completing ??= (async () => {
      const made = completion()
      await makeDurable(made)
      open.complete = made
      return made
    })()
    await open.completing
  }

  /** Complete versions whose turn has come, in order, at most `limit`. */
  ready (limit: number): Publication[] {
    const ready: Publication[] = []
    for (let version = this.lastPublished + 1; ready.length < limit; version += 1) {
      const open = this.#open.get(version)
      if (open?.complete === undefined) break
      ready.push(this.#publicationOf(version, open.assigned, open.complete))
    }
    return ready
  }

  /** The version is complete, and all before it are. */
  isReady (version: number): boolean {
    if (this.isPublished(version) || version > this.lastAssigned) return false
    for (let earlier = this.lastPublished + 1; earlier <= version; earlier += 1) {
      if (!this.isComplete(earlier)) return false
    }
    return true
  }

  /** These are replicated: readers may see them. */
  published (headers: readonly Header[]): void {
    for (const header of headers) {
      const { version } = header.version
      assert.equal(version, this.lastPublished + 1, 'versions are published in order')
      this.#openExtents -= this.#open.get(version)!.assigned.extents.length
      this.#open.delete(version)
      this.#latest = header
    }
    this.#wake()
  }

  /** Resolves when something is published or aborted; rejects when the next publication fails. */
  async nextChange (): Promise<void> {
    await this.#change.promise
  }

  publicationFailed (error: unknown): void {
    this.#change.reject(error)
    this.#change = newSignal()
  }

  #publicationOf (version: number, assigned: Assigned, completion: Completion): Publication {
    const { blob, geometry: { chunkSize, fanOut } } = this
    const { sizeBefore, sizeAfter, extents, writer } = assigned
    const exceptions = this.exceptionsUpTo(version)
    return {
      version: { blob, version, size: sizeAfter, chunkSize, fanOut, writer, ...completion, exceptions: exceptions.length }, sizeBefore, extents, exceptions
    }
  }

  #wake (): void {
    this.#change.resolve()
    this.#change = newSignal()
  }

  #add (version: number, assigned: Assigned, nowMs: number): void {
    this.#open.set(version, { assigned, leaseEndsMs: nowMs + LEASE_MS, fenced: false })
    this.#openExtents += assigned.extents.length
  }

  /**
   * Nobody has written since the base but those who were aborted, which changes no byte. The size that one of them was assigned stays,
   * and must not be more than the write asks for.
   */
  #comesUpon (expectedBase: number, change: Change, { sizeBefore, sizeAfter }: Pick<Assigned, 'sizeBefore' | 'sizeAfter'>): boolean {
    if (expectedBase > this.lastAssigned) return false
    for (let version = this.lastAssigned; version > expectedBase; version -= 1) {
      if (!this.isAborted(version)) return false
    }
    const baseSize = this.#aborted.get(expectedBase + 1)?.sizeBefore ?? sizeBefore
    return sizeAfter === (change.kind === 'append' ? baseSize + change.size : Math.max(baseSize, change.size))
  }

  #sizeOfLast (): number {
    return this.#open.get(this.lastAssigned)?.assigned.sizeAfter ?? this.#latest?.version.size ?? 0
  }

  #placed (change: Change, sizeBefore: number): { extents: Assigned['extents'], sizeAfter: number } {
    const sizeAfter = change.kind === 'append' ? sizeBefore + change.size : Math.max(sizeBefore, change.size)
    if (sizeAfter > BLOB_BYTES_MAX) throw new P2pvmError('ERR_USAGE', `a blob has at most ${BLOB_BYTES_MAX} bytes, not ${sizeAfter}`)
    if (change.kind === 'append') return { extents: change.size === 0 ? [] : [{ offset: sizeBefore, size: change.size }], sizeAfter }
    const last = change.extents.at(-1)
    const endMax = chunkCount(sizeAfter, this.geometry) * this.geometry.chunkSize
    if (last !== undefined && last.offset + last.size > endMax) {
      throw new P2pvmError('ERR_USAGE', `a write that ends at ${last.offset + last.size} does not fit a blob of ${sizeAfter} bytes`)
    }
    return { extents: change.extents, sizeAfter }
  }

  #movedOn (expectedBase: number): P2pvmError {
    const { blob, lastAssigned } = this
    const state = lastAssigned === this.lastPublished ? '' : ` (${lastAssigned} is being written)`
    return new P2pvmError('ERR_CONFLICT',
      `${blob} has moved on: its latest version is ${this.lastPublished}${state}, not ${expectedBase}; ` +
      'to keep both, make it a blob of its own: p2pvm clone PATH, or p2pvm commit PATH --as NAME',
      { blob, latest: this.lastPublished, expectedBase, reason: 'moved-on' })
  }
}

/** Its writer is at work. */
function hasLease ({ complete, completing, fenced }: OpenVersion): boolean {
  return complete === undefined && completing === undefined && !fenced
}

function tooManyExceptions (blob: BlobId): P2pvmError {
  return new P2pvmError('ERR_NOT_ALLOWED',
    `${EXCEPTIONS_MAX} writers of ${blob} and of what it was cloned from have died, and no more writes are taken; ` +
    'to go on, make a new image of it: p2pvm export, then p2pvm import', { blob })
}

function newSignal (): PromiseWithResolvers<void> {
  const signal = Promise.withResolvers<void>()
  signal.promise.catch(() => {}) // often nobody waits
  return signal
}
