/**
 * A chunk's packed form, in which it travels and in which storage peers keep it: a zstd frame of its bytes or, where that saves too
 * little, the bytes themselves. Nothing says which of the two it is: a frame begins with zstd's magic number, and the chunk's name
 * decides. The name is always that of the bytes, so packing well, badly or not at all is the same chunk.
 */
import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib'
import { CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MAX, type ChunkId, matches } from '../protocols/cid.ts'

/**
 * The lowest level: 0.5 ms for 256 KiB of a Debian image, to a third of it. A byte that is not sent saves more than that: it would be
 * encrypted, copied, decrypted and written for every replica. Level 3 takes 1.5 times as long and saves 3 % more.
 */
const LEVEL = 1
/** What shrinks less is kept as it is, and need not be unpacked. */
const WORTH_IT = 7 / 8
const MAGIC = Buffer.from([0x28, 0xb5, 0x2f, 0xfd])

/** The packed form; `bytes` itself when that is as good. */
export function pack (bytes: Uint8Array): Uint8Array {
  const packed = zstdCompressSync(bytes, { params: { [constants.ZSTD_c_compressionLevel]: LEVEL } })
  return packed.length <= bytes.length * WORTH_IT ? packed : bytes
}

/** The chunk's bytes, hash checked; undefined when `packed` is no form of it. Takes no more memory than the largest chunk does. */
export function unpack (id: ChunkId, packed: Uint8Array): Uint8Array | undefined {
  const bytes = unframed(packed)
  if (bytes !== undefined && matches(id, bytes)) return bytes
  return matches(id, packed) ? packed : undefined
}

function unframed (packed: Uint8Array): Uint8Array | undefined {
  if (Buffer.compare(packed.subarray(0, MAGIC.length), MAGIC) !== 0) return undefined
  try {
    return zstdDecompressSync(packed, { maxOutputLength: CHUNK_BYTES_MAX, chunkSize: CHUNK_BYTES_DEFAULT })
  } catch {
    return undefined // a chunk may begin like a frame and be none
  }
}
