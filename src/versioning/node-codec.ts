/**
 * Bytes of tree nodes and publication records: deterministic CBOR, so that a repeated write of one name writes the same value.
 *
 *     node         [1, blob (10 bytes), version, level, index, entries]                 of attempt 1
 *                  [2, blob, version, level, index, entries, attempt]                   of any other
 *     entries      of a leaf: digest (32 bytes) | null (a hole) | version ("see my slot in your blob's leaf of that version")
 *                  of an inner node: version (of the same blob) | [blob, version] | null (nothing was ever written there)
 *     publication  [1, blob, version, size, sizeBefore, chunkSize, fanOut, root, parent, timeMs, writer, message, bytesChanged, extents]
 *                  [2, …the same…, attempt, exceptions]   when the attempt is not 1, or there are exceptions
 *     root, parent [blob, version] | null
 *     extents      [offset, size, offset, size, …]
 *     exceptions   [[blob, [version, attempt, version, attempt, …]], …]   versions, up to this one and of those that the blob was cloned
 *                  from, whose counting attempt is not 1
 *
 * Entries end with the last one that is not null. What is decoded is checked: a node must bear the name under which it was found, and links
 * only lead to versions that came before (or, from an inner node, to its own), so that no chain of them can be a circle.
 */
import assert from 'node:assert/strict'
import { CHUNK_BYTES_MAX, CHUNK_BYTES_MIN } from '../protocols/cid.ts'
import { decodeCbor, encodeCbor } from '../protocols/codec.ts'
import { array, bytes, type Decoder, nullable, oneOf, string, tuple, uint } from '../protocols/decode.ts'
import { P2pvmError } from '../protocols/errors.ts'
import { MESSAGE_CHARACTERS_MAX } from '../protocols/version-protocol.ts'
import { type Exception, EXCEPTIONS_MAX, FIRST_ATTEMPT } from './attempts.ts'
import { BLOB_ID_BYTES, blobIdOfBytes, bytesOfBlobId } from './blob-id.ts'
import type { BlobId, Extent, Version, VersionId } from './blobs.ts'
import { EXTENTS_MAX } from './extents.ts'
import { BLOB_BYTES_MAX, FAN_OUT_MAX, FAN_OUT_MIN, type NodeRef } from './tree-names.ts'

const FORMAT = 1
/** With attempts. What has none to tell of is in the first format. */
const FORMAT_ATTEMPTS = 2

/** Digest of a chunk, a hole, or the version of this blob in whose leaf of the same place the slot is found. */
export type Slot = Uint8Array | number | null

export interface LeafNode extends NodeRef {
  readonly kind: 'leaf'
  readonly slots: readonly Slot[]
}

export interface InnerNode extends NodeRef {
  readonly kind: 'inner'
  /** Who last wrote in each child's range, so far as this version knows. */
  readonly children: ReadonlyArray<VersionId | null>
}

export type TreeNode = LeafNode | InnerNode

/** A publication record: the version, what is needed to compute the names that it wrote, and the attempts to read it by. */
export interface PublicationRecord {
  readonly version: Version
  readonly sizeBefore: number
  readonly extents: readonly Extent[]
  /** `version.exceptions` of them, those of one blob together. */
  readonly exceptions: readonly Exception[]
}

const blobBytes = bytes(BLOB_ID_BYTES)
const link = tuple(blobBytes, uint())
const digest = bytes(32)

const slot: Decoder<Slot> = (value, what) =>
  value === null ? null : typeof value === 'number' ? uint()(value, what) : digest(value, what)
const child: Decoder<number | [Uint8Array, number] | null> = (value, what) =>
  value === null ? null : typeof value === 'number' ? uint()(value, what) : link(value, what)

const nodeOf = <E>(entry: Decoder<E>) => {
  const fields = [blobBytes, uint(), uint(), uint(), array(entry, FAN_OUT_MAX)] as const
  return [tuple(oneOf(FORMAT), ...fields), tuple(oneOf(FORMAT_ATTEMPTS), ...fields, uint())] as const
}
const [leaf, leafOfAttempt] = nodeOf(slot)
const [inner, innerOfAttempt] = nodeOf(child)

const publicationFields = [
  blobBytes, uint(), uint(), uint(), uint(), uint(), nullable(link), nullable(link), uint(), string(128),
  string(MESSAGE_CHARACTERS_MAX), uint(), array(uint(), 2 * EXTENTS_MAX)
] as const
const exceptionList = array(tuple(blobBytes, array(uint(), 2 * EXCEPTIONS_MAX)), EXCEPTIONS_MAX)
const publication = tuple(oneOf(FORMAT), ...publicationFields)
const publicationOfAttempt = tuple(oneOf(FORMAT_ATTEMPTS), ...publicationFields, uint(), exceptionList)

export function encodeNode (node: TreeNode, attempt: number): Uint8Array {
  const entries = node.kind === 'leaf'
    ? node.slots
    : node.children.map((to) => to === null ? null : to.blob === node.blob ? to.version : encodeLink(to))
  const used = entries.findLastIndex((entry) => entry !== null) + 1
  const fields = [bytesOfBlobId(node.blob), node.version, node.level, node.index, entries.slice(0, used)]
  return encodeCbor(attempt === FIRST_ATTEMPT ? [FORMAT, ...fields] : [FORMAT_ATTEMPTS, ...fields, attempt])
}

