import { createHash } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { serveChunkStore } from '../../../src/dht/chunk-service.ts'
import { CHUNK_PROTOCOL } from '../../../src/protocols/chunk-protocol.ts'
import { chunkIdOf, type ChunkId } from '../../../src/protocols/cid.ts'
import { createCounters } from '../../../src/node/world.ts'
import { settle } from '../../harness/fake-clock.ts'
import { lying, StorageFabric } from '../../harness/storage-fabric.ts'

/** Nothing that could be packed, so that what is sent has the size of the chunk. */
function chunk (index = 0): { id: ChunkId, bytes: Uint8Array } {
  const bytes = new Uint8Array(createHash('shake256', { outputLength: 4096 }).update(`chunk ${index}`).digest())
  return { id: chunkIdOf(bytes), bytes }
}

/** Advances the clock until the promise has settled: hangs and deadlines pass in no time. */
async function passing<T> (fabric: StorageFabric, promise: Promise<T>): Promise<T> {
  let settled = false
  const end = (): void => { settled = true }
  promise.then(end, end)
  for (let seconds = 0; !settled && seconds < 200; seconds++) await fabric.clock.advance(1000)
  expect(settled, 'it hangs').toBe(true)
  return await promise
}

const { id, bytes } = chunk()

describe('put', () => {
  it('stores at the first three in placement order', async () => {
    const fabric = await StorageFabric.of(6)
    const { chunks, counters } = fabric.client()
    const outcome = await chunks.put(id, bytes)
    expect(outcome).toMatchObject({ isNew: true })
    expect(outcome.replicas).toBeGreaterThanOrEqual(2)
    expect(await outcome.settled).toEqual({ replicas: 3, wanted: 3, sentBytes: 3 * bytes.length })
    expect(await fabric.holders(id)).toEqual(fabric.placementOfChunk(id).slice(0, 3).sort())
    expect(counters.value('chunk_bytes_sent_total')).toBe(3 * bytes.length)
  })

  it('sends nothing that is there already, and says so', async () => {
    const fabric = await StorageFabric.of(4)
    await (await fabric.client().chunks.put(id, bytes)).settled
    const second = await fabric.client('other').chunks.put(id, bytes)
    expect(second.isNew).toBe(false)
    expect(await second.settled).toEqual({ replicas: 3, wanted: 3, sentBytes: 0 })
  })

  it('sends concurrent puts of one chunk once', async () => {
    const fabric = await StorageFabric.of(4)
    const { chunks } = fabric.client()
    const outcomes = await Promise.all(Array.from({ length: 4 }, async () => await chunks.put(id, bytes)))
    expect(outcomes.filter(({ isNew }) => isNew)).toHaveLength(1)
    const sent = await Promise.all(outcomes.map(async ({ settled }) => (await settled).sentBytes))
    expect(sent.reduce((sum, one) => sum + one)).toBe(3 * bytes.length)
  })

  it('asks for many chunks with few questions', async () => {
    const fabric = await StorageFabric.of(3)
    const { chunks } = fabric.client()
    const many = Array.from({ length: 100 }, (_, index) => chunk(index))
    await Promise.all(many.map(async (one) => { await (await chunks.put(one.id, one.bytes)).settled }))
    // 300 puts; one at a time there would be 300 questions as well.
    expect(fabric.network.requests.get(CHUNK_PROTOCOL)).toBeLessThan(330)
  })

  it('replaces a peer that is gone by the next in order', async () => {
    const fabric = await StorageFabric.of(6)
    const order = fabric.placementOfChunk(id)
    fabric.network.kill(order[1] ?? '')
    const { chunks, membership } = fabric.client()
    const { settled } = await chunks.put(id, bytes)
    expect(await settled).toMatchObject({ replicas: 3 })
    expect(await fabric.holders(id)).toEqual([order[0], order[2], order[3]].sort())
    expect(membership.reports).toContainEqual([order[1], 'failed'])
  })

  it('does not wait for a peer that hangs, and replaces it after its deadline', async () => {
    const fabric = await StorageFabric.of(6)
    const order = fabric.placementOfChunk(id)
    fabric.network.hang(order[0] ?? '')
    const { chunks } = fabric.client()
    const outcome = await chunks.put(id, bytes)
    expect(outcome.replicas).toBe(2)
    expect(fabric.clock.monotonic()).toBe(0)
    expect(await passing(fabric, outcome.settled)).toMatchObject({ replicas: 3 })
    expect(await fabric.holders(id)).toEqual([order[1], order[2], order[3]].sort())
  })

  it('tries those that are known to fail last', async () => {
    const fabric = await StorageFabric.of(6)
    const order = fabric.placementOfChunk(id)
    const { chunks, membership } = fabric.client()
    membership.report(order[0] ?? '', 'failed')
    await (await chunks.put(id, bytes)).settled
    expect(await fabric.holders(id)).toEqual([order[1], order[2], order[3]].sort())
  })

  it('keeps fewer replicas in a small fabric, and says it once', async () => {
    const fabric = await StorageFabric.of(1)
    const { chunks, warnings } = fabric.client()
    for (const index of [0, 1, 2]) {
      const one = chunk(index)
      expect(await (await chunks.put(one.id, one.bytes)).settled).toMatchObject({ replicas: 1, wanted: 1 })
    }
    expect(warnings).toEqual([expect.stringMatching(/fewer storage peers/)])
  })

  it('fails when W cannot be reached, and names the reasons', async () => {
    const fabric = await StorageFabric.of(4)
    const [first, ...rest] = fabric.placementOfChunk(id)
    for (const peer of rest) fabric.network.kill(peer)
    await expect(fabric.client().chunks.put(id, bytes)).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE', message: expect.stringContaining(rest[0] ?? '') as string })
    expect(await fabric.holders(id)).toEqual([first])
  })

  it('says that the disks are full when that is why', async () => {
    const fabric = await StorageFabric.of(4, 1000)
    await expect(fabric.client().chunks.put(id, bytes)).rejects.toMatchObject({ code: 'ERR_DISK_FULL' })
  })

  it('sends no second chunk to a peer that was full', async () => {
    const fabric = await StorageFabric.of(4)
    const full = await fabric.add('full', 1000)
    const { chunks } = fabric.client()
    const many = Array.from({ length: 30 }, (_, index) => chunk(index))
    for (const one of many) expect(await (await chunks.put(one.id, one.bytes)).settled).toMatchObject({ replicas: 3 })
    expect(full.counters.value('chunk_bytes_received_total')).toBe(4096)
  })

  it('refuses bytes that do not match', async () => {
    const fabric = await StorageFabric.of(3)
    await expect(fabric.client().chunks.put(id, chunk(1).bytes)).rejects.toMatchObject({ code: 'ERR_CORRUPT' })
  })

  it('uses its own store when it is a replica, and no socket', async () => {
    const fabric = await StorageFabric.of(3)
    const { chunks, counters } = fabric.client('storage-0')
    expect(await (await chunks.put(id, bytes)).settled).toEqual({ replicas: 3, wanted: 3, sentBytes: 2 * bytes.length })
    expect(await fabric.holders(id)).toHaveLength(3)
    expect(counters.value('chunk_bytes_sent_total')).toBe(2 * bytes.length)
  })

  it('goes on to R when the caller gives up after W, and not before', async () => {
    const fabric = await StorageFabric.of(6)
    fabric.network.hang(fabric.placementOfChunk(id)[0] ?? '')
    const caller = new AbortController()
    const { chunks } = fabric.client()
    const outcome = await chunks.put(id, bytes, { signal: caller.signal })
    expect(outcome.replicas).toBe(2)
    caller.abort()
    expect(await passing(fabric, outcome.settled)).toMatchObject({ replicas: 3 })

    for (const peer of fabric.peers.keys()) fabric.network.hang(peer)
    const other = new AbortController()
    const one = chunk(1)
    const put = chunks.put(one.id, one.bytes, { signal: other.signal })
    await settle()
    other.abort()
    await expect(put).rejects.toMatchObject({ code: 'ERR_ABORTED' })
  })

  it('sends nothing for a caller who gave up while its placement was looked up', async () => {
    const fabric = await StorageFabric.of(4)
    const { chunks, membership } = fabric.client()
    const caller = new AbortController()
    const { closest } = membership
    membership.closest = async (...args) => {
      const found = await closest.apply(membership, args)
      caller.abort()
      return found
    }
    await expect(chunks.put(id, bytes, { signal: caller.signal })).rejects.toMatchObject({ code: 'ERR_ABORTED' })
    await settle()
    expect(await fabric.holders(id)).toEqual([])
    expect(fabric.clock.pending).toBe(0)
  })

  it('leaves no timer behind', async () => {
    const fabric = await StorageFabric.of(4)
    const { chunks } = fabric.client()
    await (await chunks.put(id, bytes)).settled
    await chunks.get(id)
    await settle()
    expect(fabric.clock.pending).toBe(0)
  })
})

