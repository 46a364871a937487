/**
 * Many writers through real daemons while the version manager's daemon is killed again and again: all on one blob, then each on a
 * clone of its own. Afterwards every version that there is must be what a dozen lines of model say, applied in the order of version
 * numbers: nothing that was acknowledged is lost, nothing is there twice, and everybody sees the same, also without a version manager.
 */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { mapAtMost } from '../../src/dht/semaphore.ts'
import type { VersionRow } from '../../src/node/control-api.ts'
import { ControlClient } from '../../src/node/control-client.ts'
import { connect } from '../../src/node/index.ts'
import { CHUNK, LiveWriter, WritersJournal } from '../harness/live-writer.ts'
import { LiveFabric, succeed } from '../harness/live-fabric.ts'
import { Chance, testSeed } from '../harness/seed.ts'
import { ReferenceModel } from '../simulation/reference-model.ts'

const STORAGE_PEERS = 4
const COMPUTE_PEERS = 4
const WRITERS = 32
const KILLS = 20
/** The first ones while all write to one blob. */
const KILLS_SHARED = KILLS / 2
/** From the moment that it serves again. Most are much shorter, so that some kills hit what it makes up for after a start. */
const UP_MS_MAX = 9_000
const AWAY_MS_MAX = 1_500
/** Between a writer's operations: what they do is read back, version by version. */
const PAUSE_MS_MAX = 1_500
/** These give up a write at the end, anywhere on its way: a lease ends, and nobody may notice it but by the wait. */
const DESERTERS = 8
const DESERTION_MS_MAX = 150
const READS_AT_ONCE = 8
/** By somebody who has never seen any of it. */
const LATE_READS = 200

const chance = new Chance(testSeed())

