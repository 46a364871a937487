/**
 * Places in the Kademlia key space, exactly as kad-dht has them: sha256 of a key, sha256 of a peer id's multihash. Two that
 * hash differently would look for a chunk at different peers.
 */
import { hash } from 'node:crypto'
import { base58btc } from 'multiformats/bases/base58'
import { P2pvmError } from '../protocols/errors.ts'
import type { PeerId } from '../protocols/transport.ts'

/** 32 bytes. */
export type KadId = Buffer

export function kadIdOfKey (key: Uint8Array): KadId {
  return hash('sha256', key, 'buffer')
}

/** ERR_PROTOCOL when it is no peer id. */
export function kadIdOfPeer (peer: PeerId): KadId {
  let multihash
  try {
    multihash = base58btc.decode(`z${peer}`) // the multibase prefix that a printed peer id leaves away
  } catch (error) {
    throw new P2pvmError('ERR_PROTOCOL', `not a peer id: ${peer}`, {}, error)
  }
  return kadIdOfKey(multihash)
}

/** Below 0 when `a` is nearer to the target than `b`, by XOR. */
export function compareDistance (target: KadId, a: KadId, b: KadId): number {
  for (let at = 0; at < target.length; at += 4) {
    const of = target.readInt32BE(at)
    const difference = ((of ^ a.readInt32BE(at)) >>> 0) - ((of ^ b.readInt32BE(at)) >>> 0)
    if (difference !== 0) return difference
  }
  return 0
}

/** The nearest `count`, nearest first. */
export function nearest<T extends { readonly kadId: KadId }> (target: KadId, candidates: readonly T[], count: number): T[] {
  return [...candidates].sort((a, b) => compareDistance(target, a.kadId, b.kadId)).slice(0, count)
}
