/**
 * Bytes of tree nodes: deterministic CBOR, so that a repeated write of one name writes the same value.
 *
 *     node         signature ‖ [1, blob (10 bytes), version, attempt, level, index, entries, writer's key, signature of the certificate]
 *                  the first signature is the writer's, over all that follows
 *     entries      of a leaf: digest (32 bytes) | null (a hole) | version ("see my slot in your blob's leaf of that version")
 *                  of an inner node: version (of the same blob) | [blob, version] | null (nothing was ever written there)
 *
 * Entries end with the last one that is not null; that they are no more than the tree's fan-out is for its reader to check (`tree-reader.ts`),
 * who knows that. What is decoded is checked: a node must bear the name under which it was found, and links
 * only lead to versions that came before (or, from an inner node, to its own), so that no chain of them can be a circle.
 */
import assert from 'node:assert/strict'
import { decodeCbor, encodeCbor } from '../protocols/codec.ts'
import { array, bytes, type Decoder, oneOf, tuple, uint } from '../protocols/decode.ts'
import { P2pvmError } from '../protocols/errors.ts'
import { partsOfSealed, PUBLIC_KEY_BYTES, seal, SIGNATURE_BYTES, verifySignature } from '../protocols/signatures.ts'
import { BLOB_ID_BYTES, blobIdOfBytes, bytesOfBlobId } from './blob-id.ts'
import type { VersionId } from './blobs.ts'
import type { Certificates, Credentials } from './certificates.ts'
import { FAN_OUT_MAX, type NodeRef } from './tree-names.ts'

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

const blobBytes = bytes(BLOB_ID_BYTES)
const link = tuple(blobBytes, uint())
const digest = bytes(32)

const slot: Decoder<Slot> = (value, what) =>
  value === null ? null : typeof value === 'number' ? uint()(value, what) : digest(value, what)
const child: Decoder<number | [Uint8Array, number] | null> = (value, what) =>
  value === null ? null : typeof value === 'number' ? uint()(value, what) : link(value, what)

const nodeOf = <E>(entry: Decoder<E>) => tuple(
  oneOf(FORMAT), blobBytes, uint(), uint(), uint(), uint(), array(entry, FAN_OUT_MAX), bytes(PUBLIC_KEY_BYTES), bytes(SIGNATURE_BYTES))
const leaf = nodeOf(slot)
const inner = nodeOf(child)

/** The same bytes each time. */
export function encodeNode (node: TreeNode, { certificate, signer }: Credentials): Uint8Array {
  assert(certificate.blob === node.blob && certificate.version === node.version, 'a writer writes nodes of his own version')
  const entries = node.kind === 'leaf'
    ? node.slots
    : node.children.map((to) => to === null ? null : to.blob === node.blob ? to.version : encodeLink(to))
  const used = entries.findLastIndex((entry) => entry !== null) + 1
  return seal(signer, 'p2pvm node', encodeCbor([
    FORMAT, bytesOfBlobId(node.blob), node.version, certificate.attempt, node.level, node.index, entries.slice(0, used),
    certificate.writerKey, certificate.signature
  ]))
}

/** ERR_PROTOCOL when the bytes are no node, or another one, or not of the writer that this attempt at the version was assigned to. */
export function decodeNode (value: Uint8Array, expected: NodeRef, attempt: number, certificates: Certificates): TreeNode {
  const { signature, bytes } = partsOfSealed(value)
  const { blob, version, level, index } = expected
  const [, ownBlob, ownVersion, ownAttempt, ownLevel, ownIndex, entries, writerKey, certificateSignature] =
    (level === 0 ? leaf : inner)(decodeCbor(bytes), 'tree node')
  check(ownAttempt === attempt, 'a node of another attempt')
  check(blobIdOfBytes(ownBlob) === blob && ownVersion === version && ownLevel === level && ownIndex === index, 'a node of another name')
  check(entries.at(-1) !== null, 'a node with nothing at its end')
  const node = level === 0
    ? leafOf(expected, entries as Slot[])
    : innerOf(expected, entries as Array<ReturnType<typeof child>>)
  check(certificates.isGenuine({ blob, version, attempt, writerKey, signature: certificateSignature }), 'a node of a writer that the version was not assigned to')
  check(verifySignature(writerKey, 'p2pvm node', bytes, signature), 'a node that its writer did not sign')
  return node
}

function leafOf ({ blob, version, index }: NodeRef, slots: readonly Slot[]): LeafNode {
  check(slots.every((one) => typeof one !== 'number' || one < version), 'a leaf that links forward')
  return { blob, version, level: 0, index, kind: 'leaf', slots }
}

function innerOf ({ blob, version, level, index }: NodeRef, entries: ReadonlyArray<ReturnType<typeof child>>): InnerNode {
  const children = entries.map((one) => {
    if (one === null) return null
    const to = typeof one === 'number' ? { blob, version: one } : decodeLink(one)
    check(to.blob !== blob || to.version <= version, 'a node that links forward')
    return to
  })
  return { blob, version, level, index, kind: 'inner', children }
}

function encodeLink ({ blob, version }: VersionId): [Uint8Array, number] {
  return [bytesOfBlobId(blob), version]
}

function decodeLink ([blob, version]: readonly [Uint8Array, number]): VersionId {
  return { blob: blobIdOfBytes(blob), version }
}

function check (right: boolean, what: string): asserts right {
  if (!right) throw new P2pvmError('ERR_PROTOCOL', what)
}
