import { afterEach, describe, expect, it } from 'vitest'
import { kadIdOfKey, kadIdOfPeer, nearest } from '../../../src/dht/kad-id.ts'
import { KadMembership, kadLookup } from '../../../src/dht/kad-membership.ts'
import type { KadLookup } from '../../../src/dht/kad-membership.ts'
import { MemberList } from '../../../src/dht/member-list.ts'
import type { Role } from '../../../src/dht/membership.ts'
import { SwitchingMembership } from '../../../src/dht/switching-membership.ts'
import { nodeClock } from '../../../src/node/world.ts'
import { P2pvmError, errorCodeOf } from '../../../src/protocols/errors.ts'
import { MEMBER_PROTOCOL, serveMembers } from '../../../src/protocols/member-protocol.ts'
import type { MemberRow } from '../../../src/protocols/member-protocol.ts'
import type { Transport } from '../../../src/protocols/transport.ts'
import { FakeClock } from '../../harness/fake-clock.ts'
import { startLivePeer } from '../../harness/live-nodes.ts'
import type { LivePeer } from '../../harness/live-nodes.ts'
import { MemoryNetwork } from '../../harness/memory-transport.ts'
import { peerIdOf } from '../../harness/peer-ids.ts'
import { KeptLog } from '../../harness/quiet.ts'

const signal = new AbortController().signal
const key = Buffer.from('a key')

function rowOf (id: string, roles: readonly Role[], capacityBytes = 100): MemberRow {
  return { id, addresses: [], roles, capacityBytes, incarnation: 1, heartbeat: 1, down: false }
}

function serve (transport: Transport, roles: readonly Role[]): void {
  serveMembers(transport, { describe: () => rowOf(transport.self, roles), exchange: () => { throw new P2pvmError('ERR_UNAVAILABLE', 'no list') }, push: () => {} })
}

