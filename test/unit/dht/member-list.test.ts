import { afterEach, describe, expect, it } from 'vitest'
import { MemberList, type StoredMembers } from '../../../src/dht/member-list.ts'
import type { Role } from '../../../src/dht/membership.ts'
import { kadIdOfKey, kadIdOfPeer, nearest } from '../../../src/dht/kad-id.ts'
import { describeMember, exchangeMembers, pushMembers } from '../../../src/protocols/member-protocol.ts'
import { FakeClock } from '../../harness/fake-clock.ts'
import { MemoryNetwork } from '../../harness/memory-transport.ts'
import { peerIdOf } from '../../harness/peer-ids.ts'
import { KeptLog } from '../../harness/quiet.ts'

const SECOND = 1_000

class Fabric {
  readonly clock = new FakeClock()
  readonly network = new MemoryNetwork(this.clock)
  readonly lists = new Map<string, MemberList>()
  readonly stored = new Map<string, StoredMembers>()
  #seed = 1

  start (name: string, init: { roles?: Role[], bootstrap?: string[], founder?: boolean } = {}): MemberList {
    const transport = this.network.join(peerIdOf(name))
    const list = new MemberList({
      transport,
      clock: this.clock,
      log: new KeptLog(),
      random: { bytes: (count) => new Uint8Array(count), unit: () => { this.#seed = (this.#seed * 48271) % 2147483647; return this.#seed / 2147483647 } },
      save: async (stored) => { this.stored.set(name, stored) }
    }, {
      roles: init.roles ?? ['storage'],
      capacityBytes: 1000,
      addresses: () => [`/ip4/127.0.0.1/tcp/${1000 + this.lists.size}`],
      founder: init.founder ?? false,
      stored: this.stored.get(name),
      bootstrap: (init.bootstrap ?? []).map(peerIdOf)
    })
    this.lists.set(name, list)
    list.serve()
    list.start()
    return list
  }

  list (name: string): MemberList {
    const list = this.lists.get(name)
    if (list === undefined) throw new Error(`no peer ${name}`)
    return list
  }

  kill (name: string): void {
    this.network.kill(peerIdOf(name))
  }

  up (name: string): number {
    return this.list(name).members().filter(({ state }) => state === 'up').length
  }
}

describe('member list', () => {
  let fabric: Fabric
  afterEach(async () => {
    const stops = [...fabric.lists.values()].map(async (list) => { await list.stop() })
    await fabric.clock.advance(10 * SECOND)
    await Promise.all(stops)
    expect(fabric.clock.pending).toBe(0)
  })

  it('is known whole, everywhere, within seconds, from one bootstrap address', async () => {
    fabric = new Fabric()
    fabric.start('p0', { founder: true, roles: ['storage', 'versions'] })
    for (let at = 1; at < 50; at++) fabric.start(`p${at}`, { bootstrap: ['p0'] })
    await fabric.clock.advance(8 * SECOND)
    for (const list of fabric.lists.values()) {
      expect(list.complete).toBe(true)
      expect(list.members().filter(({ state }) => state === 'up')).toHaveLength(50)
    }
  })

  it('lets a compute peer learn and does not list it', async () => {
    fabric = new Fabric()
    fabric.start('p0', { founder: true })
    fabric.start('p1', { bootstrap: ['p0'] })
    fabric.start('c0', { roles: ['compute'], bootstrap: ['p0'] })
    await fabric.clock.advance(4 * SECOND)
    expect(fabric.list('c0').complete).toBe(true)
    expect(fabric.list('c0').members().map(({ id }) => id).sort()).toEqual([peerIdOf('p0'), peerIdOf('p1')].sort())
    expect(fabric.up('p0')).toBe(2)
  })

  it('notices a silent member after 15 s and its return at once, and keeps it in the placement', async () => {
    fabric = new Fabric()
    fabric.start('p0', { founder: true })
    for (const name of ['p1', 'p2', 'p3']) fabric.start(name, { bootstrap: ['p0'] })
    await fabric.clock.advance(5 * SECOND)
    fabric.kill('p3')
    await fabric.list('p3').stop()
    await fabric.clock.advance(13 * SECOND)
    expect(fabric.up('p0')).toBe(4)
    await fabric.clock.advance(8 * SECOND)
    for (const name of ['p0', 'p1', 'p2']) {
      expect(fabric.up(name)).toBe(3)
      expect(fabric.list(name).usable(peerIdOf('p3'))).toBe(false)
      expect(fabric.list(name).storageCount()).toBe(4)
    }
    fabric.start('p3') // without a bootstrap: it remembers
    await fabric.clock.advance(5 * SECOND)
    for (const name of ['p0', 'p1', 'p2', 'p3']) expect(fabric.up(name)).toBe(4)
  })

  it('says that a dead member is down to one who joins later', async () => {
    fabric = new Fabric()
    fabric.start('p0', { founder: true })
    fabric.start('p1', { bootstrap: ['p0'] })
    await fabric.clock.advance(3 * SECOND)
    fabric.kill('p1')
    await fabric.list('p1').stop()
    await fabric.clock.advance(20 * SECOND)
    fabric.start('p2', { bootstrap: ['p0'] })
    await fabric.clock.advance(3 * SECOND)
    expect(fabric.list('p2').members().find(({ id }) => id === peerIdOf('p1'))?.state).toBe('down')
  })

  it.each([[1_000_000, 0], [1_000_000, 99], [0, 99]])('outlives an earlier life of its own that it does not remember (%i ms ahead, heartbeat %i)', async (aheadMs, heartbeat) => {
    fabric = new Fabric()
    fabric.start('p0', { founder: true })
    await fabric.clock.advance(3 * SECOND)
    const other = fabric.network.join(peerIdOf('other'))
    const row = await describeMember(other, peerIdOf('p0'), { deadlineMs: SECOND })
    const earlier = { ...row, incarnation: row.incarnation + aheadMs, heartbeat }
    await pushMembers(other, peerIdOf('p0'), [earlier], { deadlineMs: SECOND })
    expect((await describeMember(other, peerIdOf('p0'), { deadlineMs: SECOND })).incarnation).toBe(earlier.incarnation + 1)
  })

  it('outdoes whatever is said of a living member, and takes nothing from the far future', async () => {
    fabric = new Fabric()
    const liar = fabric.network.join(peerIdOf('liar'))
    fabric.start('p0', { founder: true })
    for (const name of ['p1', 'p2']) fabric.start(name, { bootstrap: ['p0'] })
    await fabric.clock.advance(5 * SECOND)
    const told = fabric.list('p1').describeSelf()
    const options = { deadlineMs: SECOND, signal: new AbortController().signal }
    const beat = { key: kadIdOfPeer(peerIdOf('p1')).toString('hex', 0, 8), incarnation: told.incarnation, heartbeat: 2 ** 32 - 1 }
    const lies = [
      async (to: string) => { await exchangeMembers(liar, to, { from: '0'.repeat(16), to: null, complete: true, pull: false, beats: [beat] }, options) },
      async (to: string) => { await pushMembers(liar, to, [{ ...told, incarnation: told.incarnation + 1000, down: true }], options) },
      async (to: string) => { await pushMembers(liar, to, [{ ...told, incarnation: 2 ** 48 - 1 }], options) }
    ]
    for (const [number, lie] of lies.entries()) {
      for (const name of ['p0', 'p1', 'p2']) await lie(peerIdOf(name))
      await fabric.clock.advance(30 * SECOND)
      for (const name of ['p0', 'p1', 'p2']) expect(fabric.up(name), `${name} after lie ${number}`).toBe(3)
    }
    expect((await describeMember(liar, peerIdOf('p1'), options)).incarnation).toBeGreaterThan(told.incarnation)
  })

  it('finds the nearest by distance, itself included', async () => {
    fabric = new Fabric()
    fabric.start('p0', { founder: true })
    for (let at = 1; at < 30; at++) fabric.start(`p${at}`, { bootstrap: ['p0'] })
    await fabric.clock.advance(8 * SECOND)
    const key = Buffer.from('a key')
    const all = [...fabric.lists.keys()].map((name) => ({ id: peerIdOf(name), kadId: kadIdOfPeer(peerIdOf(name)) }))
    const expected = nearest(kadIdOfKey(key), all, 20).map(({ id }) => id)
    for (const list of fabric.lists.values()) expect((await list.closest(key)).map(({ id }) => id)).toEqual(expected)
  })

  it('leaves a peer that failed alone for a moment, and takes it back when it answers', async () => {
    fabric = new Fabric()
    const list = fabric.start('p0', { founder: true })
    list.report(peerIdOf('px'), 'failed')
    expect(list.usable(peerIdOf('px'))).toBe(false)
    await fabric.clock.advance(3 * SECOND)
    expect(list.usable(peerIdOf('px'))).toBe(true)
    list.report(peerIdOf('px'), 'failed')
    list.report(peerIdOf('px'), 'answered')
    expect(list.usable(peerIdOf('px'))).toBe(true)
  })
})
