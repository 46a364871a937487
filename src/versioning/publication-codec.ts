/**
 * Bytes of publication records: deterministic CBOR, so that what is published again after a crash is the same, byte for byte.
 *
 *     record       [signed header, body]
 *     signed       signature ‖ header      of the fabric's key; what is called a record's hash is the sha256 of these bytes
 *     header       [1, blob, version, size, sizeBefore, chunkSize, fanOut, root, parent, timeMs, writer, message, bytesChanged, attempt,
 *                  number of exceptions, sha256 of the body, hash of the record before, hash of the record that is skipped to]
 *     body         [extents, exceptions]
 *     root, parent [blob, version] | null
 *     extents      [offset, size, offset, size, …]
 *     exceptions   [[blob, [version, attempt, version, attempt, …]], …]   versions, up to this one and of those that the blob was cloned
 *                  from, whose counting attempt is not 1
 *
 * The record before version 0 of a clone is its source's; that of a new blob has none. Which record is skipped to: `skip-chain.ts`. The
 * header is all that most readers need, and is what the version manager answers with.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { CHUNK_BYTES_MAX, CHUNK_BYTES_MIN } from '../protocols/cid.ts'
import { decodeCbor, encodeCbor } from '../protocols/codec.ts'
import { array, bytes, bytesUpTo, nullable, oneOf, string, tuple, uint } from '../protocols/decode.ts'
import { P2pvmError } from '../protocols/errors.ts'
import { partsOfSealed, seal, type Signer, verifySignature } from '../protocols/signatures.ts'
import { HEADER_BYTES_MAX, MESSAGE_CHARACTERS_MAX } from '../protocols/version-protocol.ts'
import { type Exception, EXCEPTIONS_MAX } from './attempts.ts'
import { BLOB_ID_BYTES, blobIdOfBytes, bytesOfBlobId } from './blob-id.ts'
import type { BlobId, Extent, Version, VersionId } from './blobs.ts'
import { EXTENTS_MAX } from './extents.ts'
import { skipOf } from './skip-chain.ts'
import { BLOB_BYTES_MAX, FAN_OUT_MAX, FAN_OUT_MIN } from './tree-names.ts'

const FORMAT = 1
const HASH_BYTES = 32
/** Extents and exceptions, with the most of both. */
const BODY_BYTES_MAX = 124 * 1024

/** What is said of a version, before it is linked and signed. */
export interface Publication {
  readonly version: Omit<Version, 'hash'>
  readonly sizeBefore: number
  readonly extents: readonly Extent[]
  /** `version.exceptions` of them, those of one blob together. */
  readonly exceptions: readonly Exception[]
}

/** Hashes of records, in hexadecimal. */
export interface Links {
  readonly previous: string | null
  readonly skip: string | null
}

export interface Header {
  readonly version: Version
  readonly sizeBefore: number
  readonly links: Links
  readonly bodyHash: string
  /** With its signature, as it travels. */
  readonly signed: Uint8Array
}

/** A version, what is needed to compute the names that it wrote, and the attempts to read it by. */
export interface PublicationRecord {
  readonly header: Header
  readonly extents: readonly Extent[]
  readonly exceptions: readonly Exception[]
}

const blobBytes = bytes(BLOB_ID_BYTES)
const link = tuple(blobBytes, uint())
const hash = bytes(HASH_BYTES)
const headerFields = tuple(
  oneOf(FORMAT), blobBytes, uint(), uint(), uint(), uint(), uint(), nullable(link), nullable(link), uint(), string(128),
  string(MESSAGE_CHARACTERS_MAX), uint(), uint(), uint(EXCEPTIONS_MAX), hash, nullable(hash), nullable(hash)
)
const exceptionList = array(tuple(blobBytes, array(uint(), 2 * EXCEPTIONS_MAX)), EXCEPTIONS_MAX)
const bodyFields = tuple(array(uint(), 2 * EXTENTS_MAX), exceptionList)
const recordFields = tuple(bytesUpTo(HEADER_BYTES_MAX), bytesUpTo(BODY_BYTES_MAX))

