/**
 * Placement: which storage peers keep a key, best first. A pure function of the key and the candidates (the k=20 storage
 * members closest to the key by XOR, with their configured capacities): everyone who knows the same members places alike,
 * without asking. No state; not for who is up (`replication.ts` skips those that are not, the order stays).
 *
 * Weighted rendezvous hashing (Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005). Each candidate draws
 * h uniformly from (0, 1) out of sha256(key ‖ peer id), and -ln(h) / capacity is exponentially distributed with rate
 * capacity. The smallest of such draws falls to each candidate in proportion to its capacity, and a candidate that comes or
 * goes moves only the keys that it wins or leaves: no two others change places.
 */
import { hash } from 'node:crypto'
import type { ChunkId } from '../protocols/cid.ts'
import { digestOf } from '../protocols/cid.ts'
import type { PeerId } from '../protocols/transport.ts'

/** Of 52 bits. */
const HEX_DIGITS = 13

export interface Candidate {
  readonly id: PeerId
  /** Its weight. 0, a peer that offers nothing, comes after all others. */
  readonly capacityBytes: number
}

/** All candidates in the order in which they are to keep the key; its replicas are the first R. */
export function placementOrder (key: Uint8Array, candidates: readonly Candidate[]): PeerId[] {
  const uniform = drawsOf(key, Math.max(0, ...candidates.map(({ id }) => id.length)))
  const drawn = candidates.map(({ id, capacityBytes }) => {
    const exponential = -Math.log(uniform(id))
    return { id, exponential, rank: capacityBytes > 0 ? exponential / capacityBytes : Infinity }
  })
  // Without capacity all ranks are infinite: then the bare draw decides, and the id where even that is equal.
  return drawn.sort((a, b) => compare(a.rank, b.rank) || compare(a.exponential, b.exponential) || compare(a.id, b.id)).map(({ id }) => id)
}

/** Never 0 nor 1, and exact: 52 bits of the hash, put in the middle of their interval. */
function drawsOf (key: Uint8Array, longest: number): (peer: PeerId) => number {
  const bytes = Buffer.alloc(key.length + longest)
  bytes.set(key)
  return (peer) => {
    const end = key.length + bytes.write(peer, key.length)
    return (Number.parseInt(hash('sha256', bytes.subarray(0, end), 'hex').slice(0, HEX_DIGITS), 16) + 0.5) / 2 ** 52
  }
}

function compare<T extends number | string> (a: T, b: T): number {
  return a < b ? -1 : a > b ? 1 : 0
}

/** multihash: sha2-256, 32 bytes follow. */
const SHA256_MULTIHASH_PREFIX = Uint8Array.of(0x12, 0x20)

/** The key of a chunk is the multihash in its CID. */
export function keyOfChunk (id: ChunkId): Uint8Array {
  return Buffer.concat([SHA256_MULTIHASH_PREFIX, digestOf(id)])
}

/** The key of a record is the multihash of its name. */
export function keyOfRecord (name: string): Uint8Array {
  return Buffer.concat([SHA256_MULTIHASH_PREFIX, hash('sha256', name, 'buffer')])
}
