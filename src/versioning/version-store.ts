/**
 * What the version manager keeps: the layout of its keys and the bytes behind them. One key per version and fact, so that nothing
 * grows with the length of a history, and no history is rewritten.
 *
 *     vm/blob/<blob>              geometry                      written once
 *     vm/assigned/<blob>/<nr>     who was assigned what         written once
 *     vm/aborted/<blob>/<nr>      the attempt that counts       written once, when it is not 1
 *     vm/inherited/<blob>         exceptions of a clone         written once, when its source has some
 *     vm/open/<blob>/<nr>         null; how it ended            from assigning until published; from completing on
 *     vm/published/<blob>/<nr>    the signed header             written once
 *     vm/request/<id>             what the request was given    written once
 *     vm/name/<name>              blob and version that shows   written once, and again when that version was aborted
 *
 * The publication record of a complete version follows, byte for byte, from what was assigned, how it ended, the exceptions and the
 * headers of those before it. Versions are published in order, so those that are open are the last ones: which is published follows from the keys alone.
 * Not for rules: `blob-history.ts` and `version-manager.ts` have those.
 */
import assert from 'node:assert/strict'
import { decodeCbor, encodeCbor } from '../protocols/codec.ts'
import { array, bytes, type Decoder, nullable, oneOf, record, string, tuple, uint } from '../protocols/decode.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { KeyValueStore } from '../protocols/seams.ts'
import { PUBLIC_KEY_BYTES } from '../protocols/signatures.ts'
import { MESSAGE_CHARACTERS_MAX } from '../protocols/version-protocol.ts'
import type { Exception } from './attempts.ts'
import type { BlobId, Extent, VersionId } from './blobs.ts'
import { EXTENTS_MAX } from './extents.ts'
import { decodeExceptions, decodeHeader, encodeExceptions, hashOfSigned, type Header } from './publication-codec.ts'
import type { Geometry } from './tree-names.ts'

export type Operation = Parameters<KeyValueStore['write']>[0][number]

/** What a version was assigned. */
export interface Assigned {
  readonly requestId: string
  readonly writer: string // peer id
  /** Raw ed25519, of whoever may write its nodes. */
  readonly writerKey: Uint8Array
  /** The latest published version at that time. */
  readonly base: number
  readonly extents: readonly Extent[]
  readonly sizeBefore: number
  readonly sizeAfter: number
  /** Of a member of a group: how many there are. */
  readonly members?: number
}

/** Whose assignment it is. */
export type Author = Pick<Assigned, 'requestId' | 'writer' | 'writerKey' | 'members'>

/** How a version ended: what its publication record says beside what was assigned. */
export interface Completion {
  readonly timeMs: number
  readonly message: string
  readonly bytesChanged: number
  readonly attempt: number
  readonly root: VersionId | null
  readonly parent: VersionId | null
}

export interface RequestEntry extends VersionId {
  readonly op: 'create' | 'assign'
}

/** A version whose writer died. */
export interface Aborted {
  readonly version: number
  readonly attempt: number
  /** Of the blob, bytes. */
  readonly sizeBefore: number
}

/** A blob's end: the latest published version, and those after it. */
export interface StoredHistory {
  readonly geometry: Geometry
  /** Exceptions of what it was cloned from. */
  readonly inherited: readonly Exception[]
  /** Of all versions, ascending. */
  readonly aborted: readonly Aborted[]
  readonly published: Header | undefined // before version 0 is replicated
  readonly open: ReadonlyArray<{ readonly version: number, readonly assigned: Assigned, readonly complete: Completion | undefined }>
}

/** Decimal digits of a version number in a key, so that keys are in the order of numbers. */
const VERSION_DIGITS = 12
/** The character after '/': the end of what begins with a prefix. */
const AFTER_SLASH = '0'
/** Not in a group. */
const ALONE = 0

const decodeGeometry = record({ chunkSize: uint(), fanOut: uint() })
const decodeAssigned = tuple(string(64), string(128), bytes(PUBLIC_KEY_BYTES), uint(), uint(), uint(), array(uint(), 2 * EXTENTS_MAX), uint())
const decodeAborted = tuple(uint(), uint())
const decodeVersionId = record({ blob: string(16), version: uint() })
const decodeLink = nullable(tuple(string(16), uint()))
const decodeOpen = nullable(tuple(uint(), string(MESSAGE_CHARACTERS_MAX), uint(), uint(), decodeLink, decodeLink))
const decodeRequest = tuple(string(16), uint(), oneOf('create', 'assign'))

export class VersionStore {
  readonly #store: KeyValueStore
  /** In no write yet, by key. */
  readonly #deferred = new Map<string, Uint8Array | null>()

