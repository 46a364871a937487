/** BlobSeer's operations against a model that is a list of byte arrays, over stores in memory. */
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { chunkIdOf } from '../../../src/protocols/cid.ts'
import type { BlobClient } from '../../../src/versioning/blob-client.ts'
import type { Version } from '../../../src/versioning/blobs.ts'
import { MemoryFabric } from '../../harness/memory-fabric.ts'

const CHUNK = 4096
/** Positions in tests of properties are multiples of this: chunk edges and what lies just beside them come up often. */
const GRAIN = 1024

/** A blob is its versions' bytes. */
class Model {
  readonly versions: Uint8Array[] = [new Uint8Array(0)]

  write (parts: ReadonlyArray<{ offset: number, bytes: Uint8Array }>): void {
    const before = this.versions.at(-1)!
    const written = parts.filter(({ bytes }) => bytes.length > 0) // a write of nothing does not move the end
    const after = new Uint8Array(Math.max(before.length, ...written.map(({ offset, bytes }) => offset + bytes.length)))
    after.set(before)
    for (const { offset, bytes } of written) after.set(bytes, offset)
    this.versions.push(after)
  }

  grow (size: number): void {
    const after = new Uint8Array(size)
    after.set(this.versions.at(-1)!)
    this.versions.push(after)
  }

  clone (version: number): Model {
    const clone = new Model()
    clone.versions[0] = this.versions[version]!
    return clone
  }
}

type Step =
  | { readonly kind: 'write', readonly parts: ReadonlyArray<{ readonly at: number, readonly size: number, readonly fill: number }> }
  | { readonly kind: 'append', readonly size: number, readonly fill: number }
  | { readonly kind: 'grow', readonly by: number }
  | { readonly kind: 'clone', readonly back: number }

const fill = fc.nat(4) // 0: zeros, that is holes
const part = fc.record({ at: fc.nat(60), size: fc.nat(30), fill })
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 6, arbitrary: fc.record({ kind: fc.constant('write' as const), parts: fc.array(part, { maxLength: 4 }) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('write' as const), parts: fc.tuple(fc.record({ at: fc.nat(2000), size: fc.nat(9), fill })) }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('append' as const), size: fc.nat(40), fill }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('grow' as const), by: fc.nat(500) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('clone' as const), back: fc.nat(3) }) }
)

const bytesOf = (size: number, fill: number): Uint8Array => new Uint8Array(size * GRAIN).fill(fill)

async function check (client: BlobClient, blob: string, model: Model): Promise<void> {
  const log = await client.log(blob)
  expect(log.map(({ version, size }) => [version, size])).toEqual(model.versions.map((bytes, at) => [at, bytes.length]))
  for (const [at, expected] of model.versions.entries()) {
    const read = await client.read(log[at]!, 0, expected.length + 10)
    expect(Buffer.compare(read, expected), `version ${at}`).toBe(0)
  }
}

