/**
 * Chunk names: CIDv1, codec raw, sha2-256. Chunks of zeros have no name: they are holes (`null`).
 */
import { createHash } from 'node:crypto'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import * as Digest from 'multiformats/hashes/digest'
import { sha256 } from 'multiformats/hashes/sha2'
import { P2pvmError } from './errors.ts'

/** The printable CID, `bafkrei…`. All our maps, file names and JSON use this form; the wire and tree nodes use bytes. */
export type ChunkId = string

export const CHUNK_BYTES_MIN = 4 * 1024
export const CHUNK_BYTES_MAX = 4 * 1024 * 1024
export const CHUNK_BYTES_DEFAULT = 256 * 1024

export function chunkIdOf (bytes: Uint8Array): ChunkId {
  return chunkIdOfDigest(createHash('sha256').update(bytes).digest())
}

/** From the bare 32-byte digest, the form in tree nodes and on the wire. */
export function chunkIdOfDigest (digest: Uint8Array): ChunkId {
  return CID.createV1(raw.code, Digest.create(sha256.code, digest)).toString()
}

/** The 32-byte digest of a chunk id. ERR_USAGE when it is not a CIDv1 raw sha2-256. */
export function digestOf (id: ChunkId): Uint8Array {
  let cid
  try {
    cid = CID.parse(id)
  } catch (error) {
    throw new P2pvmError('ERR_USAGE', `not a chunk id: ${id}`, {}, error)
  }
  if (cid.version !== 1 || cid.code !== raw.code || cid.multihash.code !== sha256.code || cid.multihash.digest.length !== 32) {
    throw new P2pvmError('ERR_USAGE', `not a chunk id (CIDv1, raw, sha2-256): ${id}`)
  }
  return cid.multihash.digest
}

export function matches (id: ChunkId, bytes: Uint8Array): boolean {
  return chunkIdOf(bytes) === id
}

const ZEROS = new Uint8Array(CHUNK_BYTES_MAX)

/** True for a hole. Compares with memcmp, some 10 GB/s. */
export function isZero (bytes: Uint8Array): boolean {
  // Most chunks that are not holes differ in the first bytes: look before the call into native code.
  if (bytes.length > 0 && bytes[0] !== 0) return false
  for (let at = 0; at < bytes.length; at += ZEROS.length) {
    const part = bytes.subarray(at, Math.min(at + ZEROS.length, bytes.length))
    if (Buffer.compare(part, ZEROS.subarray(0, part.length)) !== 0) return false
  }
  return true
}

/** A power of two from 4 KiB to 4 MiB, or ERR_USAGE. */
export function checkChunkSize (bytes: number): number {
  if (!Number.isInteger(bytes) || bytes < CHUNK_BYTES_MIN || bytes > CHUNK_BYTES_MAX || (bytes & (bytes - 1)) !== 0) {
    throw new P2pvmError('ERR_USAGE', `chunk size must be a power of two from 4 KiB to 4 MiB, not ${bytes}`)
  }
  return bytes
}
