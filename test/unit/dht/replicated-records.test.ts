import { describe, expect, it } from 'vitest'
import type { NamedRecord } from '../../../src/dht/records.ts'
import { RECORD_PROTOCOL } from '../../../src/protocols/record-protocol.ts'
import { settle } from '../../harness/fake-clock.ts'
import { StorageFabric } from '../../harness/storage-fabric.ts'

const record = (name: string, text = `value of ${name}`): NamedRecord => ({ name, value: new Uint8Array(Buffer.from(text)) })
const level = (count: number): NamedRecord[] => Array.from({ length: count }, (_, index) => record(`node/blob/1/0/${index}`))
const text = (value: Uint8Array | undefined): string | undefined => value === undefined ? undefined : Buffer.from(value).toString()

/** Advances the clock until the promise has settled. */
async function passing<T> (fabric: StorageFabric, promise: Promise<T>): Promise<T> {
  let settled = false
  const end = (): void => { settled = true }
  promise.then(end, end)
  for (let seconds = 0; !settled && seconds < 200; seconds++) await fabric.clock.advance(1000)
  expect(settled, 'it hangs').toBe(true)
  return await promise
}

function requests (fabric: StorageFabric): number {
  return fabric.network.requests.get(RECORD_PROTOCOL) ?? 0
}

const one = record('version/blob/1')

describe('put', () => {
  it('stores each record at the first three in placement order', async () => {
    const fabric = await StorageFabric.of(6)
    const records = level(20)
    await fabric.client().records.put(records)
    await settle()
    for (const { name } of records) expect(fabric.holdersOfRecord(name)).toEqual(fabric.placementOfRecord(name).slice(0, 3).sort())
  })

  it('sends one batch per peer', async () => {
    const fabric = await StorageFabric.of(4)
    await fabric.client().records.put(level(200))
    await settle()
    expect(requests(fabric)).toBe(4)
  })

  it('splits what is too large for one batch', async () => {
    const fabric = await StorageFabric.of(1)
    const large = Array.from({ length: 40 }, (_, index) => ({ name: `node/${index}`, value: new Uint8Array(100_000) }))
    await fabric.client().records.put(large)
    expect(requests(fabric)).toBe(4)
    expect((await fabric.client('reader').records.get(large.map(({ name }) => name))).every((value) => value?.length === 100_000)).toBe(true)
  })

  it('takes the same value again, and no other', async () => {
    const fabric = await StorageFabric.of(4)
    const { records } = fabric.client()
    await records.put([one])
    await records.put([one])
    await expect(records.put([record('other'), record(one.name, 'another')])).rejects.toMatchObject({ code: 'ERR_CONFLICT', fields: { name: one.name } })
    expect(text((await records.get([one.name]))[0])).toBe(`value of ${one.name}`)
  })

  it('does not let one writer\'s conflict fail another whose record travels in the same batch', async () => {
    const fabric = await StorageFabric.of(1)
    const { records } = fabric.client()
    await records.put([one])
    const [bad, good] = await Promise.allSettled([records.put([record(one.name, 'another')]), records.put([record('mine')])])
    expect([bad?.status, good?.status]).toEqual(['rejected', 'fulfilled'])
  })

  it('is not allowed what no storage peer takes, and does not keep out what travels with it', async () => {
    const fabric = await StorageFabric.of(4)
    fabric.admits = ({ name }, from) => name !== one.name && from === 'client'
    const { records } = fabric.client()
    const [bad, good] = await Promise.allSettled([records.put([one]), records.put([record('mine')])])
    expect(bad).toMatchObject({ status: 'rejected', reason: { code: 'ERR_NOT_ALLOWED', message: expect.stringContaining(one.name) } })
    expect(good.status).toBe('fulfilled')
    await settle()
    expect([fabric.holdersOfRecord(one.name).length, fabric.holdersOfRecord('mine').length]).toEqual([0, 3])
    await expect(fabric.client('other').records.put([record('mine')])).rejects.toMatchObject({ code: 'ERR_NOT_ALLOWED' })
  })

  it('goes past one that refuses what the others take', async () => {
    const fabric = await StorageFabric.of(4)
    const order = fabric.placementOfRecord(one.name)
    let refusals = 0
    fabric.admits = () => ++refusals > 1
    await fabric.client().records.put([one])
    await settle()
    expect(refusals).toBe(4)
    expect(fabric.holdersOfRecord(one.name).length).toBe(3)
    expect(fabric.holdersOfRecord(one.name)).toContain(order[3])
  })

  it('goes to the next when one is gone or hangs, without waiting for it when W have it', async () => {
    const fabric = await StorageFabric.of(6)
    const order = fabric.placementOfRecord(one.name)
    fabric.network.hang(order[0] ?? '')
    fabric.network.kill(order[1] ?? '')
    await fabric.client().records.put([one])
    expect(fabric.clock.monotonic()).toBe(0)
    expect(fabric.holdersOfRecord(one.name)).toEqual([order[2], order[3]].sort())
    await fabric.clock.advance(5_000)
    await settle()
    expect(fabric.holdersOfRecord(one.name)).toEqual([order[2], order[3], order[4]].sort())
  })

  it('costs one deadline, not one per batch, when a peer hangs', async () => {
    const fabric = await StorageFabric.of(3)
    fabric.network.hang('storage-0')
    fabric.network.hang('storage-1')
    const { records } = fabric.client()
    await expect(passing(fabric, Promise.all([records.put(level(3000)), records.put(level(100))]))).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
    expect(fabric.clock.monotonic()).toBeLessThanOrEqual(6_000)
  })

  it('fails when W cannot be reached', async () => {
    const fabric = await StorageFabric.of(3)
    fabric.network.kill('storage-0')
    fabric.network.kill('storage-1')
    await expect(fabric.client().records.put([one])).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE', message: expect.stringMatching(/storage-0|storage-1/) as string })
  })

  it('says that the disks are full when that is why', async () => {
    const fabric = await StorageFabric.of(3)
    for (const { recordDisk } of fabric.peers.values()) recordDisk.fate = () => 'disk full'
    await expect(fabric.client().records.put([one])).rejects.toMatchObject({ code: 'ERR_DISK_FULL' })
  })

  it('uses its own store when it is a replica', async () => {
    const fabric = await StorageFabric.of(3)
    await fabric.client('storage-0').records.put([one])
    await settle()
    expect(fabric.holdersOfRecord(one.name)).toHaveLength(3)
    expect(requests(fabric)).toBe(2)
  })

  it('refuses names and values out of bounds before it sends anything', async () => {
    const fabric = await StorageFabric.of(1)
    await expect(fabric.client().records.put([record('no spaces please')])).rejects.toMatchObject({ code: 'ERR_USAGE' })
    expect(requests(fabric)).toBe(0)
  })

  it('ends when the caller gives up', async () => {
    const fabric = await StorageFabric.of(3)
    for (const peer of fabric.peers.keys()) fabric.network.hang(peer)
    const caller = new AbortController()
    const put = fabric.client().records.put([one], { signal: caller.signal })
    await settle()
    caller.abort()
    await expect(put).rejects.toMatchObject({ code: 'ERR_ABORTED' })
  })
})