/** The same bytes each time. */
export function sealPublication (
  { version: of, sizeBefore, extents, exceptions }: Publication, links: Links, fabric: Signer
): { readonly header: Header, readonly value: Uint8Array } {
  assert(exceptions.length === of.exceptions && exceptions.length <= EXCEPTIONS_MAX, 'exceptions are counted')
  const body = encodeCbor([extents.flatMap(({ offset, size }) => [offset, size]), encodeExceptions(exceptions)])
  const bodyHash = sha256(body)
  const signed = seal(fabric, 'p2pvm publication', encodeCbor([
    FORMAT, bytesOfBlobId(of.blob), of.version, of.size, sizeBefore, of.chunkSize, of.fanOut, encodeLink(of.root), encodeLink(of.parent),
    of.timeMs, of.writer, of.message, of.bytesChanged, of.attempt, of.exceptions, bodyHash, bytesOfHash(links.previous), bytesOfHash(links.skip)
  ]))
  return {
    header: { version: { ...of, hash: hashOfSigned(signed) }, sizeBefore, links, bodyHash: hex(bodyHash), signed },
    value: encodeCbor([signed, body])
  }
}

/** ERR_PROTOCOL when the bytes are no publication record, or another one, or not of this fabric. */
export function decodePublication (value: Uint8Array, expected: VersionId, fabricKey: Uint8Array): PublicationRecord {
  const [signed, body] = recordFields(decodeCbor(value), 'publication record')
  const header = decodeHeader(signed)
  const { blob, version } = header.version
  check(blob === expected.blob && version === expected.version, 'a publication record of another name')
  check(hex(sha256(body)) === header.bodyHash, 'a publication record with another body')
  const { signature, bytes } = partsOfSealed(signed)
  check(verifySignature(fabricKey, 'p2pvm publication', bytes, signature), 'a publication record that was not signed with the fabric\'s key')
  const [numbers, rows] = bodyFields(decodeCbor(body), 'body of a publication record')
  check(numbers.length % 2 === 0, 'half an extent')
  const exceptions = decodeExceptions(rows)
  check(exceptions.length === header.version.exceptions, 'exceptions that are not counted')
  return { header, exceptions, extents: Array.from({ length: numbers.length / 2 }, (_, at) => ({ offset: numbers[2 * at]!, size: numbers[2 * at + 1]! })) }
}

/** Of a signed header from somebody who needs no proof: the signature is not checked. ERR_PROTOCOL. */
export function decodeHeader (signed: Uint8Array): Header {
  const [
    , blob, version, size, sizeBefore, chunkSize, fanOut, root, parent, timeMs, writer, message, bytesChanged, attempt, exceptions, bodyHash, previous, skip
  ] = headerFields(decodeCbor(partsOfSealed(signed).bytes), 'header of a publication record')
  check(isPowerOfTwo(chunkSize, CHUNK_BYTES_MIN, CHUNK_BYTES_MAX) && isPowerOfTwo(fanOut, FAN_OUT_MIN, FAN_OUT_MAX), 'a geometry that cannot be')
  check(size <= BLOB_BYTES_MAX && sizeBefore <= size, 'a size that cannot be')
  check((previous === null) === (parent === null) && (skip === null) === (skipOf(version) === undefined), 'a record that is not linked as it must be')
  return {
    version: {
      blob: blobIdOfBytes(blob), version, size, chunkSize, fanOut, root: decodeLink(root), parent: decodeLink(parent), timeMs, writer, message,
      bytesChanged, attempt, exceptions, hash: hashOfSigned(signed)
    },
    sizeBefore,
    links: { previous: hex(previous), skip: hex(skip) },
    bodyHash: hex(bodyHash),
    signed
  }
}

/** Of a signed header: what other records link to. Hexadecimal. */
export function hashOfSigned (signed: Uint8Array): string {
  return hex(sha256(signed))
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

function encodeLink (to: VersionId | null): [Uint8Array, number] | null {
  return to === null ? null : [bytesOfBlobId(to.blob), to.version]
}

function decodeLink (to: readonly [Uint8Array, number] | null): VersionId | null {
  return to === null ? null : { blob: blobIdOfBytes(to[0]), version: to[1] }
}

function sha256 (bytes: Uint8Array): Uint8Array {
  return createHash('sha256').update(bytes).digest()
}

function hex<H extends Uint8Array | null> (bytes: H): H extends null ? null : string
function hex (bytes: Uint8Array | null): string | null {
  return bytes === null ? null : Buffer.from(bytes).toString('hex')
}

function bytesOfHash (hash: string | null): Uint8Array | null {
  return hash === null ? null : new Uint8Array(Buffer.from(hash, 'hex'))
}

function isPowerOfTwo (value: number, min: number, max: number): boolean {
  return value >= min && value <= max && (value & (value - 1)) === 0
}

function check (right: boolean, what: string): asserts right {
  if (!right) throw new P2pvmError('ERR_PROTOCOL', what)
}
