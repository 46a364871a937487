/**
 * Bytes of tree nodes and publication records: deterministic CBOR, so that a repeated write of one name writes the same value.
 *
 *     node         [1, blob (10 bytes), version, level, index, entries]
 *     entries      of a leaf: digest (32 bytes) | null (a hole) | version ("see my slot in your blob's leaf of that version")
 *                  of an inner node: version (of the same blob) | [blob, version] | null (nothing was ever written there)
 *     publication  [1, blob, version, size, sizeBefore, chunkSize, fanOut, root, parent, timeMs, writer, message, bytesChanged, extents]
 *     root, parent [blob, version] | null
 *     extents      [offset, size, offset, size, …]
 *
 * Entries end with the last one that is not null. What is decoded is checked: a node must bear the name under which it was found, and links
 * only lead to versions that came before (or, from an inner node, to its own), so that no chain of them can be a circle.
 */
import { CHUNK_BYTES_MAX, CHUNK_BYTES_MIN } from '../protocols/cid.ts'
import { decodeCbor, encodeCbor } from '../protocols/codec.ts'
import { array, bytes, type Decoder, nullable, oneOf, string, tuple, uint } from '../protocols/decode.ts'
import { P2pvmError } from '../protocols/errors.ts'
import { MESSAGE_CHARACTERS_MAX } from '../protocols/version-protocol.ts'
import { BLOB_ID_BYTES, blobIdOfBytes, bytesOfBlobId } from './blob-id.ts'
import type { Extent, Version, VersionId } from './blobs.ts'
import { EXTENTS_MAX } from './extents.ts'
import { BLOB_BYTES_MAX, FAN_OUT_MAX, FAN_OUT_MIN, type NodeRef } from './tree-names.ts'

const FORMAT = 1

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

/** A publication record: the version, and what is needed to compute the names that it wrote. */
export interface PublicationRecord {
  readonly version: Version
  readonly sizeBefore: number
  readonly extents: readonly Extent[]
}

const blobBytes = bytes(BLOB_ID_BYTES)
const link = tuple(blobBytes, uint())
const digest = bytes(32)

const slot: Decoder<Slot> = (value, what) =>
  value === null ? null : typeof value === 'number' ? uint()(value, what) : digest(value, what)
const child: Decoder<number | [Uint8Array, number] | null> = (value, what) =>
  value === null ? null : typeof value === 'number' ? uint()(value, what) : link(value, what)

const nodeHead = [oneOf(FORMAT), blobBytes, uint(), uint(), uint()] as const
const leaf = tuple(...nodeHead, array(slot, FAN_OUT_MAX))
const inner = tuple(...nodeHead, array(child, FAN_OUT_MAX))
const publication = tuple(
  oneOf(FORMAT), blobBytes, uint(), uint(), uint(), uint(), uint(), nullable(link), nullable(link), uint(), string(128),
  string(MESSAGE_CHARACTERS_MAX), uint(), array(uint(), 2 * EXTENTS_MAX)
)

export function encodeNode (node: TreeNode): Uint8Array {
  const entries = node.kind === 'leaf'
    ? node.slots
    : node.children.map((to) => to === null ? null : to.blob === node.blob ? to.version : encodeLink(to))
  const used = entries.findLastIndex((entry) => entry !== null) + 1
  return encodeCbor([FORMAT, bytesOfBlobId(node.blob), node.version, node.level, node.index, entries.slice(0, used)])
}

/** ERR_PROTOCOL when the bytes are no node, or another one. */
export function decodeNode (value: Uint8Array, expected: NodeRef): TreeNode {
  const decoded = decodeCbor(value)
  const { blob, version, level, index } = expected
  const [, ownBlob, ownVersion, ownLevel, ownIndex, entries] = level === 0 ? leaf(decoded, 'leaf') : inner(decoded, 'node')
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

export function encodePublication ({ version: of, sizeBefore, extents }: PublicationRecord): Uint8Array {
  return encodeCbor([
    FORMAT, bytesOfBlobId(of.blob), of.version, of.size, sizeBefore, of.chunkSize, of.fanOut,
    of.root === null ? null : encodeLink(of.root), of.parent === null ? null : encodeLink(of.parent),
    of.timeMs, of.writer, of.message, of.bytesChanged, extents.flatMap(({ offset, size }) => [offset, size])
  ])
}

/** ERR_PROTOCOL when the bytes are no publication record, or another one. */
export function decodePublication (value: Uint8Array, expected: VersionId): PublicationRecord {
  const [, blob, version, size, sizeBefore, chunkSize, fanOut, root, parent, timeMs, writer, message, bytesChanged, numbers] =
    publication(decodeCbor(value), 'publication record')
  check(blobIdOfBytes(blob) === expected.blob && version === expected.version, 'a publication record of another name')
  check(isPowerOfTwo(chunkSize, CHUNK_BYTES_MIN, CHUNK_BYTES_MAX) && isPowerOfTwo(fanOut, FAN_OUT_MIN, FAN_OUT_MAX), 'a geometry that cannot be')
  check(size <= BLOB_BYTES_MAX && sizeBefore <= size, 'a size that cannot be')
  check(numbers.length % 2 === 0, 'half an extent')
  return {
    version: {
      ...expected, size, chunkSize, fanOut, timeMs, writer, message, bytesChanged,
      root: root === null ? null : decodeLink(root), parent: parent === null ? null : decodeLink(parent)
    },
    sizeBefore,
    extents: Array.from({ length: numbers.length / 2 }, (_, at) => ({ offset: numbers[2 * at]!, size: numbers[2 * at + 1]! }))
  }
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