/** ERR_PROTOCOL when the bytes are no node, or another one. */
export function decodeNode (value: Uint8Array, expected: NodeRef, attempt: number): TreeNode {
  const decoded = decodeCbor(value)
  const { blob, version, level, index } = expected
  const decode = attempt === FIRST_ATTEMPT ? (level === 0 ? leaf : inner) : (level === 0 ? leafOfAttempt : innerOfAttempt)
  const [, ownBlob, ownVersion, ownLevel, ownIndex, entries, ownAttempt = FIRST_ATTEMPT] = decode(decoded, 'tree node')
  check(ownAttempt === attempt, 'a node of another attempt')
  check(blobIdOfBytes(ownBlob) === blob && ownVersion === version && ownLevel === level && ownIndex === index, 'a node of another name')
  check(entries.at(-1) !== null, 'a node with nothing at its end')
  const place = { blob, version, level, index }
  if (level === 0) {
    const slots = entries as Slot[]
    check(slots.every((one) => typeof one !== 'number' || one < version), 'a leaf that links forward')
    return { ...place, kind: 'leaf', slots }
  }
  const children = (entries as Array<ReturnType<typeof child>>).map((one) => {
    if (one === null) return null
    const to = typeof one === 'number' ? { blob, version: one } : decodeLink(one)
    check(to.blob !== blob || to.version <= version, 'a node that links forward')
    return to
  })
  return { ...place, kind: 'inner', children }
}

export function encodePublication ({ version: of, sizeBefore, extents, exceptions }: PublicationRecord): Uint8Array {
  assert(exceptions.length === of.exceptions && exceptions.length <= EXCEPTIONS_MAX, 'exceptions are counted')
  const fields = [
    bytesOfBlobId(of.blob), of.version, of.size, sizeBefore, of.chunkSize, of.fanOut,
    of.root === null ? null : encodeLink(of.root), of.parent === null ? null : encodeLink(of.parent),
    of.timeMs, of.writer, of.message, of.bytesChanged, extents.flatMap(({ offset, size }) => [offset, size])
  ]
  if (of.attempt === FIRST_ATTEMPT && exceptions.length === 0) return encodeCbor([FORMAT, ...fields])
  return encodeCbor([FORMAT_ATTEMPTS, ...fields, of.attempt, encodeExceptions(exceptions)])
}

/** ERR_PROTOCOL when the bytes are no publication record, or another one. */
export function decodePublication (value: Uint8Array, expected: VersionId): PublicationRecord {
  const decoded = decodeCbor(value)
  const hasAttempts = Array.isArray(decoded) && decoded[0] === FORMAT_ATTEMPTS
  const [
    , blob, version, size, sizeBefore, chunkSize, fanOut, root, parent, timeMs, writer, message, bytesChanged, numbers, attempt = FIRST_ATTEMPT, rows = []
  ] = (hasAttempts ? publicationOfAttempt : publication)(decoded, 'publication record')
  const exceptions = decodeExceptions(rows)
  check(blobIdOfBytes(blob) === expected.blob && version === expected.version, 'a publication record of another name')
  check(isPowerOfTwo(chunkSize, CHUNK_BYTES_MIN, CHUNK_BYTES_MAX) && isPowerOfTwo(fanOut, FAN_OUT_MIN, FAN_OUT_MAX), 'a geometry that cannot be')
  check(size <= BLOB_BYTES_MAX && sizeBefore <= size, 'a size that cannot be')
  check(numbers.length % 2 === 0, 'half an extent')
  return {
    version: {
      ...expected, size, chunkSize, fanOut, timeMs, writer, message, bytesChanged, attempt, exceptions: exceptions.length,
      root: root === null ? null : decodeLink(root), parent: parent === null ? null : decodeLink(parent)
    },
    sizeBefore,
    extents: Array.from({ length: numbers.length / 2 }, (_, at) => ({ offset: numbers[2 * at]!, size: numbers[2 * at + 1]! })),
    exceptions
  }
}

/** Neighbours of one blob share its id. */
export function encodeExceptions (exceptions: readonly Exception[]): unknown[] {
  const rows: Array<{ readonly blob: BlobId, readonly numbers: number[] }> = []
  for (const { blob, version, attempt } of exceptions) {
    if (rows.at(-1)?.blob !== blob) rows.push({ blob, numbers: [] })
    rows.at(-1)!.numbers.push(version, attempt)
  }
  return rows.map(({ blob, numbers }) => [bytesOfBlobId(blob), numbers])
}

/** ERR_PROTOCOL. Of a value out of CBOR. */
export function decodeExceptions (value: unknown): Exception[] {
  const exceptions = exceptionList(value, 'exceptions').flatMap(([bytes, numbers]) => {
    check(numbers.length % 2 === 0, 'half an exception')
    const blob = blobIdOfBytes(bytes)
    return Array.from({ length: numbers.length / 2 }, (_, at) => ({ blob, version: numbers[2 * at]!, attempt: numbers[2 * at + 1]! }))
  })
  check(exceptions.length <= EXCEPTIONS_MAX, 'too many exceptions')
  return exceptions
}

function encodeLink ({ blob, version }: VersionId): [Uint8Array, number] {
  return [bytesOfBlobId(blob), version]
}

function decodeLink ([blob, version]: readonly [Uint8Array, number]): VersionId {
  return { blob: blobIdOfBytes(blob), version }
}

function isPowerOfTwo (value: number, min: number, max: number): boolean {
  return value >= min && value <= max && (value & (value - 1)) === 0
}

function check (right: boolean, what: string): asserts right {
  if (!right) throw new P2pvmError('ERR_PROTOCOL', what)
}
