import { describe, expect, it } from 'vitest'
import { CachedChunks } from '../../../src/dht/cached-chunks.ts'
import { EvictingCache } from '../../../src/dht/evicting-cache.ts'
import { createCounters } from '../../../src/node/world.ts'
import { chunkIdOf } from '../../../src/protocols/cid.ts'
import { FakeClock, settle } from '../../harness/fake-clock.ts'
import { MemoryChunks } from '../../harness/memory-stores.ts'
import { Power, SimulatedDisk } from '../../simulation/simulated-disk.ts'

const silentLog = { debug () {}, info () {}, warn () {}, error () {} }
const chunk = (index: number): Uint8Array => new Uint8Array(Buffer.alloc(4096, `chunk ${index}`))
const id = chunkIdOf(chunk(0))

class CountingChunks extends MemoryChunks {
  gets = 0
  lastSignal: AbortSignal | undefined

  override async get (...args: [string, { signal?: AbortSignal | undefined }?]): Promise<Uint8Array> {
    this.gets += 1
    this.lastSignal = args[1]?.signal
    await settle()
    return await super.get(args[0])
  }
}

async function make (capacityBytes = Infinity, bytesMax = 2 ** 30): Promise<{ fabric: CountingChunks, cache: EvictingCache, clock: FakeClock, disk: SimulatedDisk, cached: CachedChunks, counters: ReturnType<typeof createCounters> }> {
  const clock = new FakeClock()
  const disk = new SimulatedDisk({ power: new Power('cache'), clock, capacityBytes })
  const counters = createCounters()
  const cache = await EvictingCache.open({ disk, clock, log: silentLog, counters }, { root: '/cache', bytesMax, freeFloorBytes: 0 })
  const fabric = new CountingChunks()
  for (const index of [0, 1, 2]) await fabric.put(chunkIdOf(chunk(index)), chunk(index))
  return { fabric, cache, clock, disk, cached: new CachedChunks({ chunks: fabric, cache, log: silentLog, counters }), counters }
}

describe('cached chunks', () => {
  it('fetch once and keep', async () => {
    const { cached, fabric, cache } = await make()
    expect(await cached.get(id)).toEqual(chunk(0))
    expect(await cache.have([id])).toEqual([true])
    expect(await cached.get(id)).toEqual(chunk(0))
    expect(fabric.gets).toBe(1)
  })

  it('share a fetch between readers of the bytes and mounts that want the file', async () => {
    const { cached, fabric, cache } = await make()
    await Promise.all([cached.get(id), cached.ensureCached([id, id]), cached.get(id)])
    expect(fabric.gets).toBe(1)
    expect(cache.usage().chunks).toBe(1)
  })

  it('are files when ensureCached returns', async () => {
    const { cached, fabric, disk, cache } = await make()
    const ids = [0, 1, 2].map((index) => chunkIdOf(chunk(index)))
    expect(await cached.ensureCached(ids.slice(0, 2))).toEqual(ids.slice(0, 2))
    // What is not here is in no books, and what was fetched was checked.
    expect([disk.calls.get('stat'), disk.calls.get('read')]).toEqual([undefined, undefined])
    // Only what was written for it is said to be verified.
    expect(await cached.ensureCached(ids)).toEqual(ids.slice(2))
    expect(disk.paths()).toEqual(ids.map((one) => cache.pathOf(one)).sort())
    expect(await cached.ensureCached(ids)).toEqual([])
    expect(fabric.gets).toBe(3)
  })

  it('are all files when ensureCached returns, also when they are more than fit: the excess goes a little later', async () => {
    const { cached, disk, cache, clock, counters } = await make(Infinity, 2 * 4096)
    const ids = [0, 1, 2].map((index) => chunkIdOf(chunk(index)))
    await cached.ensureCached(ids)
    expect(disk.paths()).toEqual(ids.map((one) => cache.pathOf(one)).sort())
    await cached.ensureCached(ids)
    expect(counters.value('cache_evictions_total')).toBe(0)
    await clock.advance(1000)
    expect(cache.usage()).toEqual({ chunks: 1, bytes: 4096, bytesMax: 2 * 4096 })
    expect(disk.paths()).toHaveLength(1)
  })

  it('are evicted by what comes later, also while others are waited for in another call', async () => {
    const { cached, cache } = await make(Infinity, 2 * 4096)
    const [one, two, three] = [0, 1, 2].map((index) => chunkIdOf(chunk(index))) as [string, string, string]
    await cached.ensureCached([one])
    await Promise.all([cached.ensureCached([two]), cached.ensureCached([three])])
    expect(await cache.have([one])).toEqual([false])
    await cached.ensureCached([one])
    expect(await cache.have([one])).toEqual([true])
  })

  it('replace a file that has rotted', async () => {
    const { cached, fabric, disk, cache } = await make()
    await cached.ensureCached([id])
    disk.corrupt(cache.pathOf(id))
    expect(await cached.get(id)).toEqual(chunk(0))
    expect(fabric.gets).toBe(2)
    expect(await cache.get(id)).toEqual(chunk(0))
  })

  it('on a full disk still serve bytes, but no file', async () => {
    const { cached, counters } = await make(1000)
    expect(await cached.get(id)).toEqual(chunk(0))
    await expect(cached.ensureCached([id])).rejects.toMatchObject({ code: 'ERR_DISK_FULL' })
    expect(counters.value('cache_put_failures_total')).toBe(2)
  })

  it('pass on why a chunk cannot be got', async () => {
    const { cached } = await make()
    const nowhere = chunkIdOf(Buffer.from('nowhere'))
    await expect(cached.get(nowhere)).rejects.toMatchObject({ code: 'ERR_MISSING' })
    await expect(cached.ensureCached([id, nowhere])).rejects.toMatchObject({ code: 'ERR_MISSING' })
  })

  it('abort the fetch when the last one who wants it gives up', async () => {
    const { cached, fabric } = await make()
    const [first, second] = [new AbortController(), new AbortController()]
    const wanted = [cached.get(id, { signal: first.signal }), cached.ensureCached([id], { signal: second.signal })].map(async (one) => await one.catch((error: { code: string }) => error.code))
    while (fabric.lastSignal === undefined) await settle()
    first.abort()
    await wanted[0]
    expect(fabric.lastSignal.aborted).toBe(false)
    second.abort()
    expect(await Promise.all(wanted)).toEqual(['ERR_ABORTED', 'ERR_ABORTED'])
    expect(fabric.lastSignal.aborted).toBe(true)
  })
})
