/**
 * What a version costs: assign and complete, durable at the version manager and with a publication record on W = 2 of R = 3 storage peers,
 * against as many durable transactions of an etcd, of three members (a transaction is on two of three disks) and of one; whole one-chunk WRITEs; and how both and reads change as a blob and its history grow.
 *
 *   node bench/versioning.ts [--rounds N] [--seconds S] [--history N]
 */
import { join } from 'node:path'
import { randomBytes } from 'node:crypto'
import { parseArgs } from 'node:util'
import { table } from '../src/node/output.ts'
import { formatBytes } from '../src/node/units.ts'
import type { Version } from '../src/versioning/blobs.ts'
import type { VersionClient } from '../src/versioning/version-client.ts'
import { startClient, startVersionClient } from './lib/client.ts'
import { startEtcd } from './lib/etcd.ts'
import { withFabric, type Workshop } from './lib/fabric.ts'
import { enterOwnNetwork } from './lib/loopback.ts'
import { machine } from './lib/machine.ts'
import { Spread, spreadOf } from './lib/spread.ts'

const WRITERS = [1, 8, 64] as const
const CHUNK_BYTES = 4096
const REPLICAS = 3
const MIB = 1024 * 1024
const SIZES = [MIB, 1024 * MIB, 1024 ** 2 * MIB] as const
/** Anybody's: nothing is signed with it. */
const WRITER_KEY = new Uint8Array(32)
/** Some 200 bytes, as an assignment and its extents take. */
const ETCD_VALUE = new Uint8Array(200)
const READ_BYTES = 8 * MIB
/** A version manager runs for months: V8 has compiled by then what it does all the time. Half as fast at first, and no faster after this. */
const WARM_UP_SECONDS = 20
/** Versions that are timed one by one, of a blob of each size and of a history of each length. */
const TIMED_VERSIONS = 50

const { values: options } = parseArgs({
  options: { rounds: { type: 'string', default: '3' }, seconds: { type: 'string', default: '4' }, history: { type: 'string', default: '10000' } }
})
const rounds = Number(options.rounds)
const seconds = Number(options.seconds)
const historyLength = Number(options.history)
await enterOwnNetwork()
console.log(machine())
await withFabric(async (workshop) => {
  await throughput(workshop)
  await growth(workshop)
  await history(workshop)
})

/** Calls `work` from `writers` loops at once; how often per second it came to an end. */
async function rate (writers: number, work: (writer: number) => Promise<unknown>, forSeconds = seconds): Promise<number> {
  await Promise.all(Array.from({ length: writers }, async (_, writer) => { await work(writer) })) // connections, first pages
  const startMs = performance.now()
  let done = 0
  await Promise.all(Array.from({ length: writers }, async (_, writer) => {
    while (performance.now() - startMs < forSeconds * 1000) {
      await work(writer)
      done += 1
    }
  }))
  return 1000 * done / (performance.now() - startMs)
}

async function throughput ({ fabric, folder }: Workshop): Promise<void> {
  const { versions, stop } = await startVersionClient(fabric)
  const etcd = await startEtcd(join(folder, 'etcd'), { members: REPLICAS })
  const etcdAlone = await startEtcd(join(folder, 'etcd-alone'))
  const { peer } = await startClient(fabric, join(folder, 'writer'))
  const rows: string[][] = []
  const newBlobs = async (count: number): Promise<string[]> =>
    await Promise.all(Array.from({ length: count }, async () => (await peer.blobs.create({ chunkSize: CHUNK_BYTES })).blob))
  try {
    const first = await newBlobs(WRITERS.at(-1)!)
    await rate(first.length, async (writer) => { await assignAndComplete(versions, first[writer]!) }, WARM_UP_SECONDS)
    for (const writers of WRITERS) {
      const [ownBlobs, oneBlob, transactions, alone, writes] = [new Spread(), new Spread(), new Spread(), new Spread(), new Spread()]
      for (let round = 0; round < rounds; round++) {
        const blobs = await newBlobs(writers)
        ownBlobs.add(await rate(writers, async (writer) => { await assignAndComplete(versions, blobs[writer]!) }))
        transactions.add(await rate(writers, async (writer) => { await etcd.put(`writer/${writer}`, ETCD_VALUE) }))
        alone.add(await rate(writers, async (writer) => { await etcdAlone.put(`writer/${writer}`, ETCD_VALUE) }))
        oneBlob.add(await rate(writers, async () => { await assignAndComplete(versions, blobs[0]!) }))
        const fresh = await newBlobs(writers)
        writes.add(await rate(writers, async (writer) => await peer.blobs.write(fresh[writer]!, [{ offset: 0, bytes: randomBytes(CHUNK_BYTES) }])))
      }
      const ratioTo = (theirs: Spread, ours = ownBlobs): string => spreadOf(ours.values.map((pairs, round) => 2 * pairs / theirs.values[round]!)).text(2)
      rows.push([
        String(writers), ownBlobs.text(0), oneBlob.text(0), transactions.text(0), alone.text(0), ratioTo(transactions), ratioTo(transactions, oneBlob), ratioTo(alone),
        writes.text(0)
      ])
    }
  } finally {
    await etcd.stop()
    await etcdAlone.stop()
    await peer.stop()
    await stop()
  }
  console.log(`\nper second, durable (assign + complete is two transactions; ratios count them so)\n${table(
    ['WRITERS', 'ASSIGN + COMPLETE', 'SAME, ONE BLOB', 'ETCD OF 3', 'ETCD OF 1', 'RATIO TO 3', 'ONE BLOB TO 3', 'RATIO TO 1', 'ONE-CHUNK WRITES'], rows)}`)
}

