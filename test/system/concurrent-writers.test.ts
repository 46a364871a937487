/**
 * Concurrent writers of one blob, over real daemons. First the talk's three ("Concurrent writes: Example"): white is published,
 * gray is assigned version 2 and black version 3, and whoever is faster, black's tree links to gray's nodes before or after
 * they exist, and neither is published before gray is. Then many at once, in whatever order they come.
 *
 * The writers are peers of this process, which take the steps of a WRITE one by one; who keeps and reads is a daemon.
 */
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { CloneResult, CommitResult, ImportResult, VersionRow, WorkingCopyRow } from '../../src/node/control-api.ts'
import { ControlClient } from '../../src/node/control-client.ts'
import type { Assignment } from '../../src/versioning/assignment.ts'
import { describeWith } from '../harness/capabilities.ts'
import { LiveFabric, succeed } from '../harness/live-fabric.ts'
import { sha256OfMounted, writeRunsMounted } from '../harness/mounted-file.ts'
import { bytesOf, makeImage, randomRuns, sha256Of } from '../harness/random-image.ts'
import { Chance, testSeed } from '../harness/seed.ts'
import { WriterPeer } from '../harness/writer-peer.ts'

const MIB = 1024 * 1024
const CHUNK = 4096
const WHITE_CHUNKS = 8
/** 2 is the talk's tree, 64 what images have: fewer levels of the same. */
const TREES = [{ fanOut: 2, first: 'black' }, { fanOut: 2, first: 'gray' }, { fanOut: 64, first: 'black' }] as const
const WRITERS = 12

/** First chunk and count of chunks. */
type Span = readonly [first: number, count: number]

const CASES: Readonly<Record<string, { readonly gray: Span, readonly black: Span }>> = {
  'beside each other': { gray: [2, 2], black: [4, 2] },
  'the talk\'s: in halves of one tree': { gray: [1, 2], black: [3, 4] },
  'over each other': { gray: [1, 4], black: [3, 4] },
  'black inside of gray': { gray: [0, 8], black: [3, 1] },
  'gray inside of black': { gray: [3, 1], black: [0, 8] },
  'both the same': { gray: [2, 3], black: [2, 3] },
  'gray far behind the end': { gray: [300, 2], black: [5, 1] },
  'black far behind the end': { gray: [5, 1], black: [300, 2] },
  'both behind the end, gray nearer': { gray: [20, 2], black: [300, 2] },
  'both behind the end, black nearer': { gray: [300, 2], black: [20, 2] }
}

const chance = new Chance(testSeed())