describe(`${WRITERS} writers while the version manager is killed ${KILLS} times (P2PVM_TEST_SEED=${chance.seed})`, () => {
  const journal = new WritersJournal()
  const model = new ReferenceModel()
  const logs = new Map<string, VersionRow[]>()
  const stopped = new AbortController()
  let live: LiveFabric
  let clients: ControlClient[] = []
  let working: Promise<unknown> = Promise.resolve()
  let kills = 0

  beforeAll(async () => {
    live = await LiveFabric.start({ storage: STORAGE_PEERS, compute: COMPUTE_PEERS })
    clients = await Promise.all(live.fabric.compute.map(async ({ control }) => await connect({ control })))
  })

  afterAll(async () => {
    // What a test began that did not end in time must not start a daemon behind our back.
    stopped.abort()
    await working
    for (const client of clients) client.close()
    await live?.close()
  })

  it('every write is acknowledged, refused, or in doubt', async () => {
    const { blob: shared } = await clients[0]!.createBlob({ chunkSize: CHUNK, fanOut: 4 })
    const writers = Array.from({ length: WRITERS }, (_, at) => {
      const name = `writer-${at}`
      return new LiveWriter(name, clients[at % COMPUTE_PEERS]!, chance.fork(name), journal)
    })
    const blobs = [shared]
    await together([killer, ...writers.map((writer, at) => async () => {
      const pauses = chance.fork(`pauses of ${writer.name}`)
      await keepWriting(writer, shared, KILLS_SHARED, pauses)
      const own = await writer.clone(shared)
      blobs.push(own)
      await keepWriting(writer, own, KILLS, pauses)
      if (at < DESERTERS) await writer.desert(own, DESERTION_MS_MAX)
    })])
    await together(blobs.map((blob, at) => async () => {
      const name = `closing-${at}`
      await new LiveWriter(name, clients[(at + 1) % COMPUTE_PEERS]!, chance.fork(name), journal).finish(blob)
    }))
    for (const blob of blobs) logs.set(blob, await clients[0]!.versions(blob))

    const operations = [...journal.operations.values()]
    const refused = operations.filter((operation) => operation.refused === true).length
    const acknowledged = operations.filter(({ version }) => version !== undefined).length
    console.log(`${operations.length} writes: ${acknowledged} acknowledged, ${refused} refused, ${operations.length - acknowledged - refused} in doubt; ` +
      `${journal.reads.length} reads. Failures without an answer:${[...journal.failures].map(([said, count]) => `\n  ${count} × ${said}`).join('')}`)
    expect(kills).toBe(KILLS)
    expect(acknowledged).toBeGreaterThan(Math.max(WRITERS * 4, operations.length / 2))
  })

  it('nothing acknowledged is lost, nothing is there twice, and no number is left out', async () => {
    const found = new Map<string, number>()
    let aborted = 0
    for (const [blob, log] of logs) {
      expect(log.map(({ version }) => version)).toEqual([...log.keys()])
      const { parent } = log[0]!
      model.create(blob, parent === null ? undefined : model.content(parent.blob, parent.version))
      for (const row of log.slice(1)) apply(row, found)
      const abortedHere = log.filter((row) => row.aborted).length
      const unacknowledged = [...journal.operations.values()].filter((operation) => operation.blob === blob && operation.version === undefined).length
      expect(abortedHere, `of ${blob}: whoever is acknowledged leaves no version behind that is aborted`).toBeLessThanOrEqual(unacknowledged)
      aborted += abortedHere
    }
    const lost = [...journal.operations.values()].filter(({ id, version }) => version !== undefined && found.get(id) !== version)
    expect(lost.map(({ id, blob, version }) => `${id} as ${blob}@${version}`)).toEqual([])
    console.log(`${found.size} versions of ${logs.size} blobs and ${aborted} aborted ones`)
  })

  it('every version reads as the model says, the latest through every compute peer', async () => {
    const draws = chance.fork('read back')
    const reads = [...logs.values()].flatMap((log) => log.flatMap((row) => {
      const readers = row === log.at(-1) ? clients : [draws.pick(clients)]
      return readers.map((client) => ({ client, row }))
    }))
    await mapAtMost(READS_AT_ONCE, reads, async ({ client, row }) => {
      same(row, await client.readBytes(`${row.blob}@${row.version}`))
    })
    for (const { blob, version, offset, bytes } of journal.reads) {
      const expected = model.content(blob, version)!.subarray(offset, offset + bytes.length)
      expect(Buffer.compare(bytes, expected), `what was read of ${blob}@${version} at ${offset}`).toBe(0)
    }
    await Promise.all(clients.map(async (client) => {
      for (const [blob, log] of logs) expect(await client.recent(blob)).toEqual(log.at(-1))
    }))
  })

  it('and the same when the version manager is gone for good, to a peer that comes later, too', async () => {
    const draws = chance.fork('late')
    await live.storage(0).kill('SIGKILL')
    const late = live.peer('late', ['compute'], live.storage(1).addresses)
    await late.start()
    const readers = [...live.fabric.compute, late]
    for (const [at, log] of [...logs.values()].entries()) {
      const row = log.at(-1)!
      const path = join(live.folder, `latest-${at}`)
      await succeed(readers[at % readers.length]!, ...at % 2 === 0 ? ['blob', 'read', `${row.blob}@${row.version}`, '-o', path] : ['export', `${row.blob}@${row.version}`, path])
      same(row, await readFile(path))
    }
    const client = new ControlClient(late.control)
    try {
      const rows = Array.from({ length: LATE_READS }, () => draws.pick(draws.pick([...logs.values()])))
      await mapAtMost(READS_AT_ONCE, rows, async (row) => { same(row, await client.readBytes(`${row.blob}@${row.version}`)) })
    } finally {
      client.close()
    }
  })

  async function killer (): Promise<void> {
    const draws = chance.fork('kills')
    const manager = live.storage(0)
    while (kills < KILLS) {
      const [upMs, awayMs] = [Math.floor(UP_MS_MAX * draws.unit() ** 2), draws.below(AWAY_MS_MAX)]
      await delay(upMs, undefined, { signal: stopped.signal })
      console.log(`kill ${kills + 1}, after ${upMs} ms up, for ${awayMs} ms; in flight: ${journal.summary()}`)
      await manager.kill('SIGKILL')
      await delay(awayMs)
      await manager.restart()
      kills += 1
    }
  }

  async function keepWriting (writer: LiveWriter, blob: string, untilKills: number, pauses: Chance): Promise<void> {
    while (kills < untilKills) {
      await writer.step(blob)
      await delay(pauses.below(PAUSE_MS_MAX), undefined, { signal: stopped.signal })
    }
  }

  /** All at once; when one fails the others stop. Returns when all have ended, and throws what the first one threw. */
  async function together (work: ReadonlyArray<() => Promise<void>>): Promise<void> {
    working = Promise.allSettled(work.map(async (one) => {
      try {
        await one()
      } catch (error) {
        stopped.abort(error)
        throw error
      }
    }))
    await working
    stopped.signal.throwIfAborted()
  }

  function apply (row: VersionRow, found: Map<string, number>): void {
    const { blob, version, message, size } = row
    if (row.aborted) {
      // It changes nothing, and may have grown the blob.
      model.write(blob, [{ offset: size, bytes: new Uint8Array(0) }])
      return
    }
    const operation = journal.operations.get(message)
    if (operation === undefined) throw new Error(`${blob}@${version} is nobody's: ${message}`)
    expect(operation.blob).toBe(blob)
    expect(operation.refused, `${message} was refused`).toBeUndefined()
    expect(found.get(message), `${message} is there twice, as ${blob}@${version} too`).toBeUndefined()
    found.set(message, version)
    if (operation.change.kind === 'append') model.append(blob, operation.change.bytes)
    else model.write(blob, operation.change.parts)
  }

  function same ({ blob, version }: VersionRow, bytes: Uint8Array): void {
    const expected = model.content(blob, version)!
    expect(bytes.length, `size of ${blob}@${version}`).toBe(expected.length)
    if (Buffer.compare(bytes, expected) === 0) return
    throw new Error(`${blob}@${version} differs from the model at byte ${expected.findIndex((byte, at) => byte !== bytes[at])}`)
  }
})
