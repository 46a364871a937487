/**
 * A libp2p node of the test's own process inside a fabric of daemons: a peer like a client's, that stores nothing, serves nothing
 * and is no member. Knows the members as one daemon knows them when it comes.
 */
import type { Connection, Libp2p } from '@libp2p/interface'
import { peerIdFromString } from '@libp2p/peer-id'
import { kadIdOfKey, kadIdOfPeer, nearest } from '../../src/dht/kad-id.ts'
import { CLOSEST_COUNT, type Member, type Membership } from '../../src/dht/membership.ts'
import { createProbeNode } from '../../src/node/libp2p-node.ts'
import { createCounters, createLog, nodeClock } from '../../src/node/world.ts'
import { Libp2pTransport } from '../../src/protocols/libp2p-transport.ts'
import type { PeerId } from '../../src/protocols/transport.ts'
import type { FabricPeer } from '../../testnet/fabric.ts'
import { withClient } from './live-fabric.ts'

export class FabricGuest {
  readonly node: Libp2p
  readonly transport: Libp2pTransport
  readonly membership: Membership
  readonly log = createLog({ level: 'error', stream: process.stderr })
  readonly counters = createCounters()

  static async join (host: FabricPeer): Promise<FabricGuest> {
    const { fabric, members } = await withClient(host, async (client) => ({ fabric: (await client.status()).fabric, members: await client.peers() }))
    return await new FabricGuest(await createProbeNode(), fabric, members.map(({ peerId, ...member }) => ({ ...member, id: peerId })))
      .#knowingAddresses()
  }

  private constructor (node: Libp2p, fabric: string, members: readonly Member[]) {
    this.node = node
    this.transport = new Libp2pTransport({ node, clock: nodeClock, counters: this.counters, log: this.log }, { fabric })
    this.membership = new FixedMembership(node.peerId.toString(), members)
  }

  async #knowingAddresses (): Promise<this> {
    for (const { id, addresses } of this.membership.members()) await this.transport.learnAddresses(id, addresses)
    return this
  }

  async connection (peer: FabricPeer): Promise<Connection> {
    await this.transport.learnAddresses(peer.peerId, peer.addresses)
    return await this.node.dial(peerIdFromString(peer.peerId))
  }

  async leave (): Promise<void> {
    await this.transport.stop()
    await this.node.stop()
  }
}

/** Who was a member at one time, and is taken to be up for ever. */
class FixedMembership implements Membership {
  readonly self: PeerId
  readonly #members: readonly Member[]

  constructor (self: PeerId, members: readonly Member[]) {
    this.self = self
    this.#members = members
  }

  members (): readonly Member[] {
    return this.#members
  }

  storageCount (): number {
    return Math.max(1, this.#storage().length)
  }

  async closest (key: Uint8Array): Promise<readonly Member[]> {
    return nearest(kadIdOfKey(key), this.#storage().map((member) => ({ member, kadId: kadIdOfPeer(member.id) })), CLOSEST_COUNT).map(({ member }) => member)
  }

  usable (): boolean {
    return true
  }

  report (): void {}

  #storage (): Member[] {
    return this.#members.filter(({ roles }) => roles.includes('storage'))
  }
}
