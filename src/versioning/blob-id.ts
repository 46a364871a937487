/** Blob ids: 80 random bits, printed as 16 characters of lower-case base32; tree nodes and records hold the 10 bytes. */
import { base32 } from 'multiformats/bases/base32'
import { P2pvmError } from '../protocols/errors.ts'
import type { Random } from '../protocols/seams.ts'
import type { BlobId } from './blobs.ts'

export const BLOB_ID_BYTES = 10
/** Of a whole id. */
export const BLOB_ID = /^[a-z2-7]{16}$/
/** Of the beginning of one, as people type it. */
export const BLOB_ID_PREFIX = /^[a-z2-7]{1,16}$/

export function randomBlobId (random: Random): BlobId {
  return blobIdOfBytes(random.bytes(BLOB_ID_BYTES))
}

/** ERR_NOT_FOUND: there is no blob with such an id. */
export function checkBlobId (blob: BlobId): BlobId {
  if (!BLOB_ID.test(blob)) throw new P2pvmError('ERR_NOT_FOUND', `no blob ${JSON.stringify(blob)}`)
  return blob
}

export function blobIdOfBytes (bytes: Uint8Array): BlobId {
  return base32.encoder.baseEncode(bytes)
}

export function bytesOfBlobId (blob: BlobId): Uint8Array {
  return base32.decoder.baseDecode(blob)
}