  constructor (store: KeyValueStore) {
    this.#store = store
  }

  /** All or none, and what was deferred with it; resolves when it survives a power cut. */
  async write (operations: readonly Operation[]): Promise<void> {
    const deferred = Array.from(this.#deferred, ([key, value]) => ({ key, value }))
    this.#deferred.clear()
    try {
      await this.#store.write([...deferred, ...operations])
    } catch (error) {
      for (const { key, value } of deferred) this.#deferred.set(key, value)
      throw error
    }
  }

  /** For what follows from the rest and may be lost in a crash: goes along with the next write. Until then what is published is seen here alone. */
  defer (operations: readonly Operation[]): void {
    for (const { key, value } of operations) this.#deferred.set(key, value)
  }

  /** Writes what is still deferred. */
  async flush (): Promise<void> {
    if (this.#deferred.size > 0) await this.write([])
  }

  history (blob: BlobId): StoredHistory | undefined {
    const geometry = this.#read(`vm/blob/${blob}`, decodeGeometry)
    if (geometry === undefined) return undefined
    const open = this.#versions('open', blob).map(({ version, value }) => {
      const assigned = this.assigned(blob, version)
      if (assigned === undefined) throw new P2pvmError('ERR_CORRUPT', `version ${version} of ${blob} is open and was never assigned`, { blob, version })
      return { version, assigned, complete: stored(() => completionOf(value)) }
    })
    const aborted = this.#versions('aborted', blob).map(({ version, value }) => {
      const [attempt, sizeBefore] = stored(() => decodeAborted(decodeCbor(value), 'aborted'))
      return { version, attempt, sizeBefore }
    })
    const inherited = this.#read(`vm/inherited/${blob}`, decodeExceptions) ?? []
    const last = open[0] === undefined ? this.#lastAssigned(blob) : open[0].version - 1
    return { geometry, inherited, aborted, published: last < 0 ? undefined : this.published({ blob, version: last }), open }
  }

  assigned (blob: BlobId, version: number): Assigned | undefined {
    const entry = this.#read(versionKey('assigned', blob, version), decodeAssigned)
    if (entry === undefined) return undefined
    const [requestId, writer, writerKey, base, sizeBefore, sizeAfter, numbers, members] = entry
    const extents = Array.from({ length: numbers.length / 2 }, (_, at) => ({ offset: numbers[2 * at]!, size: numbers[2 * at + 1]! }))
    return { requestId, writer, writerKey, base, sizeBefore, sizeAfter, extents, ...members === ALONE ? {} : { members } }
  }

  published (id: VersionId): Header | undefined {
    const signed = this.#signed(id)
    return signed === undefined ? undefined : stored(() => decodeHeader(signed))
  }

  /** Of a published version's record, as links have it. */
  publishedHash (id: VersionId): string | undefined {
    const signed = this.#signed(id)
    return signed === undefined ? undefined : hashOfSigned(signed)
  }

  /** Signed headers of published versions from `from` on, at most `limit`. */
  * publishedFrom (blob: BlobId, from: number, limit: number): Generator<Uint8Array> {
    for (let version = from; version < from + limit; version++) {
      const signed = this.#signed({ blob, version })
      if (signed === undefined) return
      yield signed
    }
  }

  request (requestId: string): RequestEntry | undefined {
    const entry = this.#read(`vm/request/${requestId}`, decodeRequest)
    return entry === undefined ? undefined : { blob: entry[0], version: entry[1], op: entry[2] }
  }

  name (name: string): VersionId | undefined {
    return this.#read(`vm/name/${name}`, decodeVersionId)
  }

  * namesAfter (after: string): Generator<{ name: string, shows: VersionId }> {
    const prefix = 'vm/name/'
    // The next string after `after` is the same with a zero at its end.
    for (const { key, value } of this.#store.range({ start: `${prefix}${after}\0`, end: `vm/name${AFTER_SLASH}` })) {
      yield { name: key.slice(prefix.length), shows: stored(() => decodeVersionId(decodeCbor(value))) }
    }
  }

  /** Ids that begin with `prefix`, in order, at most `limit`. */
  blobs (prefix: string, limit: number): BlobId[] {
    const start = `vm/blob/${prefix}`
    // '~' is behind every character of an id.
    return Array.from(this.#store.range({ start, end: `${start}~`, limit }), ({ key }) => key.slice('vm/blob/'.length))
  }

  blobsWithOpenVersions (): BlobId[] {
    const blobs = new Set<BlobId>()
    for (const { key } of this.#store.range({ start: 'vm/open/', end: `vm/open${AFTER_SLASH}` })) blobs.add(key.split('/')[2]!)
    return [...blobs]
  }

  #signed ({ blob, version }: VersionId): Uint8Array | undefined {
    const key = versionKey('published', blob, version)
    return this.#deferred.get(key) ?? this.#store.get(key)
  }

  #lastAssigned (blob: BlobId): number {
    const [last] = this.#store.range({ start: `vm/assigned/${blob}/`, end: `vm/assigned/${blob}${AFTER_SLASH}`, limit: 1, reverse: true })
    return last === undefined ? -1 : versionOfKey(last.key)
  }

  #versions (kind: string, blob: BlobId): Array<{ version: number, value: Uint8Array }> {
    const entries = this.#store.range({ start: `vm/${kind}/${blob}/`, end: `vm/${kind}/${blob}${AFTER_SLASH}` })
    return Array.from(entries, ({ key, value }) => ({ version: versionOfKey(key), value }))
  }

  #read<T> (key: string, decoder: Decoder<T>): T | undefined {
    const value = this.#store.get(key)
    return value === undefined ? undefined : stored(() => decoder(decodeCbor(value), key))
  }
}