describe('against the model', () => {
  test.each([2, 4, 64])('writes, appends, clones and growth, fan-out %i', async (fanOut) => {
    await fc.assert(fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 8 }), fc.nat(0xffff), async (steps, seed) => {
      const fabric = new MemoryFabric({ seed: seed + 1 })
      const client = fabric.client()
      let blob = (await client.create({ chunkSize: CHUNK, fanOut })).blob
      let model = new Model()
      const all = [{ blob, model }]
      for (const one of steps) {
        if (one.kind === 'write') {
          const parts = one.parts.map(({ at, size, fill }) => ({ offset: at * GRAIN, bytes: bytesOf(size, fill) }))
          await client.write(blob, parts)
          model.write(parts)
        } else if (one.kind === 'append') {
          await client.append(blob, bytesOf(one.size, one.fill))
          model.write([{ offset: model.versions.at(-1)!.length, bytes: bytesOf(one.size, one.fill) }])
        } else if (one.kind === 'grow') {
          const size = model.versions.at(-1)!.length + one.by * GRAIN
          await client.publish({ requestId: `grow-${model.versions.length}-of-${blob}`, target: { kind: 'blob', blob }, chunks: new Map(), size, bytesChanged: 0 })
          model.grow(size)
        } else {
          const version = Math.max(0, model.versions.length - 1 - one.back)
          blob = (await client.clone({ blob, version })).blob
          model = model.clone(version)
          all.push({ blob, model })
        }
      }
      // A client that has cached nothing sees the same, and no clone has changed its source.
      for (const { blob, model } of all) await check(fabric.client(), blob, model)
    }), { numRuns: 60 })
  })

  test('concurrent writers, in whatever order they get there, are the same as one after the other', async () => {
    await fc.assert(fc.asyncProperty(
      fc.constantFrom(2, 4, 64), fc.array(fc.array(part, { minLength: 1, maxLength: 3 }), { minLength: 2, maxLength: 6 }), fc.scheduler(),
      async (fanOut, writes, scheduler) => {
        const fabric = new MemoryFabric()
        const { blob } = await fabric.client().create({ chunkSize: CHUNK, fanOut })
        fabric.records.beforePut = async () => { await scheduler.schedule(Promise.resolve()) }
        const written = await scheduler.waitFor(Promise.all(writes.map(async (parts, at) => {
          const bytes = parts.map((one) => ({ offset: one.at * GRAIN, bytes: bytesOf(one.size, one.fill) }))
          // Of each writer its own bytes can be told from the others'.
          for (const { bytes: own } of bytes) if (own[0] !== 0) own.fill(at + 10)
          return { version: (await fabric.client(`writer ${at}`).write(blob, bytes)).version, bytes }
        })))
        const model = new Model()
        for (const { bytes } of written.sort((a, b) => a.version - b.version)) model.write(bytes)
        await check(fabric.client(), blob, model)
      }), { numRuns: 100 })
  })

  test('concurrent appends of odd sizes all arrive, each in one piece', async () => {
    const fabric = new MemoryFabric()
    const { blob } = await fabric.client().create({ chunkSize: CHUNK, fanOut: 2 })
    const sizes = [3000, 5000, 1, 4096, 9000, 8192, 77]
    const versions = await Promise.all(sizes.map(async (size, at) => await fabric.client().append(blob, new Uint8Array(size).fill(at + 1))))
    const latest = await fabric.client().recent(blob)
    const content = await fabric.client().read(latest, 0, latest.size)
    expect(content.length).toBe(sizes.reduce((sum, size) => sum + size, 0))
    for (const [at, { version, size }] of versions.entries()) {
      expect(version).toBeGreaterThan(0)
      expect(content.subarray(size - sizes[at]!, size)).toEqual(new Uint8Array(sizes[at]!).fill(at + 1))
    }
  })
})

describe('publish', () => {
  const chunk = (fill: number): Uint8Array => new Uint8Array(CHUNK).fill(fill)

  test('import: a new blob, its content and its name in one step', async () => {
    const fabric = new MemoryFabric()
    const client = fabric.client('importer')
    const id = chunkIdOf(chunk(7))
    await fabric.chunks.put(id, chunk(7))
    const version = await client.publish({
      requestId: 'import-request-1', target: { kind: 'new', chunkSize: CHUNK, name: 'debian-12' },
      chunks: new Map([[100, id]]), size: 200 * CHUNK + 5, bytesChanged: 200 * CHUNK + 5, message: 'import'
    })
    expect(version).toMatchObject({ version: 1, size: 200 * CHUNK + 5, chunkSize: CHUNK, fanOut: 64, writer: 'importer', message: 'import' })
    expect(version.parent).toEqual({ blob: version.blob, version: 0 })
    expect(await client.chunkIds(version, 99, 3)).toEqual([null, id, null])
    expect(await client.resolve('debian-12')).toEqual(version)
    expect(await client.images()).toEqual([{ name: 'debian-12', blob: version.blob, latest: version }])
    expect((await client.resolve('debian-12@0')).size).toBe(0)
  })

  test('commit --as: clone, version and name in one step; the source is as it was', async () => {
    const fabric = new MemoryFabric()
    const client = fabric.client()
    const { blob } = await client.create({ chunkSize: CHUNK, fanOut: 4, name: 'source' })
    const source = await client.write(blob, [{ offset: 0, bytes: new Uint8Array(20 * CHUNK).fill(1) }])
    const id = chunkIdOf(chunk(2))
    await fabric.chunks.put(id, chunk(2))
    const version = await client.publish({
      requestId: 'commit-request-1', target: { kind: 'clone', source, name: 'other' }, chunks: new Map([[3, id], [4, null]]), bytesChanged: 2 * CHUNK
    })
    expect(version.blob).not.toBe(blob)
    expect(version).toMatchObject({ version: 1, size: 20 * CHUNK, parent: { blob: version.blob, version: 0 } })
    expect((await client.version({ blob: version.blob, version: 0 })).parent).toEqual({ blob, version: 1 })
    const expected = new Uint8Array(20 * CHUNK).fill(1).fill(2, 3 * CHUNK, 4 * CHUNK).fill(0, 4 * CHUNK, 5 * CHUNK)
    expect(Buffer.compare(await client.read(version, 0, version.size), expected)).toBe(0)
    expect(Buffer.compare(await client.read(source, 0, source.size), new Uint8Array(20 * CHUNK).fill(1))).toBe(0)
  })

  test('to a blob that has moved on is a conflict that says what to do', async () => {
    const client = new MemoryFabric().client()
    const { blob } = await client.create({ chunkSize: CHUNK })
    await client.write(blob, [{ offset: 0, bytes: chunk(1) }], { expectedBase: 0 })
    const late = client.publish({ requestId: 'late-request', target: { kind: 'blob', blob, expectedBase: 0 }, chunks: new Map(), bytesChanged: 0 })
    await expect(late).rejects.toMatchObject({ code: 'ERR_CONFLICT', fields: { blob, latest: 1, reason: 'moved-on' }, message: expect.stringMatching(/p2pvm clone PATH.*commit PATH --as NAME/) })
    expect((await client.recent(blob)).version).toBe(1)
  })

  test('more runs than a write may name: extents say more than is written, and what was there stays', async () => {
    const fabric = new MemoryFabric()
    const client = fabric.client()
    const { blob } = await client.create({ chunkSize: CHUNK, fanOut: 64 })
    const [old, id] = [chunkIdOf(chunk(1)), chunkIdOf(chunk(2))]
    await fabric.chunks.put(old, chunk(1))
    await fabric.chunks.put(id, chunk(2))
    const count = 3 * 4200
    const everything = new Map(Array.from({ length: count }, (_, at) => [at, old]))
    await client.publish({ requestId: 'write-everything', target: { kind: 'blob', blob }, chunks: everything, size: count * CHUNK, bytesChanged: 0 })
    const scattered = new Map(Array.from({ length: 4200 }, (_, at) => [3 * at, id]))
    const version = await client.publish({ requestId: 'write-scattered', target: { kind: 'blob', blob }, chunks: scattered, bytesChanged: 0 })
    const ids = await fabric.client().chunkIds(version, 0, count)
    expect(ids.every((one, at) => one === (at % 3 === 0 ? id : old))).toBe(true)
  })

  test('the same request again has the same outcome', async () => {
    const fabric = new MemoryFabric()
    const client = fabric.client()
    const { blob } = await client.create({ chunkSize: CHUNK })
    const write = async (): Promise<Version> =>
      await fabric.client().write(blob, [{ offset: 10, bytes: new Uint8Array(100).fill(3) }], { requestId: 'the-same-request', expectedBase: 0 })
    const first = await write()
    fabric.restart()
    expect(await write()).toEqual(first)
    expect(await client.outcome('the-same-request')).toEqual(first)
    expect(await client.outcome('another-request')).toBeUndefined()
    expect((await client.recent(blob)).version).toBe(1)
  })
})

