/**
 * What the fan-out of the segment tree costs and saves: 2, the talk's, to 128. For a dense image of each size: writing its tree, finding
 * all its chunks and finding one as a peer that has never seen it does, and a version of one chunk. Chunk ids are random, and nobody
 * stores their chunks: this is about the tree alone.
 *
 *   node bench/fan-out.ts [--rounds N]
 */
import { randomBytes, randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { table } from '../src/node/output.ts'
import { formatBytes } from '../src/node/units.ts'
import { type ChunkId, chunkIdOfDigest } from '../src/protocols/cid.ts'
import type { Blobs, Version } from '../src/versioning/blobs.ts'
import { startClient } from './lib/client.ts'
import { withFabric, type Workshop } from './lib/fabric.ts'
import { enterOwnNetwork } from './lib/loopback.ts'
import { machine } from './lib/machine.ts'
import { Spread } from './lib/spread.ts'

const FAN_OUTS = [2, 4, 16, 32, 64, 128] as const
const CHUNK_BYTES = 256 * 1024
const GIB = 1024 ** 3
const SIZES = [2 * GIB, 16 * GIB] as const
const REPLICAS = 3
/** Versions of one chunk each, and single chunks that are looked for, per round. */
const ONE_CHUNK_TIMES = 20

const { values: options } = parseArgs({ options: { rounds: { type: 'string', default: '3' } } })
const rounds = Number(options.rounds)
await enterOwnNetwork()
console.log(machine())
await withFabric(async (workshop) => {
  for (const size of SIZES) {
    const rows: string[][] = []
    for (const fanOut of FAN_OUTS) rows.push(await rowOf(workshop, size, fanOut))
    console.log(`\n${formatBytes(size)}, ${size / CHUNK_BYTES} chunks; times in ms\n${table(
      ['FAN-OUT', 'TREE WRITTEN', 'ITS BYTES', 'ALL CHUNKS FOUND', 'ONE FOUND', 'ONE-CHUNK VERSION', 'ITS BYTES'], rows)}`)
  }
})

type Client = Awaited<ReturnType<typeof startClient>>

async function rowOf ({ fabric, folder }: Workshop, size: number, fanOut: number): Promise<string[]> {
  const [written, foundAll, foundOne, changed] = [new Spread(), new Spread(), new Spread(), new Spread()]
  const [treeBytes, changeBytes] = [new Spread(), new Spread()]
  const { peer: writer, world: { counters } } = await client('writer')
  const { blobs } = writer
  try {
    for (let round = 0; round < rounds; round++) {
      const sent = (): number => counters.value('wire_bytes_sent_total') / REPLICAS
      const ids = new Map(Array.from({ length: size / CHUNK_BYTES }, (_, index) => [index, chunkIdOfDigest(randomBytes(32))]))
      const before = sent()
      let version = await timedInto(written, async () => await blobs.publish({
        requestId: randomUUID(), target: { kind: 'new', chunkSize: CHUNK_BYTES, fanOut }, chunks: ids, size, bytesChanged: size
      }))
      treeBytes.add(sent() - before)
      await byStranger(`all-${round}`, async (stranger) => {
        const found = await timedInto(foundAll, async () => await stranger.chunkIds(version, 0, ids.size))
        if (found.some((id, index) => id !== ids.get(index))) throw new Error('found something else')
      })
      for (let time = 0; time < ONE_CHUNK_TIMES; time++) {
        const at = Math.floor(Math.random() * ids.size)
        const beforeChange = sent()
        version = await timedInto(changed, async () => await changeOne(version, at))
        changeBytes.add(sent() - beforeChange)
      }
      await byStranger(`one-${round}`, async (stranger) => {
        await timedInto(foundOne, async () => await stranger.chunkIds(version, Math.floor(ids.size / 3), 1))
      })
    }
  } finally {
    await writer.stop()
  }
  return [String(fanOut), written.text(0), formatBytes(treeBytes.median), foundAll.text(0), foundOne.text(1), changed.text(1), formatBytes(changeBytes.median)]

  async function changeOne ({ blob, size }: Version, at: number): Promise<Version> {
    const chunks = new Map<number, ChunkId>([[at, chunkIdOfDigest(randomBytes(32))]])
    return await blobs.publish({ requestId: randomUUID(), target: { kind: 'blob', blob }, chunks, size, bytesChanged: CHUNK_BYTES })
  }

  async function client (name: string): Promise<Client> {
    return await startClient(fabric, join(folder, `${size}-${fanOut}-${name}`))
  }

  async function byStranger (name: string, work: (blobs: Blobs) => Promise<void>): Promise<void> {
    const { peer } = await client(name)
    try {
      await work(peer.blobs)
    } finally {
      await peer.stop()
    }
  }
}

async function timedInto<T> (spread: Spread, work: () => Promise<T>): Promise<T> {
  const startMs = performance.now()
  const result = await work()
  spread.add(performance.now() - startMs)
  return result
}
