import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { USE_GRANULARITY_MS } from '../../../src/dht/chunk-store.ts'
import { EvictingCache } from '../../../src/dht/evicting-cache.ts'
import { nodeDisk } from '../../../src/dht/node-disk.ts'
import { nodeClock } from '../../../src/node/world.ts'
import { type ChunkId, chunkIdOf } from '../../../src/protocols/cid.ts'
import { storeSuite } from '../../harness/chunk-store-suite.ts'
import { FakeClock } from '../../harness/fake-clock.ts'
import { KeptLog, PlainCounters } from '../../harness/quiet.ts'
import { Power, SimulatedDisk } from '../../simulation/simulated-disk.ts'

const CHUNK = 1000
/** A pass ends at 95 %: of 20 chunks one goes, and makes room for the one that comes. */
const BOUND = 20 * CHUNK

const chunkOf = (index: number): Buffer => Buffer.alloc(CHUNK, `chunk ${index}.`)
const idOf = (index: number): ChunkId => chunkIdOf(chunkOf(index))
const range = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, index) => from + index)

class Machine {
  readonly clock = new FakeClock()
  readonly counters = new PlainCounters()
  readonly log = new KeptLog()
  readonly disk: SimulatedDisk

  constructor (capacityBytes = Infinity) {
    this.disk = new SimulatedDisk({ power: new Power('evicting'), clock: this.clock, capacityBytes })
  }

  async open ({ bytesMax = BOUND, freeFloorBytes = 0 } = {}): Promise<EvictingCache> {
    return await EvictingCache.open(this, { root: '/cache', bytesMax, freeFloorBytes })
  }

  /** Which chunks of `[0, end)` have a file. */
  here (cache: EvictingCache, end = 100): number[] {
    const paths = new Set(this.disk.paths())
    return range(0, end).filter((index) => paths.has(cache.pathOf(idOf(index))))
  }

  /** Files in the cache, and what it says of them. */
  expectCounted (cache: EvictingCache): void {
    const { length } = this.disk.paths()
    expect(cache.usage()).toMatchObject({ chunks: length, bytes: length * CHUNK })
  }
}

async function putAll (cache: EvictingCache, indices: readonly number[]): Promise<void> {
  for (const index of indices) await cache.put(idOf(index), chunkOf(index))
}