describe('reading', () => {
  test('blob@version needs no version manager', async () => {
    const fabric = new MemoryFabric()
    const client = fabric.client()
    const { blob } = await client.create({ chunkSize: CHUNK })
    const version = await client.write(blob, [{ offset: 5, bytes: new Uint8Array([1, 2, 3]) }])
    fabric.store.crash()
    const alone = fabric.client('reader', { deadlineMs: 50 })
    const resolved = await alone.resolve(`${blob}@1`)
    expect(resolved).toEqual(version)
    expect(await alone.read(resolved, 4, 100)).toEqual(new Uint8Array([0, 1, 2, 3]))
  })

  test('a replica that has something else under a name is not believed, and another is asked', async () => {
    const fabric = new MemoryFabric()
    const { lies, values } = fabric.records
    const bytes = new Uint8Array(9 * CHUNK).fill(1)
    const { blob } = await fabric.client().create({ chunkSize: CHUNK, fanOut: 2 })
    await fabric.client().write(blob, [{ offset: 0, bytes }])
    await fabric.client().write(blob, [{ offset: 0, bytes: new Uint8Array(CHUNK).fill(2) }])
    // Version 2's records are those of version 1 there, the others are garbage.
    for (const name of values.keys()) {
      const before = name.replace(`/${blob}/2`, `/${blob}/1`)
      lies.set(name, before === name ? Buffer.from('garbage') : values.get(before)!)
    }
    const reader = fabric.client()
    const read = await reader.read(await reader.version({ blob, version: 2 }), 0, bytes.length)
    expect(Buffer.compare(read, Buffer.concat([new Uint8Array(CHUNK).fill(2), bytes.subarray(CHUNK)]))).toBe(0)
  })

  test('one batch of nodes per level, and none when cached', async () => {
    const fabric = new MemoryFabric()
    const { blob } = await fabric.client().create({ chunkSize: CHUNK, fanOut: 4 })
    const version = await fabric.client().write(blob, [{ offset: 0, bytes: new Uint8Array(64 * CHUNK).fill(1) }])
    const reader = fabric.client()
    fabric.records.gets = 0
    await reader.chunkIds(version, 0, 64)
    expect(fabric.records.gets).toBe(3)
    await reader.chunkIds(version, 10, 20)
    expect(fabric.records.gets).toBe(3)
  })

  test('a new blob is written without reading anything', async () => {
    const fabric = new MemoryFabric()
    const { blob } = await fabric.client().create({ chunkSize: CHUNK, fanOut: 4 })
    fabric.records.gets = 0
    await fabric.client().write(blob, [{ offset: 100, bytes: new Uint8Array(64 * CHUNK).fill(1) }])
    expect(fabric.records.gets).toBe(0)
  })

  test.each([
    ['nothing', 'ERR_NOT_FOUND'], ['NOTHING', 'ERR_USAGE'], ['image@', 'ERR_USAGE'], ['image@-1', 'ERR_USAGE'], ['image@7', 'ERR_NOT_FOUND'],
    ['image@1@2', 'ERR_USAGE'], ['', 'ERR_USAGE'], ['aaaaaaaaaaaaaaaa@3', 'ERR_NOT_FOUND']
  ])('resolve %j: %s', async (ref, code) => {
    const client = new MemoryFabric().client()
    await client.create({ name: 'image' })
    await expect(client.resolve(ref)).rejects.toMatchObject({ code })
  })

  test('names win over prefixes of ids, and an ambiguous prefix names its candidates', async () => {
    const fabric = new MemoryFabric()
    const client = fabric.client()
    const blobs: string[] = []
    for (let count = 0; count < 40; count++) blobs.push((await client.create()).blob)
    const [first] = blobs as [string]
    expect((await client.resolve(first)).blob).toBe(first)
    expect((await client.resolve(`${first.slice(0, 10)}@0`)).blob).toBe(first)
    const letter = [...'abcdefghijklmnopqrstuvwxyz234567'].find((one) => blobs.filter((blob) => blob.startsWith(one)).length > 1)!
    const ambiguous = blobs.filter((blob) => blob.startsWith(letter))
    await expect(client.resolve(letter)).rejects.toMatchObject({ code: 'ERR_CONFLICT', message: expect.stringContaining(ambiguous[1]!) })
    const named = await client.create({ name: letter })
    expect((await client.resolve(letter)).blob).toBe(named.blob)
  })

  test('logs and lists of images of any length', async () => {
    const fabric = new MemoryFabric()
    const client = fabric.client()
    const { blob } = await client.create()
    for (let count = 1; count <= 300; count++) {
      await client.publish({ requestId: `request-${count}`, target: { kind: 'blob', blob }, chunks: new Map(), bytesChanged: count, message: 'x'.repeat(1000) })
      await client.create({ name: `image-${count}` })
    }
    expect((await client.log(blob)).map(({ version }) => version)).toEqual(Array.from({ length: 301 }, (_, at) => at))
    expect((await client.images()).length).toBe(300)
    expect(new Set((await client.images()).map(({ name }) => name)).size).toBe(300)
  })

  test('words that cannot be meant are refused before anything happens', async () => {
    const client = new MemoryFabric().client()
    const { blob } = await client.create()
    await expect(client.create({ name: 'UPPER' })).rejects.toMatchObject({ code: 'ERR_USAGE' })
    await expect(client.create({ chunkSize: 5000 })).rejects.toMatchObject({ code: 'ERR_USAGE' })
    await expect(client.create({ fanOut: 3 })).rejects.toMatchObject({ code: 'ERR_USAGE' })
    await expect(client.recent('no-blob')).rejects.toMatchObject({ code: 'ERR_NOT_FOUND' })
    await expect(client.recent('aaaaaaaaaaaaaaaa')).rejects.toMatchObject({ code: 'ERR_NOT_FOUND' })
    await expect(client.write(blob, [{ offset: -1, bytes: new Uint8Array(1) }])).rejects.toMatchObject({ code: 'ERR_USAGE' })
    await expect(client.write(blob, [{ offset: Number.MAX_SAFE_INTEGER, bytes: new Uint8Array(1) }])).rejects.toMatchObject({ code: 'ERR_USAGE' })
    await expect(client.write(blob, [], { message: 'x'.repeat(1001) })).rejects.toMatchObject({ code: 'ERR_USAGE' })
    await expect(client.publish({ requestId: 'short', target: { kind: 'blob', blob }, chunks: new Map(), bytesChanged: 0 })).rejects.toMatchObject({ code: 'ERR_USAGE' })
    await expect(client.publish({ requestId: 'beyond-the-end', target: { kind: 'blob', blob }, chunks: new Map([[5, null]]), bytesChanged: 0 }))
      .rejects.toMatchObject({ code: 'ERR_USAGE' })
    expect((await client.recent(blob)).version).toBe(0)
  })
})
