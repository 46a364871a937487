/**
 * One blob's history, as the version manager has it in memory: the rules of assigning, completing and publishing, without I/O.
 * State it owns: the latest published version and all that were assigned after it. Older ones are in the store alone.
 *
 *     assigned ──complete──▶ complete ──its turn, and replicated──▶ published
 *
 * Version numbers are handed out without gaps. Published is always a beginning of assigned.
 */
import assert from 'node:assert/strict'
import { P2pvmError } from '../protocols/errors.ts'
import { IN_FLIGHT_EXTENTS_MAX, IN_FLIGHT_VERSIONS_MAX, type VersionRequest } from '../protocols/version-protocol.ts'
import type { BlobId, Version, VersionId } from './blobs.ts'
import type { PublicationRecord } from './node-codec.ts'
import { BLOB_BYTES_MAX, chunkCount, type Geometry } from './tree-names.ts'
import type { Assigned, StoredHistory } from './version-store.ts'

interface OpenVersion {
  readonly assigned: Assigned
  /** Being made durable. A repeated `complete` joins it: a publication record is made once, with one time. */
  completing?: Promise<PublicationRecord>
  /** Durable. */
  complete?: PublicationRecord
}

export type Change = VersionRequest<'assign'>['change']

export class BlobHistory {
  readonly blob: BlobId
  readonly geometry: Geometry
  readonly #open = new Map<number, OpenVersion>()
  #latest: Version | undefined
  #openExtents = 0
  #change = newSignal()

  constructor (blob: BlobId, { geometry, published, open }: StoredHistory) {
    this.blob = blob
    this.geometry = geometry
    this.#latest = published?.version
    for (const { version, assigned, complete } of open) {
      assert.equal(version, this.lastAssigned + 1, 'version numbers have no gaps')
      this.#add(version, assigned)
      if (complete !== undefined) this.#open.get(version)!.complete = complete
    }
  }

  /** The latest published version; undefined while version 0 is not replicated. */
  get latest (): Version | undefined {
    return this.#latest
  }

  get lastPublished (): number {
    return this.#latest?.version ?? -1
  }

  get lastAssigned (): number {
    return this.lastPublished + this.#open.size
  }

  /** Nothing is under way: what is in memory is in the store. */
  get settled (): boolean {
    return this.#open.size === 0
  }

  isPublished (version: number): boolean {
    return version <= this.lastPublished
  }

  isComplete (version: number): boolean {
    return this.isPublished(version) || this.#open.get(version)?.complete !== undefined
  }

  /** Of a version that is not published. */
  assignedOf (version: number): Assigned | undefined {
    return this.#open.get(version)?.assigned
  }

  /**
   * The next version number. ERR_CONFLICT when `expectedBase` is not the last that was assigned: another writer was faster,
   * published or not. ERR_USAGE for extents beyond the size, ERR_UNAVAILABLE when too much is in flight.
   */
  assign (change: Change, { requestId, writer, expectedBase }: { requestId: string, writer: string, expectedBase?: number | undefined }): VersionId & { assigned: Assigned } {
    if (expectedBase !== undefined && expectedBase !== this.lastAssigned) throw this.#movedOn(expectedBase)
    const sizeBefore = this.#sizeOfLast()
    const assigned = { requestId, writer, base: Math.max(this.lastPublished, 0), sizeBefore, ...this.#placed(change, sizeBefore) }
    if (this.#open.size >= IN_FLIGHT_VERSIONS_MAX || this.#openExtents + assigned.extents.length > IN_FLIGHT_EXTENTS_MAX) {
      throw new P2pvmError('ERR_UNAVAILABLE', `too many writes to ${this.blob} are in flight`, { blob: this.blob })
    }
    const version = this.lastAssigned + 1
    this.#add(version, assigned)
    return { blob: this.blob, version, assigned }
  }

  /** Version 0 of a new blob: complete from the beginning. */
  begin (assigned: Assigned, publication: PublicationRecord): void {
    assert.equal(this.lastAssigned, -1, 'a blob begins once')
    this.#add(0, assigned)
    this.#open.get(0)!.complete = publication
  }

  /** `makeDurable` is called once per version, however often it is completed. */
  async complete (version: number, publication: () => PublicationRecord, makeDurable: (publication: PublicationRecord) => Promise<void>): Promise<void> {
    const open = this.#open.get(version)
    if (open === undefined || open.complete !== undefined) return
    open.completing ??= (async () => {
      const made = publication()
      await makeDurable(made)
      open.complete = made
      return made
    })()
    await open.completing
  }

  /** Complete versions whose turn has come, in order, at most `limit`. */
  ready (limit: number): PublicationRecord[] {
    const ready: PublicationRecord[] = []
    for (let version = this.lastPublished + 1; ready.length < limit; version += 1) {
      const complete = this.#open.get(version)?.complete
      if (complete === undefined) break
      ready.push(complete)
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

  /** These are replicated, and it is durable that they are: readers may see them. */
  published (records: readonly PublicationRecord[]): void {
    for (const { version } of records) {
      assert.equal(version.version, this.lastPublished + 1, 'versions are published in order')
      this.#openExtents -= this.#open.get(version.version)!.assigned.extents.length
      this.#open.delete(version.version)
      this.#latest = version
    }
    this.#change.resolve()
    this.#change = newSignal()
  }

  /** Resolves when something is published; rejects when the next publication fails. */
  async nextPublication (): Promise<void> {
    await this.#change.promise
  }

  publicationFailed (error: unknown): void {
    this.#change.reject(error)
    this.#change = newSignal()
  }

  #add (version: number, assigned: Assigned): void {
    this.#open.set(version, { assigned })
    this.#openExtents += assigned.extents.length
  }

  #sizeOfLast (): number {
    return this.#open.get(this.lastAssigned)?.assigned.sizeAfter ?? this.#latest?.size ?? 0
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
      { blob, latest: this.lastPublished, expectedBase })
  }
}

function newSignal (): PromiseWithResolvers<void> {
  const signal = Promise.withResolvers<void>()
  signal.promise.catch(() => {}) // often nobody waits
  return signal
}