export function putBlob (blob: BlobId, { chunkSize, fanOut }: Geometry): Operation {
  return { key: `vm/blob/${blob}`, value: encodeCbor({ chunkSize, fanOut }) }
}

/** Assigned and not published yet. */
export function putAssigned (id: VersionId, assigned: Assigned, complete: Completion | null = null): Operation[] {
  const { requestId, writer, writerKey, base, sizeBefore, sizeAfter, extents, members = ALONE } = assigned
  const numbers = extents.flatMap(({ offset, size }) => [offset, size])
  const value = encodeCbor([requestId, writer, writerKey, base, sizeBefore, sizeAfter, numbers, members])
  return [{ key: versionKey('assigned', id.blob, id.version), value }, putOpen(id, complete)]
}

export function putAborted (blob: BlobId, { version, attempt, sizeBefore }: Aborted): Operation {
  return { key: versionKey('aborted', blob, version), value: encodeCbor([attempt, sizeBefore]) }
}

export function putInherited (blob: BlobId, exceptions: readonly Exception[]): Operation {
  return { key: `vm/inherited/${blob}`, value: encodeCbor(encodeExceptions(exceptions)) }
}

/** Assigned, and complete unless that is null; not published yet. */
export function putOpen ({ blob, version }: VersionId, complete: Completion | null): Operation {
  if (complete === null) return { key: versionKey('open', blob, version), value: encodeCbor(null) }
  const { timeMs, message, bytesChanged, attempt, root, parent } = complete
  return { key: versionKey('open', blob, version), value: encodeCbor([timeMs, message, bytesChanged, attempt, linkTo(root), linkTo(parent)]) }
}

function linkTo (to: VersionId | null): [BlobId, number] | null {
  return to === null ? null : [to.blob, to.version]
}

function completionOf (value: Uint8Array): Completion | undefined {
  const entry = decodeOpen(decodeCbor(value), 'open')
  if (entry === null) return undefined
  const [timeMs, message, bytesChanged, attempt, root, parent] = entry
  return { timeMs, message, bytesChanged, attempt, root: linkOf(root), parent: linkOf(parent) }
}

function linkOf (link: readonly [BlobId, number] | null): VersionId | null {
  return link === null ? null : { blob: link[0], version: link[1] }
}

/** Follows from the rest, once all before it are published: may be deferred. */
export function putPublished ({ version: { blob, version }, signed }: Header): Operation[] {
  return [
    { key: versionKey('published', blob, version), value: signed },
    { key: versionKey('open', blob, version), value: null }
  ]
}

export function putRequest (requestId: string, { blob, version, op }: RequestEntry): Operation {
  return { key: `vm/request/${requestId}`, value: encodeCbor([blob, version, op]) }
}

export function putName (name: string, { blob, version }: VersionId): Operation {
  return { key: `vm/name/${name}`, value: encodeCbor({ blob, version }) }
}

function versionKey (kind: string, blob: BlobId, version: number): string {
  const digits = String(version).padStart(VERSION_DIGITS, '0')
  assert(digits.length === VERSION_DIGITS, `version number: ${version}`)
  return `vm/${kind}/${blob}/${digits}`
}

function versionOfKey (key: string): number {
  return Number(key.slice(key.lastIndexOf('/') + 1))
}

/** Our own bytes that we cannot read are a damaged disk, not a peer that lies. */
function stored<T> (read: () => T): T {
  try {
    return read()
  } catch (error) {
    throw new P2pvmError('ERR_CORRUPT', `the version manager's store is damaged: ${(error as Error).message}`, {}, error)
  }
}
