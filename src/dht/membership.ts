/**
 * Who is in the fabric, and who is close to a key. Two implementations: `member-list.ts` (the whole list, gossiped; no
 * round trip) and `kad-membership.ts` (kad-dht lookups; used until the list is complete, and always with --member-list off).
 */
import type { PeerId } from '../protocols/transport.ts'

export type Role = 'storage' | 'versions' | 'compute'

export interface Member {
  readonly id: PeerId
  readonly addresses: readonly string[] // multiaddrs without /p2p
  readonly roles: readonly Role[]
  /** What a storage peer offers, as configured, bytes: its weight in placement. 0 for the others. */
  readonly capacityBytes: number
  readonly state: 'up' | 'down'
}

export interface Membership {
  readonly self: PeerId
  /** Storage members (and the version manager's peer) that are known, down ones and oneself included, ordered by id. */
  members (): readonly Member[]
  /** How many storage peers the fabric has as far as known here: R and W shrink to it in a small fabric. At least 1. */
  storageCount (): number
  /**
   * The storage members nearest to the key by XOR, at most CLOSEST_COUNT, in no order; oneself included when a
   * storage peer. From the list it is immediate and includes members that are down; from kad-dht only those that answered.
   * ERR_UNAVAILABLE when nobody can be asked.
   */
  closest (key: Uint8Array, options: { signal: AbortSignal }): Promise<readonly Member[]>
  /** False while a peer is down, or has just failed us: it is then tried last. Purely local knowledge, no round trip. */
  usable (peer: PeerId): boolean
  /** What a request to a peer taught us. A failure makes it unusable for some seconds; an answer makes it usable at once. */
  report (peer: PeerId, outcome: 'answered' | 'failed'): void
}

/** Kademlia's k. */
export const CLOSEST_COUNT = 20
/** A peer that has not been heard of for so long is down: skipped, still in the placement. */
export const DOWN_AFTER_MS = 15_000