describe('get', () => {
  async function stored (count = 6): Promise<{ fabric: StorageFabric, order: string[] }> {
    const fabric = await StorageFabric.of(count)
    await (await fabric.client('writer').chunks.put(id, bytes)).settled
    return { fabric, order: fabric.placementOfChunk(id) }
  }

  it('asks the first replica only', async () => {
    const { fabric, order } = await stored()
    const { chunks, counters } = fabric.client()
    expect(new Uint8Array(await chunks.get(id))).toEqual(bytes)
    expect(fabric.peer(order[0]).counters.value('chunk_bytes_sent_total')).toBe(bytes.length)
    expect(counters.value('chunk_bytes_received_total')).toBe(bytes.length)
    expect(counters.value('chunk_hedges_total')).toBe(0)
  })

  it('fetches once for concurrent gets; one that gives up leaves the others alone', async () => {
    const { fabric } = await stored()
    const { chunks, counters } = fabric.client()
    const caller = new AbortController()
    const gets = [chunks.get(id, { signal: caller.signal }), chunks.get(id), chunks.get(id)]
    caller.abort()
    await expect(gets[0]).rejects.toMatchObject({ code: 'ERR_ABORTED' })
    expect(new Uint8Array(await gets[1] as Uint8Array)).toEqual(bytes)
    await gets[2]
    expect(counters.value('chunk_bytes_received_total')).toBe(bytes.length)
  })

  it('goes to the next when one is gone', async () => {
    const { fabric, order } = await stored()
    fabric.network.kill(order[0] ?? '')
    fabric.network.kill(order[1] ?? '')
    expect(new Uint8Array(await fabric.client().chunks.get(id))).toEqual(bytes)
    expect(fabric.clock.monotonic()).toBe(0)
  })

  it('hedges one that hangs, and takes it for failed when that happens again and again', async () => {
    const fabric = await StorageFabric.of(4)
    const { chunks: writer } = fabric.client('writer')
    const many = Array.from({ length: 40 }, (_, index) => chunk(index))
    await Promise.all(many.map(async (one) => { await (await writer.put(one.id, one.bytes)).settled }))
    const hung = 'storage-0'
    const there = many.filter((one) => fabric.placementOfChunk(one.id)[0] === hung)
    expect(there.length).toBeGreaterThan(4)

    fabric.network.hang(hung)
    const { chunks, counters, membership } = fabric.client()
    const waits: number[] = []
    for (const one of there) {
      const startMs = fabric.clock.monotonic()
      const get = chunks.get(one.id)
      let done = false
      void get.then(() => { done = true })
      for (await settle(); !done; await fabric.clock.advance(10));
      waits.push(fabric.clock.monotonic() - startMs)
    }
    expect(waits.slice(0, 3).every((ms) => ms > 0 && ms <= 600)).toBe(true)
    expect(waits.slice(3).every((ms) => ms === 0)).toBe(true)
    expect(counters.value('chunk_hedges_total')).toBe(3)
    expect(membership.reports).toContainEqual([hung, 'failed'])
  })

  it('finds a chunk that was put elsewhere while its replicas were gone', async () => {
    const fabric = await StorageFabric.of(6)
    const order = fabric.placementOfChunk(id)
    for (const peer of order.slice(0, 3)) fabric.network.kill(peer)
    await (await fabric.client('writer').chunks.put(id, bytes)).settled
    for (const peer of order.slice(0, 3)) fabric.network.revive(peer)
    expect(new Uint8Array(await fabric.client().chunks.get(id))).toEqual(bytes)
  })

  it('finds out a liar, uses another, and avoids the liar from then on', async () => {
    const { fabric, order } = await stored(3)
    const liar = fabric.peer(order[0])
    serveChunkStore({ transport: liar.transport, counters: createCounters(), store: lying(liar.store) })
    const { chunks, counters, membership, warnings } = fabric.client()
    expect(new Uint8Array(await chunks.get(id))).toEqual(bytes)
    expect(counters.value('chunk_corrupt_total', { peer: liar.id })).toBe(1)
    expect(membership.reports).toContainEqual([liar.id, 'failed'])
    expect(warnings).toEqual([expect.stringMatching(/do not match/)])

    await fabric.clock.advance(60_000)
    await chunks.get(id)
    expect(counters.value('chunk_corrupt_total')).toBe(1)
  })

  it('tells missing, corrupt and unavailable apart', async () => {
    const { fabric, order } = await stored(4)
    const nowhere = chunk(1).id
    await expect(fabric.client().chunks.get(nowhere)).rejects.toMatchObject({ code: 'ERR_MISSING', fields: { cid: nowhere } })

    fabric.network.kill(order[3] ?? '')
    await expect(fabric.client().chunks.get(nowhere)).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE', message: expect.stringContaining(order[3] ?? '') as string })
    fabric.network.revive(order[3] ?? '')

    for (const peer of order.slice(0, 3)) fabric.peer(peer).disk.corrupt(fabric.peer(peer).store.pathOf(id))
    await expect(fabric.client().chunks.get(id)).rejects.toMatchObject({ code: 'ERR_CORRUPT' })
    // They have put their bad copies away, so now nobody has it.
    await expect(fabric.client().chunks.get(id)).rejects.toMatchObject({ code: 'ERR_MISSING' })
  })

  it('does not call missing what a peer may have that was not among the closest', async () => {
    const fabric = await StorageFabric.of(4)
    const { chunks, membership } = fabric.client()
    membership.hidden.add('storage-2')
    await expect(chunks.get(id)).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
  })

  it('ends within its deadline when everybody hangs', async () => {
    const { fabric } = await stored(6)
    for (const peer of fabric.peers.keys()) fabric.network.hang(peer)
    await expect(passing(fabric, fabric.client().chunks.get(id))).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
    expect(fabric.clock.monotonic()).toBeLessThanOrEqual(31_000)
  })

  it('takes its own copy first, and another when its own is bad', async () => {
    const { fabric, order } = await stored(3)
    const own = order[2] ?? ''
    const { chunks, counters } = fabric.client(own)
    await chunks.get(id)
    expect(counters.value('chunk_bytes_received_total')).toBe(0)
    fabric.peer(own).disk.corrupt(fabric.peer(own).store.pathOf(id))
    expect(new Uint8Array(await chunks.get(id))).toEqual(bytes)
    expect(counters.value('chunk_bytes_received_total')).toBe(bytes.length)
  })

  it('follows members that come while it is at it', async () => {
    const fabric = await StorageFabric.of(2)
    const { chunks } = fabric.client()
    await (await chunks.put(id, bytes)).settled
    for (let index = 2; index < 10; index++) await fabric.add(`storage-${index}`)
    expect(new Uint8Array(await chunks.get(id))).toEqual(bytes)
  })
})