describe('membership by lookups', () => {
  const clock = new FakeClock()

  function setUp (selfRoles: readonly Role[], others: Readonly<Record<string, Role[]>>) {
    const network = new MemoryNetwork(clock)
    const transport = network.join(peerIdOf('self'))
    const ids = Object.keys(others).map((name) => {
      serve(network.join(peerIdOf(name)), others[name]!)
      return peerIdOf(name)
    })
    let found = ids
    const lookup: KadLookup = async () => found
    const membership = new KadMembership({ transport, lookup, clock, log: new KeptLog(), describeSelf: () => rowOf(transport.self, selfRoles), bootstrap: () => [] })
    return { network, membership, ids, find: (peers: string[]) => { found = peers } }
  }

  it('ranks the storage peers that were found, itself among them, by distance', async () => {
    const { membership, ids } = setUp(['storage'], Object.fromEntries(Array.from({ length: 20 }, (_, at) => [`s${at}`, ['storage']])))
    const expected = nearest(kadIdOfKey(key), [...ids, peerIdOf('self')].map((id) => ({ id, kadId: kadIdOfPeer(id) })), 20)
    expect((await membership.closest(key, { signal })).map(({ id }) => id)).toEqual(expected.map(({ id }) => id))
  })

  it('leaves out those of other roles, and itself when it is one', async () => {
    const { membership } = setUp(['compute'], { s0: ['storage'], v0: ['versions'], c0: ['compute'] })
    expect((await membership.closest(key, { signal })).map(({ id }) => id)).toEqual([peerIdOf('s0')])
    expect(membership.members().map(({ id }) => id).sort()).toEqual([peerIdOf('s0'), peerIdOf('v0')].sort())
  })

  it('asks each peer for its description once a minute', async () => {
    const { network, membership } = setUp(['compute'], { s0: ['storage'], s1: ['storage'] })
    await Promise.all([membership.closest(key, { signal }), membership.closest(key, { signal })])
    await membership.closest(Buffer.from('another'), { signal })
    expect(network.requests.get(MEMBER_PROTOCOL)).toBe(2)
    await clock.advance(61_000)
    await membership.closest(key, { signal })
    expect(network.requests.get(MEMBER_PROTOCOL)).toBe(4)
  })

  it('drops who does not answer, and takes it back when it does', async () => {
    const { network, membership, ids } = setUp(['compute'], { s0: ['storage'], s1: ['storage'] })
    network.kill(ids[0]!)
    expect((await membership.closest(key, { signal })).map(({ id }) => id)).toEqual([ids[1]])
    expect(membership.usable(ids[0]!)).toBe(false)
    network.revive(ids[0]!)
    await clock.advance(3000)
    expect(await membership.closest(key, { signal })).toHaveLength(2)
  })

  it('does not wait for ever for a peer that hangs', async () => {
    const { network, membership, ids } = setUp(['compute'], { s0: ['storage'], s1: ['storage'] })
    network.hang(ids[0]!)
    const closest = membership.closest(key, { signal })
    await clock.advance(5000)
    expect((await closest).map(({ id }) => id)).toEqual([ids[1]])
  })

  it('is unavailable when nobody is there', async () => {
    const { membership, find } = setUp(['compute'], {})
    find([])
    expect(await membership.closest(key, { signal }).then(() => 'none', errorCodeOf)).toBe('ERR_UNAVAILABLE')
  })

  it('gives way to the list when that is complete', async () => {
    const { network, membership } = setUp(['compute'], { s0: ['storage'] })
    const list = new MemberList(
      { transport: network.join(peerIdOf('self')), clock, random: { bytes: (count) => new Uint8Array(count), unit: () => 0.5 }, log: new KeptLog(), save: async () => {} },
      { roles: ['compute'], capacityBytes: 0, addresses: () => [], founder: false, bootstrap: [peerIdOf('founder')] }
    )
    const founder = new MemberList(
      { transport: network.join(peerIdOf('founder')), clock, random: { bytes: (count) => new Uint8Array(count), unit: () => 0.5 }, log: new KeptLog(), save: async () => {} },
      { roles: ['storage'], capacityBytes: 1, addresses: () => [], founder: true, bootstrap: [] }
    )
    const switching = new SwitchingMembership(list, membership)
    expect((await switching.closest(key, { signal })).map(({ id }) => id)).toEqual([peerIdOf('s0')])
    for (const one of [founder, list]) {
      one.serve()
      one.start()
    }
    await clock.advance(3000)
    expect((await switching.closest(key, { signal })).map(({ id }) => id)).toEqual([peerIdOf('founder')])
    switching.report(peerIdOf('founder'), 'failed')
    expect(switching.usable(peerIdOf('founder'))).toBe(false)
    const stops = [founder.stop(), list.stop()]
    await clock.advance(10_000)
    await Promise.all(stops)
  })
})

describe('lookups over kad-dht', () => {
  const peers: LivePeer[] = []

  afterEach(async () => {
    await Promise.all(peers.splice(0).map(async (peer) => { await peer.stop() }))
  })

  it('find the storage peers of a small real network, for a client and for a server', async () => {
    for (let at = 0; at < 4; at++) peers.push(await startLivePeer({ kadServer: true, prepare: (transport) => { serve(transport, ['storage']) } }))
    const client = await startLivePeer({ kadServer: false })
    peers.push(client)
    for (const peer of peers.slice(1)) await peer.node.dial(peers[0]!.node.getMultiaddrs())
    const expected = nearest(kadIdOfKey(key), peers.slice(0, 4).map(({ id }) => ({ id, kadId: kadIdOfPeer(id) })), 20).map(({ id }) => id)
    for (const peer of [client, peers[2]!]) {
      const roles: Role[] = peer === client ? ['compute'] : ['storage']
      const membership = new KadMembership({
        transport: peer.transport,
        lookup: kadLookup(peer.node.services.dht),
        clock: nodeClock,
        log: new KeptLog(),
        describeSelf: () => rowOf(peer.id, roles),
        bootstrap: () => [peers[0]!.id]
      })
      // The routing tables fill as identify comes through; until then a lookup finds fewer.
      await expect.poll(async () => (await membership.closest(key, { signal }).catch(() => [])).map(({ id }) => id), { timeout: 15_000 }).toEqual(expected)
    }
  })
})