describe('get', () => {
  async function stored (records: NamedRecord[], count = 4): Promise<StorageFabric> {
    const fabric = await StorageFabric.of(count)
    await fabric.client('writer').records.put(records)
    await settle()
    fabric.network.requests.clear()
    return fabric
  }

  it('gives values in the order of the names, duplicates too', async () => {
    const fabric = await stored(level(3))
    const values = await fabric.client().records.get(['node/blob/1/0/2', 'node/nowhere', 'node/blob/1/0/0', 'node/blob/1/0/2'])
    expect(values.map(text)).toEqual(['value of node/blob/1/0/2', undefined, 'value of node/blob/1/0/0', 'value of node/blob/1/0/2'])
  })

  it('sends one batch per peer', async () => {
    const fabric = await stored(level(200))
    const values = await fabric.client().records.get(level(200).map(({ name }) => name))
    expect(values.map(text)).toEqual(level(200).map(({ value }) => text(value)))
    expect(requests(fabric)).toBe(4)
  })

  it('asks the next for what one lacks', async () => {
    const fabric = await stored([one])
    const order = fabric.placementOfRecord(one.name)
    await fabric.add(order[0] ?? '') // the same peer with an empty disk
    expect(text((await fabric.client().records.get([one.name]))[0])).toBe(`value of ${one.name}`)
  })

  it('hedges a peer that hangs', async () => {
    const fabric = await stored(level(50))
    fabric.network.hang('storage-1')
    const { records, counters } = fabric.client()
    const values = await passing(fabric, records.get(level(50).map(({ name }) => name)))
    expect(values.every((value) => value !== undefined)).toBe(true)
    expect(fabric.clock.monotonic()).toBeLessThanOrEqual(1_000)
    expect(counters.value('record_hedges_total')).toBeGreaterThan(0)
  })

  it('is undefined only when everybody answered', async () => {
    const fabric = await stored([one])
    expect(await fabric.client().records.get(['nowhere'])).toEqual([undefined])
    fabric.network.kill('storage-3')
    await expect(fabric.client().records.get(['nowhere'])).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE', message: expect.stringContaining('storage-3') as string })
  })

  it('asks another when a value cannot be right, and avoids the one that sent it', async () => {
    const fabric = await stored([one])
    const [first = ''] = fabric.placementOfRecord(one.name)
    const liar = await fabric.add(first)
    await liar.records.put([record(one.name, 'forged')])
    const { records, counters, membership } = fabric.client()
    const accept = (_name: string, value: Uint8Array): boolean => text(value) !== 'forged'
    expect(text((await records.get([one.name], { accept }))[0])).toBe(`value of ${one.name}`)
    expect(counters.value('record_corrupt_total', { peer: first })).toBe(1)
    expect(membership.reports).toContainEqual([first, 'failed'])
    await records.get([one.name], { accept })
    expect(counters.value('record_corrupt_total')).toBe(1)
    await expect(records.get([one.name], { accept: () => false })).rejects.toMatchObject({ code: 'ERR_CORRUPT' })
  })

  it('ends when the caller gives up, and leaves no timer behind', async () => {
    const fabric = await stored([one])
    for (const peer of fabric.peers.keys()) fabric.network.hang(peer)
    const caller = new AbortController()
    const get = fabric.client().records.get([one.name], { signal: caller.signal })
    await settle()
    caller.abort()
    await expect(get).rejects.toMatchObject({ code: 'ERR_ABORTED' })
    await fabric.clock.advance(5_000)
    expect(fabric.clock.pending).toBe(0)
  })
})
