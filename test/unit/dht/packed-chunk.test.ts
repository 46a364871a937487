import { randomBytes } from 'node:crypto'
import { zstdCompressSync } from 'node:zlib'
import { describe, expect, it } from 'vitest'
import { DiskChunkStore } from '../../../src/dht/disk-chunk-store.ts'
import { pack, unpack } from '../../../src/dht/packed-chunk.ts'
import { createCounters } from '../../../src/node/world.ts'
import { CHUNK_BYTES_MAX, chunkIdOf } from '../../../src/protocols/cid.ts'
import { FakeClock } from '../../harness/fake-clock.ts'
import { StorageFabric } from '../../harness/storage-fabric.ts'
import { Power, SimulatedDisk } from '../../simulation/simulated-disk.ts'

const text = new Uint8Array(Buffer.alloc(256 * 1024, 'what is written often takes little room. '))
const noise = new Uint8Array(randomBytes(256 * 1024))

describe('a packed chunk', () => {
  it.each([
    ['that shrinks', text, true],
    ['that does not shrink', noise, false],
    ['of a few bytes', Uint8Array.of(1, 2, 3), false],
    ['that is a zstd frame itself', new Uint8Array(zstdCompressSync(noise)), false],
    ['that begins like a frame and is none', Uint8Array.of(0x28, 0xb5, 0x2f, 0xfd, 9, 9, 9), false],
    ['that is the beginning of a frame', new Uint8Array(zstdCompressSync(text).subarray(0, 20)), false],
    ['of the largest size', new Uint8Array(Buffer.alloc(CHUNK_BYTES_MAX, 'large ')), true]
  ])('%s unpacks to what it was', (_what, bytes, shrinks) => {
    const packed = pack(bytes)
    expect(packed.length < bytes.length).toBe(shrinks)
    expect(packed.length).toBeLessThanOrEqual(bytes.length)
    expect(Buffer.compare(unpack(chunkIdOf(bytes), packed)!, bytes)).toBe(0)
    // Whoever packs nothing is understood, too.
    expect(Buffer.compare(unpack(chunkIdOf(bytes), bytes)!, bytes)).toBe(0)
  })

  it('is its name\'s, or nothing', () => {
    expect(unpack(chunkIdOf(text), pack(noise))).toBeUndefined()
    expect(unpack(chunkIdOf(noise), pack(text))).toBeUndefined()
    const altered = Uint8Array.from(pack(text))
    altered[altered.length - 1]! ^= 1
    expect(unpack(chunkIdOf(text), altered)).toBeUndefined()
    expect(unpack(chunkIdOf(text), pack(text).subarray(0, -1))).toBeUndefined()
  })

  it('takes no more memory than the largest chunk', () => {
    const bomb = zstdCompressSync(Buffer.alloc(1024 * 1024 * 1024))
    const before = process.memoryUsage().rss
    expect(unpack(chunkIdOf(text), bomb)).toBeUndefined()
    expect(process.memoryUsage().rss - before).toBeLessThan(64 * 1024 * 1024)
  })
})

describe('a store', () => {
  const id = chunkIdOf(text)
  const packed = pack(text)

  async function open (durable: boolean): Promise<{ store: DiskChunkStore, disk: SimulatedDisk }> {
    const clock = new FakeClock()
    const disk = new SimulatedDisk({ power: new Power('packed'), clock })
    const components = { disk, clock, log: { debug () {}, info () {}, warn () {}, error () {} }, counters: createCounters() }
    return { store: await DiskChunkStore.open(components, { root: '/store', durable, freeFloorBytes: 0 }), disk }
  }

  it.each([['a storage peer\'s', true, packed], ['a cache', false, text]])('%s keeps what came packed as it is to be read', async (_whose, durable, kept) => {
    const { store, disk } = await open(durable)
    expect(await store.put(id, packed)).toBe(true)
    expect(await store.put(id, text)).toBe(false)
    expect(Buffer.compare(await disk.read(store.pathOf(id)), kept)).toBe(0)
    expect(store.usage()).toEqual({ chunks: 1, bytes: kept.length })
    expect(Buffer.compare((await store.get(id))!, text)).toBe(0)
    expect(Buffer.compare((await store.getPacked(id))!, kept)).toBe(0)
    disk.corrupt(store.pathOf(id))
    await expect(store.getPacked(id)).rejects.toMatchObject({ code: 'ERR_CORRUPT' })
    expect(await store.get(id)).toBeUndefined()
  })

  it('takes no hole, packed or not', async () => {
    const { store } = await open(true)
    const hole = new Uint8Array(256 * 1024)
    await expect(store.put(chunkIdOf(hole), hole)).rejects.toMatchObject({ code: 'ERR_USAGE' })
    await expect(store.put(chunkIdOf(hole), pack(hole))).rejects.toMatchObject({ code: 'ERR_USAGE' })
    expect(store.usage()).toEqual({ chunks: 0, bytes: 0 })
  })
})

describe('on the fabric', () => {
  it('a chunk travels, and lies, packed', async () => {
    const fabric = await StorageFabric.of(3)
    const writer = fabric.client()
    const { storedBytes, settled } = await writer.chunks.put(chunkIdOf(text), text)
    const size = pack(text).length
    expect(storedBytes).toBe(size)
    expect((await settled).sentBytes).toBe(3 * size)
    for (const peer of fabric.peers.values()) expect(peer.store.usage().bytes).toBe(size)
    const reader = fabric.client()
    expect(Buffer.compare(await reader.chunks.get(chunkIdOf(text)), text)).toBe(0)
    expect(reader.counters.value('chunk_bytes_received_total')).toBe(size)
    expect((await writer.chunks.put(chunkIdOf(text), text)).storedBytes).toBe(0)
  })
})