describe('audit', () => {
  it('reports good, bad, absent and silent copies', async () => {
    const fabric = await StorageFabric.of(5)
    const { chunks } = fabric.client()
    const many = Array.from({ length: 10 }, (_, index) => chunk(index))
    for (const one of many) await (await chunks.put(one.id, one.bytes)).settled
    const ids = many.map((one) => one.id)
    for (const audit of await chunks.audit(ids)) expect(audit).toMatchObject({ corrupt: [], unreachable: [], wanted: 3, found: { length: 3 } })

    const order = fabric.placementOfChunk(id)
    const bad = fabric.peer(order[1])
    bad.disk.corrupt(bad.store.pathOf(id))
    await fabric.peer(order[0]).store.delete(id)
    fabric.network.hang(order[4] ?? '')
    const [audit] = await passing(fabric, chunks.audit([id]))
    expect(audit).toEqual({ found: [order[2]], corrupt: [order[1]], unreachable: [order[4]], wanted: 3 })
  })

  it('finds the copies that were put elsewhere', async () => {
    const fabric = await StorageFabric.of(5)
    const order = fabric.placementOfChunk(id)
    fabric.network.kill(order[0] ?? '')
    const { chunks } = fabric.client()
    await (await chunks.put(id, bytes)).settled
    fabric.network.revive(order[0] ?? '')
    const [audit] = await chunks.audit([id])
    expect([...audit?.found ?? []].sort()).toEqual([order[1], order[2], order[3]].sort())
  })
})

describe('service', () => {
  it('refuses a chunk of zeros: a hole is not stored', async () => {
    const fabric = await StorageFabric.of(1)
    const zeros = new Uint8Array(4096)
    await expect(fabric.client().chunks.put(chunkIdOf(zeros), zeros)).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE', message: expect.stringMatching(/hole/) as string })
    expect(fabric.peer('storage-0').store.usage().chunks).toBe(0)
  })

  it('of a compute peer answers gets from its cache, and refuses the rest', async () => {
    const fabric = await StorageFabric.of(1)
    const peer = fabric.peer('storage-0')
    await peer.store.put(id, bytes)
    serveChunkStore({ transport: peer.transport, counters: createCounters(), cache: peer.store })
    const { chunks, counters } = fabric.client()
    expect(new Uint8Array(await chunks.get(id))).toEqual(bytes)
    expect(counters.value('chunk_bytes_received_total')).toBe(bytes.length)
    const other = chunk(1)
    await expect(chunks.put(other.id, other.bytes)).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE', message: expect.stringMatching(/not a storage peer/) as string })
  })
})
