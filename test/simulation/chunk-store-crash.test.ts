/**
 * The power is cut at every operation of a busy chunk store, with several seeds each: what was acknowledged is there and
 * intact, nothing that does not match its name is ever served, and what `have` affirmed survives as well.
 */
import { describe, expect, it } from 'vitest'
import { DiskChunkStore } from '../../src/dht/disk-chunk-store.ts'
import { chunkIdOf, type ChunkId } from '../../src/protocols/cid.ts'
import { createCounters } from '../../src/node/world.ts'
import { FakeClock } from '../harness/fake-clock.ts'
import { Chance, testSeed } from '../harness/seed.ts'
import { Power, SimulatedDisk, type SimulatedDiskInit } from './simulated-disk.ts'

const SEEDS_PER_STEP = 12
const silentLog = { debug () {}, info () {}, warn () {}, error () {} }
const clock = new FakeClock()

async function openStore (disk: SimulatedDisk): Promise<DiskChunkStore> {
  return await DiskChunkStore.open({ disk, clock, log: silentLog, counters: createCounters() }, { root: '/store', durable: true, freeFloorBytes: 0 })
}

function chunksOf (chance: Chance): Map<ChunkId, Uint8Array> {
  const chunks = Array.from({ length: 6 }, () => Buffer.alloc(600 + chance.below(3000), `${chance.unit()}`))
  return new Map(chunks.map((bytes) => [chunkIdOf(bytes), bytes]))
}

/** Several writers at once, on some chunks more than one; returns when each is done or failed. */
async function work (store: DiskChunkStore, chunks: ReadonlyMap<ChunkId, Uint8Array>, promised: Set<ChunkId>): Promise<void> {
  const entries = [...chunks]
  await Promise.allSettled([...entries, ...entries.slice(0, 3)].map(async ([id, bytes]) => {
    await store.put(id, bytes)
    promised.add(id)
  }))
  const ids = [...chunks.keys()]
  const there = await store.have(ids).catch(() => [])
  there.forEach((present, index) => { if (present) promised.add(ids[index] as ChunkId) })
}

async function crashAt (seed: string, step: number, forgets?: SimulatedDiskInit['forgets']): Promise<{ finished: boolean, broken: string[] }> {
  const power = new Power(seed)
  const disk = new SimulatedDisk({ power, clock, forgets })
  const chunks = chunksOf(new Chance(seed).fork('chunks'))
  const promised = new Set<ChunkId>()
  const before = await openStore(disk)
  power.crashAfter(step)
  await work(before, chunks, promised)

  const recovered = disk.recover({ power: new Power(`${seed}/recovered`), clock, forgets })
  const store = await openStore(recovered)
  const broken: string[] = []
  for (const [id, bytes] of chunks) {
    const found = await store.get(id).catch((error: Error) => error)
    if (found instanceof Error) broken.push(`served as corrupt: ${found.message}`)
    else if (found !== undefined && Buffer.compare(found, bytes) !== 0) broken.push(`other bytes: ${id}`)
    else if (found === undefined && promised.has(id)) broken.push(`acknowledged and lost: ${id}`)
  }
  if (recovered.paths().some((path) => path.startsWith('/store/tmp/'))) broken.push('leftovers in tmp')
  const inShards = recovered.paths().filter((path) => path.startsWith('/store/chunks/')).length
  if (store.usage().chunks !== inShards) broken.push(`usage says ${store.usage().chunks} chunks, there are ${inShards}`)
  return { finished: !power.isOff, broken }
}

async function crashEverywhere (seed: string, forgets?: SimulatedDiskInit['forgets']): Promise<{ steps: number, broken: string[] }> {
  const broken: string[] = []
  for (let step = 1; ; step++) {
    let finished = true
    for (let round = 0; round < SEEDS_PER_STEP; round++) {
      const one = await crashAt(`${seed}/${step}/${round}`, step, forgets)
      finished &&= one.finished
      broken.push(...one.broken.map((what) => `step ${step}, round ${round}: ${what}`))
    }
    // Nobody waits for all that a forgotten sync breaks.
    if (finished || (forgets !== undefined && broken.length > 0)) return { steps: step, broken }
  }
}

describe('chunk store, power cut at every operation', () => {
  const seed = testSeed()

  it(`keeps what it acknowledged (seed ${seed})`, async () => {
    const { steps, broken } = await crashEverywhere(seed)
    expect(broken).toEqual([])
    expect(steps).toBeGreaterThan(40)
  })

  it.each(['datasync', 'syncDirectory'] as const)('would not, if %s were forgotten', async (forgets) => {
    const { broken } = await crashEverywhere(seed, forgets)
    expect(broken.length).toBeGreaterThan(0)
  })

  it('keeps a name that a killed process did not sync and a later one was told about', async () => {
    // kill -9 between rename and fsync, then a restart, then a power cut: the restart must sync what it finds.
    for (let round = 0; round < 20; round++) {
      const disk = new SimulatedDisk({ power: new Power(`${seed}/${round}`), clock })
      const bytes = Buffer.from(`chunk ${round}`)
      const id = chunkIdOf(bytes)
      const killed = await openStore(disk)
      const halfway = await disk.create('/store/tmp/aside')
      await halfway.write(bytes, 0)
      await halfway.datasync()
      await disk.rename('/store/tmp/aside', killed.pathOf(id))

      const restarted = await openStore(disk)
      expect(await restarted.have([id])).toEqual([true])
      const after = await openStore(disk.recover({ power: new Power(`${seed}/${round}/after`), clock }))
      expect(await after.get(id)).toEqual(new Uint8Array(bytes))
    }
  })
})
