import { mkdtemp, readdir, readFile, rm, utimes, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { DiskChunkStore, LEASE_GRANULARITY_MS } from '../../../src/dht/disk-chunk-store.ts'
import { nodeDisk } from '../../../src/dht/node-disk.ts'
import { createCounters, nodeClock } from '../../../src/node/world.ts'
import { chunkIdOf } from '../../../src/protocols/cid.ts'
import type { Disk } from '../../../src/protocols/seams.ts'
import { storeSuite, type StoreUnderTest } from '../../harness/chunk-store-suite.ts'
import { FakeClock } from '../../harness/fake-clock.ts'
import { Power, SimulatedDisk } from '../../simulation/simulated-disk.ts'

const silentLog = { debug () {}, info () {}, warn () {}, error () {} }

async function onRealDisk (durable: boolean): Promise<StoreUnderTest> {
  const root = await mkdtemp(join(tmpdir(), 'p2pvm-store-'))
  const components = { disk: nodeDisk, clock: nodeClock, log: silentLog, counters: createCounters() }
  return {
    open: async () => await DiskChunkStore.open(components, { root, durable, freeFloorBytes: 0 }),
    corrupt: async (path) => {
      const bytes = await readFile(path)
      bytes[0] = (bytes[0] ?? 0) ^ 0xff
      await writeFile(path, bytes)
    },
    leaveBehind: async (bytes) => { await writeFile(join(root, 'tmp', 'unfinished'), bytes) },
    files: async () => (await readdir(root, { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name)).sort(),
    remove: async () => { await rm(root, { recursive: true }) }
  }
}

async function onSimulatedDisk (durable: boolean): Promise<StoreUnderTest> {
  const clock = new FakeClock()
  const disk = new SimulatedDisk({ power: new Power('suite'), clock })
  return {
    open: async () => await openOn(disk, clock, { durable }),
    corrupt: async (path) => { disk.corrupt(path) },
    leaveBehind: async (bytes) => { await (await disk.create('/store/tmp/unfinished')).write(bytes, 0) },
    files: async () => disk.paths(),
    remove: async () => {}
  }
}

async function openOn (disk: Disk, clock: FakeClock, { durable = true, freeFloorBytes = 0, counters = createCounters() } = {}): Promise<DiskChunkStore> {
  return await DiskChunkStore.open({ disk, clock, log: silentLog, counters }, { root: '/store', durable, freeFloorBytes })
}

storeSuite('durable store on the real disk', async () => await onRealDisk(true))
storeSuite('cache on the real disk', async () => await onRealDisk(false))
storeSuite('durable store on the simulated disk', async () => await onSimulatedDisk(true))
storeSuite('cache on the simulated disk', async () => await onSimulatedDisk(false))

const bytes = Buffer.alloc(5000, 'chunk')
const id = chunkIdOf(bytes)
const numbered = (count: number): Buffer[] => Array.from({ length: count }, (_, index) => Buffer.alloc(5000, `chunk ${index}`))

describe('leases', () => {
  it('are renewed by have and put, but at most once an hour', async () => {
    const clock = new FakeClock()
    const disk = new SimulatedDisk({ power: new Power('leases'), clock })
    const store = await openOn(disk, clock)
    const leaseStart = async (): Promise<number> => (await disk.stat(store.pathOf(id))).mtimeMs
    await store.put(id, bytes)
    expect(await leaseStart()).toBe(clock.now())

    const first = clock.now()
    await clock.advance(LEASE_GRANULARITY_MS)
    await store.have([id])
    expect(await leaseStart()).toBe(first)

    await clock.advance(1)
    await store.have([id])
    expect(await leaseStart()).toBe(clock.now())

    await clock.advance(LEASE_GRANULARITY_MS + 1)
    await store.put(id, bytes)
    expect(await leaseStart()).toBe(clock.now())
  })

  it('are set on a real file', async () => {
    const under = await onRealDisk(true)
    try {
      const store = await under.open()
      await store.put(id, bytes)
      const longAgo = new Date(Date.now() - 3 * LEASE_GRANULARITY_MS)
      await utimes(store.pathOf(id), longAgo, longAgo)
      expect(await store.have([id])).toEqual([true])
      expect((await stat(store.pathOf(id))).mtimeMs).toBeGreaterThan(Date.now() - LEASE_GRANULARITY_MS)
    } finally {
      await under.remove()
    }
  })
})

describe('a full disk', () => {
  it('refuses, leaves nothing behind, and goes on when there is room again', async () => {
    const clock = new FakeClock()
    const disk = new SimulatedDisk({ power: new Power('full'), clock, capacityBytes: 12_000 })
    // A statfs that is a second old: the writes themselves run into ENOSPC.
    const store = await openOn(Object.assign(disk, { freeBytes: async () => Infinity }), clock)
    const [one, two, three] = numbered(3) as [Buffer, Buffer, Buffer]
    await store.put(chunkIdOf(one), one)
    await store.put(chunkIdOf(two), two)
    await expect(store.put(chunkIdOf(three), three)).rejects.toMatchObject({ code: 'ERR_DISK_FULL' })
    expect(disk.paths()).toEqual([store.pathOf(chunkIdOf(one)), store.pathOf(chunkIdOf(two))].sort())
    expect(store.usage()).toEqual({ chunks: 2, bytes: 10_000 })

    await store.delete(chunkIdOf(one))
    expect(await store.put(chunkIdOf(three), three)).toBe(true)
  })

  it('is never reached: a floor of free bytes is kept', async () => {
    const clock = new FakeClock()
    const disk = new SimulatedDisk({ power: new Power('floor'), clock, capacityBytes: 100_000 })
    const store = await openOn(disk, clock, { freeFloorBytes: 85_000 })
    const results = []
    for (const one of numbered(5)) results.push(await store.put(chunkIdOf(one), one).catch((error: { code: string }) => error.code))
    expect(results).toEqual([true, true, true, 'ERR_DISK_FULL', 'ERR_DISK_FULL'])

    const [first] = numbered(1) as [Buffer]
    await store.delete(chunkIdOf(first))
    await clock.advance(1000)
    const [, , , fourth] = numbered(4) as [Buffer, Buffer, Buffer, Buffer]
    expect(await store.put(chunkIdOf(fourth), fourth)).toBe(true)
  })
})

describe('syncs', () => {
  it('of a folder are shared by the puts that need one', async () => {
    const clock = new FakeClock()
    const disk = new SimulatedDisk({ power: new Power('shared'), clock })
    const store = await openOn(disk, clock)
    const before = disk.calls.get('syncDirectory') ?? 0
    const chunks = numbered(400)
    await Promise.all(chunks.map(async (one) => await store.put(chunkIdOf(one), one)))
    const syncs = (disk.calls.get('syncDirectory') ?? 0) - before
    // At least one per folder; without sharing, 400.
    expect(syncs).toBeGreaterThanOrEqual(32)
    expect(syncs).toBeLessThan(200)
    expect(disk.calls.get('datasync')).toBe(400)
  })

  it('are not done for a cache', async () => {
    const clock = new FakeClock()
    const disk = new SimulatedDisk({ power: new Power('cache'), clock })
    const store = await openOn(disk, clock, { durable: false })
    await store.put(id, bytes)
    await clock.advance(10 * LEASE_GRANULARITY_MS)
    await store.have([id])
    expect([...disk.calls.keys()].filter((call) => /sync|touch/.test(call))).toEqual([])
  })
})

describe('when a directory cannot be synced', () => {
  it('the put fails, and the chunk does not count as here', async () => {
    const clock = new FakeClock()
    const disk = new SimulatedDisk({ power: new Power('broken'), clock })
    let broken = false
    const syncDirectory = disk.syncDirectory.bind(disk)
    disk.syncDirectory = async (path) => {
      if (broken) throw Object.assign(new Error('EIO'), { code: 'EIO' })
      await syncDirectory(path)
    }
    const store = await openOn(disk, clock)
    broken = true
    await expect(store.put(id, bytes)).rejects.toThrow(/EIO/)
    expect(await store.have([id])).toEqual([false])
    expect(store.usage()).toEqual({ chunks: 0, bytes: 0 })
    broken = false
    expect(await store.put(id, bytes)).toBe(true)
  })
})

it('a sector that cannot be read is a bad copy', async () => {
  const clock = new FakeClock()
  const counters = createCounters()
  const disk = new SimulatedDisk({ power: new Power('sector'), clock })
  const read = disk.read.bind(disk)
  disk.read = async (path) => {
    if (disk.paths().includes(path)) throw Object.assign(new Error('EIO'), { code: 'EIO' })
    return await read(path)
  }
  const store = await openOn(disk, clock, { counters })
  await store.put(id, bytes)
  await expect(store.get(id)).rejects.toMatchObject({ code: 'ERR_CORRUPT' })
  expect(counters.value('chunk_quarantined_total')).toBe(1)
})