storeSuite('evicting cache on the real disk', async () => {
  const root = await mkdtemp(join(tmpdir(), 'p2pvm-cache-'))
  return {
    open: async () => await EvictingCache.open({ disk: nodeDisk, clock: nodeClock, log: new KeptLog(), counters: new PlainCounters() }, { root, bytesMax: 100_000, freeFloorBytes: 0 }),
    corrupt: async (path) => {
      const bytes = await readFile(path)
      bytes[0] = (bytes[0] ?? 0) ^ 0xff
      await writeFile(path, bytes)
    },
    leaveBehind: async (bytes) => { await writeFile(join(root, 'tmp', 'unfinished'), bytes) },
    files: async () => (await readdir(root, { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name)).sort(),
    remove: async () => { await rm(root, { recursive: true }) }
  }
})

describe('what is evicted', () => {
  it('is what was put first, where nothing else was used', async () => {
    const machine = new Machine()
    const cache = await machine.open()
    await putAll(cache, range(0, 20))
    expect(machine.here(cache)).toEqual(range(0, 20))
    await putAll(cache, [20])
    expect(machine.here(cache)).toEqual(range(2, 21)) // 95 % of 20, with the new one
    machine.expectCounted(cache)
    expect(machine.counters.value('cache_evictions_total')).toBe(2)
    expect(machine.counters.value('cache_evicted_bytes_total')).toBe(2 * CHUNK)
  })

  it.each<[string, (cache: EvictingCache, id: ChunkId) => Promise<unknown>]>([
    ['get', async (cache, id) => await cache.get(id)],
    ['getPacked', async (cache, id) => await cache.getPacked(id)],
    ['have', async (cache, id) => await cache.have([id])],
    ['put', async (cache, id) => await cache.put(id, chunkOf(0))]
  ])('is not what %s has used since', async (_, use) => {
    const machine = new Machine()
    const cache = await machine.open()
    await putAll(cache, range(0, 20))
    await use(cache, idOf(0))
    await putAll(cache, [20])
    expect(machine.here(cache)).toEqual([0, ...range(3, 21)])
  })

  it('is not what a mount has used since, of which only the file\'s time tells', async () => {
    const machine = new Machine()
    const cache = await machine.open()
    await putAll(cache, range(0, 20))
    await machine.clock.advance(USE_GRANULARITY_MS)
    await machine.disk.setMtime(cache.pathOf(idOf(0)), machine.clock.now())
    await putAll(cache, [20])
    expect(machine.here(cache)).toEqual([0, ...range(3, 21)])
    // Once: it is not used for ever.
    await putAll(cache, range(21, 41))
    expect(machine.here(cache)).not.toContain(0)
  })

  it('is something, also when mounts have used all of it', async () => {
    const machine = new Machine()
    const cache = await machine.open()
    await putAll(cache, range(0, 20))
    await machine.clock.advance(USE_GRANULARITY_MS)
    for (const index of range(0, 20)) await machine.disk.setMtime(cache.pathOf(idOf(index)), machine.clock.now())
    await putAll(cache, [20])
    expect(machine.here(cache)).toHaveLength(19)
    expect(machine.here(cache)).toContain(20)
  })

  it('is a twentieth at a time', async () => {
    const machine = new Machine()
    const cache = await machine.open({ bytesMax: 60 * CHUNK })
    await putAll(cache, range(0, 61))
    expect(machine.here(cache)).toEqual(range(4, 61))
    machine.expectCounted(cache)
  })
})

describe('what is put checked', () => {
  it('is written without a look at it, or at the disk', async () => {
    const machine = new Machine()
    const cache = await machine.open()
    machine.disk.calls.clear()
    expect(await cache.putChecked(idOf(0), chunkOf(1))).toBe(true)
    expect(Object.fromEntries(machine.disk.calls)).toEqual({ freeBytes: 1, create: 1, write: 1, close: 1, rename: 1 })
    await expect(cache.get(idOf(0))).rejects.toMatchObject({ code: 'ERR_CORRUPT' })
  })

  it('is in the books as any other', async () => {
    const machine = new Machine()
    const cache = await machine.open()
    for (const index of range(0, 20)) {
      await cache.putChecked(idOf(index), chunkOf(index))
      await machine.clock.advance(1500)
    }
    machine.expectCounted(cache)
    expect(await cache.get(idOf(0))).toEqual(new Uint8Array(chunkOf(0)))
    await cache.putChecked(idOf(20), chunkOf(20))
    expect(machine.here(cache)).toEqual([0, ...range(3, 21)])
    machine.expectCounted(cache)
  })

  it('is looked at when it ought to be here: a file that somebody removed is written again, a bad one replaced', async () => {
    const machine = new Machine()
    const cache = await machine.open()
    await putAll(cache, [0, 1, 2])
    await machine.disk.unlink(cache.pathOf(idOf(0)))
    machine.disk.corrupt(cache.pathOf(idOf(1)))
    expect(await cache.putChecked(idOf(0), chunkOf(0))).toBe(true)
    expect(await cache.putChecked(idOf(1), chunkOf(1))).toBe(true)
    expect(await cache.putChecked(idOf(2), chunkOf(2))).toBe(false)
    for (const index of [0, 1, 2]) expect(await cache.get(idOf(index))).toEqual(new Uint8Array(chunkOf(index)))
    expect(cache.usage()).toMatchObject({ chunks: 3, bytes: 3 * CHUNK })
  })

  it('is one file, and counted once, also when it comes from several sides', async () => {
    const machine = new Machine()
    const cache = await machine.open()
    const results = await Promise.all([...range(0, 4).map(async () => await cache.putChecked(idOf(0), chunkOf(0))), cache.put(idOf(0), chunkOf(0))])
    expect(results.filter((isNew) => isNew)).toHaveLength(1)
    machine.expectCounted(cache)
  })

  it('gets room as any other, and is no hole', async () => {
    const machine = new Machine(25 * CHUNK)
    const cache = await machine.open({ bytesMax: 100 * CHUNK, freeFloorBytes: CHUNK })
    await putAll(cache, range(0, 24))
    for (const index of range(24, 30)) await cache.putChecked(idOf(index), chunkOf(index))
    expect(machine.here(cache)).toContain(29)
    machine.expectCounted(cache)
    const zeros = new Uint8Array(CHUNK)
    await expect(cache.putChecked(chunkIdOf(zeros), zeros)).rejects.toMatchObject({ code: 'ERR_USAGE' })
  })
})

describe('what is held', () => {
  it('stays, and lets the cache grow beyond its bound; a second after it was let go the excess goes', async () => {
    const machine = new Machine()
    const cache = await machine.open()
    const ids = range(0, 30).map(idOf)
    const letGo = cache.hold(ids)
    const letGoAgain = cache.hold([idOf(0)])
    await putAll(cache, range(0, 30))
    expect(machine.here(cache)).toEqual(range(0, 30))
    letGo()
    await machine.clock.advance(999)
    expect(machine.here(cache)).toEqual(range(0, 30))
    await machine.clock.advance(1)
    expect(machine.here(cache)).toEqual([0, ...range(12, 30)])
    letGoAgain()
    await putAll(cache, range(30, 50))
    expect(machine.here(cache)).not.toContain(0)
    machine.expectCounted(cache)
  })

  it('is not said to be here while it is on its way out', async () => {
    const machine = new Machine()
    const cache = await machine.open()
    await putAll(cache, range(0, 20))
    const putting = putAll(cache, [20])
    for (let turn = 0; turn < 40; turn++) {
      // Whatever moment of the eviction this is: held and found means a file until it is let go.
      const letGo = cache.hold([idOf(0)])
      const [there] = await cache.have([idOf(0)])
      expect(machine.here(cache).includes(0)).toBe(there)
      letGo()
      await Promise.resolve()
    }
    await putting
    machine.expectCounted(cache)
  })

  it('is what a put waits for no longer than it must: nothing is left to evict, and it goes on', async () => {
    const machine = new Machine()
    const cache = await machine.open()
    await putAll(cache, range(0, 20))
    const letGo = cache.hold(range(0, 20).map(idOf))
    expect(await cache.put(idOf(20), chunkOf(20))).toBe(true)
    expect(cache.usage()).toEqual({ chunks: 21, bytes: 21 * CHUNK, bytesMax: BOUND })
    letGo()
  })
})

describe('a chunk on its way out', () => {
  it.each<[string, (cache: EvictingCache) => Promise<boolean>]>([
    ['get', async (cache) => await cache.get(idOf(0)) !== undefined],
    ['have', async (cache) => (await cache.have([idOf(0)]))[0] === true],
    ['put', async (cache) => await cache.put(idOf(0), chunkOf(0)).then(() => true)]
  ])('is gone before %s looks for it', async (_, ask) => {
    // At each moment of the eviction.
    for (let turns = 0; turns < 60; turns++) {
      const machine = new Machine()
      const cache = await machine.open()
      await putAll(cache, range(0, 20))
      const putting = putAll(cache, [20])
      for (let turn = 0; turn < turns; turn++) await Promise.resolve()
      const there = await ask(cache)
      await putting
      expect(machine.here(cache).includes(0)).toBe(there)
      machine.expectCounted(cache)
    }
  })
})

describe('many at once', () => {
  it('never pass the bound by more than what is on its way, and are counted once', async () => {
    const machine = new Machine()
    const cache = await machine.open()
    const chance = new Power('which').chance
    let most = 0
    const lane = async (): Promise<void> => {
      for (let turn = 0; turn < 100; turn++) {
        const index = chance.below(80)
        const got = await cache.get(idOf(index))
        if (got === undefined) await cache.put(idOf(index), chunkOf(index))
        else expect(Buffer.compare(got, chunkOf(index))).toBe(0)
        if (chance.below(10) === 0) await cache.have([idOf(chance.below(80)), idOf(chance.below(80))])
        most = Math.max(most, machine.here(cache).length)
      }
    }
    await Promise.all(Array.from({ length: 6 }, lane))
    expect(most).toBeGreaterThan(15)
    expect(most).toBeLessThanOrEqual(20 + 8) // on their way out
    machine.expectCounted(cache)
    const { chunks } = (await machine.open()).usage()
    expect(chunks).toBe(cache.usage().chunks)
    expect(machine.counters.value('cache_evictions_total')).toBe(machine.disk.calls.get('unlink'))
  })
})

describe('a restart', () => {
  it('finds sizes, and the order of use to within ten minutes', async () => {
    const machine = new Machine()
    const before = await machine.open()
    for (const index of range(0, 20)) {
      await putAll(before, [index])
      await machine.clock.advance(1000)
    }
    await machine.clock.advance(USE_GRANULARITY_MS)
    await before.get(idOf(0))
    await before.have([idOf(2)])
    const cache = await machine.open()
    machine.expectCounted(cache)
    await putAll(cache, [20, 21, 22])
    expect(machine.here(cache)).toEqual([0, 2, ...range(6, 23)].sort((a, b) => a - b))
  })

  it('with a smaller bound leaves what fits', async () => {
    const machine = new Machine()
    await putAll(await machine.open(), range(0, 20))
    const cache = await machine.open({ bytesMax: 10 * CHUNK })
    expect(cache.usage()).toEqual({ chunks: 9, bytes: 9 * CHUNK, bytesMax: 10 * CHUNK })
    expect(machine.disk.paths()).toHaveLength(9)
  })
})

it('a use is written to the file at most every ten minutes', async () => {
  const machine = new Machine()
  const cache = await machine.open()
  await putAll(cache, [0])
  for (const _ of range(0, 5)) await cache.get(idOf(0))
  await machine.clock.advance(USE_GRANULARITY_MS - 1000)
  await cache.have([idOf(0)])
  expect(machine.disk.calls.get('setMtime')).toBeUndefined()
  await machine.clock.advance(1000)
  for (const _ of range(0, 5)) await cache.get(idOf(0))
  expect(machine.disk.calls.get('setMtime')).toBe(1)
  expect((await machine.disk.stat(cache.pathOf(idOf(0)))).mtimeMs).toBe(machine.clock.now())
  expect([...machine.disk.calls.keys()].filter((call) => /sync|touch/.test(call))).toEqual([])
})

describe('a file system that is too full', () => {
  it('gets room from the cache, until there is nothing left to give', async () => {
    const machine = new Machine(30 * CHUNK)
    const cache = await machine.open({ freeFloorBytes: 12 * CHUNK })
    await putAll(cache, range(0, 18))
    expect(machine.here(cache)).toEqual(range(0, 18))
    await putAll(cache, [18])
    expect(machine.here(cache)).toEqual(range(1, 19))
    machine.expectCounted(cache)

    // Somebody else fills it.
    const other = await machine.disk.create('/other')
    await other.write(Buffer.alloc(12 * CHUNK, 1), 0)
    await machine.clock.advance(1000)
    await putAll(cache, [19])
    expect(machine.here(cache)).toEqual(range(14, 20))
    await other.write(Buffer.alloc(6 * CHUNK, 1), 12 * CHUNK)
    await machine.clock.advance(1000)
    await expect(cache.put(idOf(20), chunkOf(20))).rejects.toMatchObject({ code: 'ERR_DISK_FULL' })
    expect(machine.here(cache)).toEqual([])
    expect(cache.usage()).toMatchObject({ chunks: 0, bytes: 0 })

    await machine.disk.unlink('/other')
    await machine.clock.advance(1000)
    expect(await cache.put(idOf(20), chunkOf(20))).toBe(true)
  })
})

describe('files that somebody else removed', () => {
  it('are no error, and are not counted as evicted', async () => {
    const machine = new Machine()
    const cache = await machine.open()
    await putAll(cache, range(0, 20))
    for (const index of range(0, 5)) await machine.disk.unlink(cache.pathOf(idOf(index)))
    expect(await cache.have([idOf(0)])).toEqual([false])
    expect(await cache.put(idOf(0), chunkOf(0))).toBe(true) // counted once
    expect(cache.usage()).toMatchObject({ chunks: 20, bytes: 20 * CHUNK })
    await putAll(cache, [20])
    await putAll(cache, range(21, 26))
    machine.expectCounted(cache)
    expect(machine.here(cache)).toContain(0)
  })
})

it('a file that cannot be unlinked stays, is told of, and holds nobody up', async () => {
  const machine = new Machine()
  const cache = await machine.open()
  await putAll(cache, range(0, 20))
  const unlink = machine.disk.unlink.bind(machine.disk)
  machine.disk.unlink = async (path) => {
    if (path.includes('/chunks/')) throw Object.assign(new Error('EPERM'), { code: 'EPERM' })
    await unlink(path)
  }
  expect(await cache.put(idOf(20), chunkOf(20))).toBe(true)
  machine.expectCounted(cache)
  expect(machine.log.lines.some(({ level, message }) => level === 'warn' && message.includes('evicted'))).toBe(true)
  expect(machine.counters.value('cache_evictions_total')).toBe(0)
})