/** A version without content: no chunks, no nodes. */
async function assignAndComplete (versions: VersionClient, blob: string): Promise<void> {
  const requestId = randomBytes(16).toString('hex')
  const { version } = await versions.ask({ op: 'assign', requestId, target: { kind: 'blob', blob }, change: { kind: 'write', extents: [], size: 0 }, writerKey: WRITER_KEY })
  const { published } = await versions.ask({ op: 'complete', requestId, blob, version, message: '', bytesChanged: 0 })
  if (published === null) await versions.waitPublished({ blob, version }) // others are in front of it
}

async function growth ({ fabric, folder }: Workshop): Promise<void> {
  const { peer, world } = await startClient(fabric, join(folder, 'grower'))
  const rows: string[][] = []
  try {
    for (const size of SIZES) {
      const { blob } = await peer.blobs.create({ chunkSize: CHUNK_BYTES })
      await peer.blobs.write(blob, [{ offset: size - 1, bytes: Buffer.from([1]) }])
      const before = world.counters.value('wire_bytes_sent_total')
      const times = await timedVersions(blob, size)
      const bytes = (world.counters.value('wire_bytes_sent_total') - before) / TIMED_VERSIONS
      const latest = await peer.blobs.recent(blob)
      const clones = new Spread()
      for (let at = 0; at < TIMED_VERSIONS; at++) clones.add(await msOf(async () => await peer.blobs.clone(latest)))
      rows.push([formatBytes(size), times.text(1), formatBytes(bytes - REPLICAS * CHUNK_BYTES), clones.text(1)])
    }
  } finally {
    await peer.stop()
  }
  console.log(`\n${table(['SIZE OF THE BLOB', 'ONE-CHUNK VERSION, ms', 'SENT BESIDE ITS CHUNK', 'CLONE, ms'], rows)}`)

  async function timedVersions (blob: string, size: number): Promise<Spread> {
    const times = new Spread()
    for (let at = 0; at < TIMED_VERSIONS; at++) {
      const offset = Math.floor(Math.random() * size / CHUNK_BYTES) * CHUNK_BYTES
      times.add(await msOf(async () => await peer.blobs.write(blob, [{ offset, bytes: randomBytes(CHUNK_BYTES) }])))
    }
    return times
  }
}

async function history ({ fabric, folder }: Workshop): Promise<void> {
  const { peer } = await startClient(fabric, join(folder, 'historian'))
  const marks = [1, 100, historyLength].filter((mark) => mark <= historyLength)
  const writeMs = new Map<number, Spread>()
  const readMs = new Map(marks.map((mark) => [mark, new Spread()]))
  try {
    const { blob } = await peer.blobs.create({ chunkSize: CHUNK_BYTES })
    let latest = await peer.blobs.write(blob, [{ offset: 0, bytes: randomBytes(READ_BYTES) }])
    for (const mark of marks) {
      while (latest.version < mark) {
        await Promise.all(Array.from({ length: Math.min(64, mark - latest.version) }, async () => await writeSomewhere(blob)))
        latest = await peer.blobs.recent(blob)
      }
      const times = new Spread()
      for (let at = 0; at < TIMED_VERSIONS; at++) times.add(await msOf(async () => await writeSomewhere(blob)))
      writeMs.set(mark, times)
      latest = await peer.blobs.recent(blob)
    }
    const read = async (mark: number, round: number): Promise<number> => await readByStranger(`${mark}-${round}`, await peer.blobs.version({ blob, version: mark }))
    for (const mark of marks) await read(mark, rounds) // V8 compiles
    for (let round = 0; round < rounds; round++) {
      for (const mark of marks) readMs.get(mark)!.add(await read(mark, round))
    }
  } finally {
    await peer.stop()
  }
  const rows = marks.map((mark) => [String(mark), writeMs.get(mark)!.text(1), spreadOf(readMs.get(mark)!.values.map((ms) => READ_BYTES / ms / 1000)).text(1)])
  console.log(`\n${table(['VERSION', 'ONE-CHUNK VERSION AFTER IT, ms', `READ OF ALL ${formatBytes(READ_BYTES)} OF IT, MB/s`], rows)}`)

  async function writeSomewhere (blob: string): Promise<void> {
    const offset = Math.floor(Math.random() * READ_BYTES / CHUNK_BYTES) * CHUNK_BYTES
    await peer.blobs.write(blob, [{ offset, bytes: randomBytes(CHUNK_BYTES) }])
  }

  /** Each time by a peer that has never seen the blob. */
  async function readByStranger (name: string, version: Version): Promise<number> {
    const { peer: stranger } = await startClient(fabric, join(folder, `stranger-${name}`))
    try {
      return await msOf(async () => await stranger.blobs.read(version, 0, version.size))
    } finally {
      await stranger.stop()
    }
  }
}

async function msOf (work: () => Promise<unknown>): Promise<number> {
  const startMs = performance.now()
  await work()
  return performance.now() - startMs
}
