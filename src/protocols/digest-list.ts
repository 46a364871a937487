/**
 * Chunk ids on the wire: bare sha2-256 digests, one after the other in a single byte string, because a batch of thousands
 * is common and CBOR's own arrays cost more to check than to carry.
 */
import { chunkIdOfDigest, digestOf } from './cid.ts'
import type { ChunkId } from './cid.ts'
import { bytesUpTo } from './decode.ts'
import type { Decoder } from './decode.ts'
import { P2pvmError } from './errors.ts'

export const DIGEST_BYTES = 32

export function encodeDigests (ids: readonly ChunkId[]): Uint8Array {
  const digests = new Uint8Array(ids.length * DIGEST_BYTES)
  ids.forEach((id, index) => { digests.set(digestOf(id), index * DIGEST_BYTES) })
  return digests
}

export function digestList (idsMax: number): Decoder<ChunkId[]> {
  const digests = bytesUpTo(idsMax * DIGEST_BYTES)
  return (value, what = 'ids') => {
    const all = digests(value, what)
    if (all.length % DIGEST_BYTES !== 0) throw new P2pvmError('ERR_PROTOCOL', `${what}: expected whole digests`)
    return Array.from({ length: all.length / DIGEST_BYTES }, (_, index) => chunkIdOfDigest(all.slice(index * DIGEST_BYTES, (index + 1) * DIGEST_BYTES)))
  }
}