describe(`concurrent writers (P2PVM_TEST_SEED=${chance.seed})`, () => {
  let live: LiveFabric
  let grayPeer: WriterPeer
  let blackPeer: WriterPeer
  /** A daemon that takes no part. */
  let reader: ControlClient

  beforeAll(async () => {
    live = await LiveFabric.start({ storage: 3, compute: 2 })
    reader = new ControlClient(live.compute(0).control)
    grayPeer = await WriterPeer.join(live.storage(1))
    blackPeer = await WriterPeer.join(live.storage(2))
  })

  afterAll(async () => {
    await grayPeer?.leave()
    await blackPeer?.leave()
    reader?.close()
    await live?.close()
  })

  for (const { fanOut, first } of TREES) {
    for (const [what, spans] of Object.entries(CASES)) {
      it(`white, gray and black, ${what}, ${first} finishing first, fan-out ${fanOut}`, async () => {
        const label = `${what} ${first} ${fanOut}`
        const { blob } = await grayPeer.blobs.create({ chunkSize: CHUNK, fanOut })
        const content = { white: bytesFor(`${label} white`, [0, WHITE_CHUNKS]), gray: bytesFor(`${label} gray`, spans.gray), black: bytesFor(`${label} black`, spans.black) }
        await grayPeer.blobs.write(blob, [{ offset: 0, bytes: content.white }])
        const expected: Buffer[] = [Buffer.alloc(0), content.white, Buffer.alloc(0), Buffer.alloc(0)]
        expected[2] = over(expected[1]!, spans.gray, content.gray)
        expected[3] = over(expected[2], spans.black, content.black)

        const gray = await begin(grayPeer, blob, spans.gray, content.gray)
        const black = await begin(blackPeer, blob, spans.black, content.black)
        expect([gray.assignment.version, black.assignment.version]).toEqual([2, 3])
        expect(black.assignment.inFlight.map(({ version }) => version)).toEqual([2])

        if (first === 'black') {
          expect(await black.finish()).toBeNull()
          expect((await blackPeer.blobs.recent(blob)).version).toBe(1)
          for (const version of [2, 3]) await expect(reader.resolve(`${blob}@${version}`)).rejects.toMatchObject({ code: 'ERR_NOT_FOUND' })
          expect(await exported(`${blob}@1`)).toEqual(expected[1])
          expect(await gray.finish()).toMatchObject({ version: 2 })
        } else {
          expect(await gray.finish()).toMatchObject({ version: 2 })
          expect((await blackPeer.blobs.recent(blob)).version).toBe(2)
          expect(await exported(`${blob}@2`)).toEqual(expected[2])
          expect(await black.finish()).toMatchObject({ version: 3 })
        }
        expect((await blackPeer.versions.waitPublished({ blob, version: 3 })).version).toMatchObject({ version: 3 })
        for (const version of [1, 2, 3]) expect(await exported(`${blob}@${version}`)).toEqual(expected[version])
      })
    }
  }

  it(`${WRITERS} writers at once, at any offsets: each version is the one before with one write over it`, async () => {
    const draws = chance.fork('writers')
    const { blob } = await grayPeer.blobs.create({ chunkSize: CHUNK, fanOut: 2 })
    const writes = Array.from({ length: WRITERS }, (_, at) => {
      const parts = Array.from({ length: 1 + draws.below(3) }, (_, part) => {
        const offset = part * 40 * CHUNK + draws.below(20 * CHUNK)
        return { offset, bytes: bytesOf({ key: `${draws.seed} ${at} ${part}`, offset: 0, size: 1 + draws.below(5 * CHUNK) }) }
      })
      return { parts, peer: at % 2 === 0 ? grayPeer : blackPeer }
    })
    const published = await Promise.all(writes.map(async ({ parts, peer }) => await peer.blobs.write(blob, parts)))
    const inOrder = published.map(({ version }, at) => ({ version, parts: writes[at]!.parts })).sort((a, b) => a.version - b.version)
    expect(inOrder.map(({ version }) => version)).toEqual(inOrder.map((_, at) => at + 1))

    let content: Buffer = Buffer.alloc(0)
    for (const { version, parts } of inOrder) {
      for (const { offset, bytes } of parts) content = overBytes(content, offset, bytes)
      expect(Buffer.compare(await exported(`${blob}@${version}`), content)).toBe(0)
    }
  })

  it(`${WRITERS} appends at once: none lies over another, and none is lost`, async () => {
    const { blob } = await grayPeer.blobs.create({ chunkSize: CHUNK, fanOut: 2 })
    const pieces = Array.from({ length: WRITERS }, (_, at) => bytesOf({ key: `${chance.seed} append ${at}`, offset: 0, size: 1000 + 777 * at }))
    const published = await Promise.all(pieces.map(async (bytes, at) => await (at % 2 === 0 ? grayPeer : blackPeer).blobs.append(blob, bytes)))
    const inOrder = published.map(({ version }, at) => ({ version, bytes: pieces[at]! })).sort((a, b) => a.version - b.version)
    expect(Buffer.compare(await exported(`${blob}@${WRITERS}`), Buffer.concat(inOrder.map(({ bytes }) => bytes)))).toBe(0)
  })

  it('imports at once from two peers: each whole, and one winner where they want the same name', async () => {
    const paths = await Promise.all(Array.from({ length: 4 }, async (_, at) => await newImage(`parallel-${at}.img`)))
    const imports = await Promise.all(paths.map(async (path, at) => await succeed<ImportResult>(live.compute(at % 2), 'import', path, '--name', `parallel-${at}`)))
    for (const [at, { blob, version }] of imports.entries()) expect(await live.exportedSum(live.compute(0), `${blob}@${version}`)).toBe(await sha256Of(paths[at]!))

    const rivals = await Promise.all(paths.map(async (path, at) => await live.compute(at % 2).cli('import', path, '--name', 'wanted')))
    expect(rivals.map(({ code }) => code).sort()).toEqual([0, 11, 11, 11])
    expect(await live.exportedSum(live.compute(0), 'wanted')).toBe(await sha256Of(paths[rivals.findIndex(({ code }) => code === 0)]!))
  })

  async function begin (peer: WriterPeer, blob: string, span: Span, bytes: Buffer): Promise<{ assignment: Assignment, finish: () => Promise<unknown> }> {
    const chunks = await peer.putChunks(bytes, span[0], CHUNK)
    const write = await peer.assign(blob, [{ offset: span[0] * CHUNK, size: span[1] * CHUNK }])
    return { assignment: write.assignment, finish: async () => await write.finish(chunks) }
  }

  async function exported (ref: string): Promise<Buffer> {
    let content: Buffer = Buffer.alloc(0)
    for await (const item of (await reader.export(ref)).items) {
      if ('size' in item) content = overBytes(content, item.size, Buffer.alloc(0))
      else content = overBytes(content, item.offset, Buffer.from(item.bytes))
    }
    return content
  }

  async function newImage (name: string): Promise<string> {
    const path = join(live.folder, name)
    await makeImage(path, 8 * MIB, randomRuns(chance.fork(name), { count: 2, bytesEach: MIB, within: 8 * MIB }))
    return path
  }
})

