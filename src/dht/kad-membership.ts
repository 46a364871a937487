/**
 * `Membership` by kad-dht lookups: used until the member list is complete, and always with `--member-list off`. A lookup
 * names the nearest peers that answered, never oneself; each is then asked for its description (its roles and capacity),
 * and who does not answer drops out.
 *
 * State it owns: descriptions, for DESCRIPTION_MS; which peers failed lately.
 */
import type { KadDHT } from '@libp2p/kad-dht'
import { withDeadline } from '../protocols/abort.ts'
import { P2pvmError } from '../protocols/errors.ts'
import { describeMember, type MemberRow } from '../protocols/member-protocol.ts'
import type { Clock, Log } from '../protocols/seams.ts'
import type { PeerId, Transport } from '../protocols/transport.ts'
import { type KadId, kadIdOfKey, kadIdOfPeer, nearest } from './kad-id.ts'
import { CLOSEST_COUNT, type Member, type Membership } from './membership.ts'
import { PeerHealth } from './peer-health.ts'
import { Semaphore } from './semaphore.ts'
import { SingleFlight } from './single-flight.ts'

/** The nearest peers to a key that answered, oneself not among them. */
export type KadLookup = (key: Uint8Array, signal: AbortSignal) => Promise<PeerId[]>

export interface KadMembershipComponents {
  readonly transport: Transport
  readonly lookup: KadLookup
  readonly clock: Clock
  readonly log: Log
  /** This peer's own description. */
  readonly describeSelf: () => MemberRow
  /** Peers to connect to when lookups find nobody: at the start, and after all others were away. */
  readonly bootstrap: () => readonly PeerId[]
}

/** Roles and capacity change with a restart at most; the peers themselves are found anew by each lookup. */
const DESCRIPTION_MS = 60_000
const DESCRIBE_DEADLINE_MS = 3_000
/** One lookup sends some ten messages: more at once only wait for each other. */
const LOOKUPS_AT_ONCE = 8
const LOOKUP_DEADLINE_MS = 15_000
/** Beyond the nearest ones it is only a cache: the oldest go. */
const DESCRIPTIONS_MAX = 1_000

interface Described {
  readonly row: MemberRow
  readonly kadId: KadId
  readonly untilMs: number
}

export class KadMembership implements Membership {
  readonly self: PeerId
  readonly #components: KadMembershipComponents
  readonly #health: PeerHealth
  readonly #described = new Map<PeerId, Described>()
  readonly #describing = new SingleFlight<Described>()
  readonly #lookups = new Semaphore({ permits: LOOKUPS_AT_ONCE })

  constructor (components: KadMembershipComponents) {
    this.self = components.transport.self
    this.#components = components
    this.#health = new PeerHealth(components.clock)
  }

  members (): readonly Member[] {
    return this.#fresh().filter(({ row }) => !row.roles.every((role) => role === 'compute')).map(memberOf).sort((a, b) => a.id < b.id ? -1 : 1)
  }

  storageCount (): number {
    return Math.max(1, this.#fresh().filter(({ row }) => row.roles.includes('storage')).length)
  }

  async closest (key: Uint8Array, { signal }: { signal: AbortSignal }): Promise<readonly Member[]> {
    const described = await withDeadline(this.#components.clock, LOOKUP_DEADLINE_MS, [signal], async (own) =>
      await this.#describeAll(await this.#find(key, own), own))
    const storage = [this.#describedSelf(), ...described].filter(({ row }) => row.roles.includes('storage'))
    if (storage.length === 0) throw new P2pvmError('ERR_UNAVAILABLE', 'no storage peer answers: is the bootstrap address right, and is its peer up?')
    return nearest(kadIdOfKey(key), storage, CLOSEST_COUNT).map(memberOf)
  }

  usable (peer: PeerId): boolean {
    return peer === this.self || !this.#health.isFailing(peer)
  }

  report (peer: PeerId, outcome: 'answered' | 'failed'): void {
    this.#health.report(peer, outcome)
    if (outcome === 'failed') this.#described.delete(peer) // asked again, and out when it does not answer
  }

  async #find (key: Uint8Array, signal: AbortSignal): Promise<PeerId[]> {
    const { lookup, bootstrap } = this.#components
    return await this.#lookups.run(async () => {
      const found = await lookup(key, signal)
      // Nobody to ask: a bootstrap peer that has described itself is connected, and in the routing table.
      if (found.length > 0 || (await this.#describeAll(bootstrap(), signal)).length === 0) return found
      return await lookup(key, signal)
    }, signal)
  }

  async #describeAll (peers: readonly PeerId[], signal: AbortSignal): Promise<Described[]> {
    const described = await Promise.all(peers.map(async (peer) => await this.#describe(peer, signal)))
    return described.filter((one) => one !== undefined)
  }

  /** undefined: it does not answer, or is failing. */
  async #describe (peer: PeerId, signal: AbortSignal): Promise<Described | undefined> {
    const known = this.#described.get(peer)
    if (known !== undefined && known.untilMs > this.#components.clock.monotonic()) return known
    if (!this.usable(peer)) return undefined
    try {
      return await this.#describing.run(peer, async (asking) => await this.#ask(peer, asking), signal)
    } catch (error) {
      signal.throwIfAborted()
      this.#health.report(peer, 'failed')
      this.#components.log.debug('a peer does not describe itself', { peer, error })
      return undefined
    }
  }

  async #ask (peer: PeerId, signal: AbortSignal): Promise<Described> {
    const { transport, clock } = this.#components
    const row = await describeMember(transport, peer, { deadlineMs: DESCRIBE_DEADLINE_MS, signal })
    const described = { row, kadId: kadIdOfPeer(peer), untilMs: clock.monotonic() + DESCRIPTION_MS }
    this.#described.delete(peer)
    this.#described.set(peer, described)
    for (const oldest of this.#described.keys()) {
      if (this.#described.size <= DESCRIPTIONS_MAX) break
      this.#described.delete(oldest)
    }
    return described
  }

  #describedSelf (): Described {
    return { row: this.#components.describeSelf(), kadId: kadIdOfPeer(this.self), untilMs: Infinity }
  }

  #fresh (): Described[] {
    const nowMs = this.#components.clock.monotonic()
    return [this.#describedSelf(), ...this.#described.values()].filter(({ untilMs }) => untilMs > nowMs)
  }
}

function memberOf ({ row: { id, addresses, roles, capacityBytes } }: Described): Member {
  return { id, addresses, roles, capacityBytes, state: 'up' }
}

/** Over the DHT service itself: the wrapper `peerRouting` takes several times as long. */
export function kadLookup (dht: KadDHT): KadLookup {
  return async (key, signal) => {
    const found = new Set<PeerId>()
    for await (const event of dht.getClosestPeers(key, { signal })) {
      if (event.name === 'FINAL_PEER') found.add(event.peer.id.toString())
    }
    return [...found]
  }
}