describeWith(['root', 'fuse'], 'concurrent commits', () => {
  let live: LiveFabric
  beforeAll(async () => { live = await LiveFabric.start({ storage: 3, compute: 2 }) })
  afterAll(async () => { await live?.close() })

  it('of working copies on two machines: one wins where they share a blob, all where each has a clone', async () => {
    const image = join(live.folder, 'shared.img')
    await makeImage(image, 16 * MIB, randomRuns(chance.fork('shared'), { count: 4, bytesEach: MIB, within: 16 * MIB }))
    const original = await succeed<ImportResult>(live.compute(0), 'import', image, '--name', 'shared')
    const machines = await Promise.all([0, 1].map(async (at) => ({ peer: live.compute(at), mountpoint: await live.mount(live.compute(at), `mnt-${at}`) })))
    const copies = await Promise.all(['a', 'b', 'c', 'd'].map(async (name, at) => {
      const { peer } = machines[at % 2]!
      const path = (await succeed<WorkingCopyRow>(peer, 'working-copy', 'create', name, `shared@${original.version}`)).path!
      await writeRunsMounted(path, randomRuns(chance.fork(name), { count: 3, bytesEach: 200_000, within: 16 * MIB }))
      return { peer, path, name, sum: await sha256OfMounted(path) }
    }))

    const outcomes = await Promise.all(copies.map(async ({ peer, path }) => await peer.cli('commit', path)))
    expect(outcomes.map(({ code }) => code).sort()).toEqual([0, 11, 11, 11])
    const winner = copies[outcomes.findIndex(({ code }) => code === 0)]!
    expect(await live.exportedSum(live.compute(0), 'shared')).toBe(winner.sum)
    const { versions } = await succeed<{ versions: VersionRow[] }>(live.compute(1), 'log', 'shared')
    expect(versions.at(-1)!.version).toBe(original.version + 1)

    const losers = copies.filter((copy) => copy !== winner)
    const commits = await Promise.all(losers.map(async ({ peer, path, name }) => {
      await succeed<CloneResult>(peer, 'clone', path, '--name', `own-${name}`)
      return await succeed<CommitResult>(peer, 'commit', path)
    }))
    for (const [at, { blob, version }] of commits.entries()) {
      expect(await live.exportedSum(live.compute(0), `${blob}@${version}`)).toBe(losers[at]!.sum)
      expect(await sha256OfMounted(losers[at]!.path)).toBe(losers[at]!.sum)
    }
  })
})

function bytesFor (key: string, [first, count]: Span): Buffer {
  return bytesOf({ key: `${chance.seed} ${key}`, offset: first * CHUNK, size: count * CHUNK })
}

function over (before: Buffer, [first]: Span, bytes: Buffer): Buffer {
  return overBytes(before, first * CHUNK, bytes)
}

function overBytes (before: Buffer, offset: number, bytes: Buffer): Buffer {
  const after = Buffer.alloc(Math.max(before.length, offset + bytes.length))
  before.copy(after)
  bytes.copy(after, offset)
  return after
}
