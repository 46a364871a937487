/**
 * Writers that die between `assign` and `complete`: nothing of theirs shows, whatever they had stored, and nobody waits for them longer
 * than a lease. The clock is the test's.
 */
import { describe, expect, test } from 'vitest'
import { type ChunkId, chunkIdOf } from '../../../src/protocols/cid.ts'
import { LEASE_MS } from '../../../src/protocols/version-protocol.ts'
import { EXCEPTIONS_MAX } from '../../../src/versioning/attempts.ts'
import type { AssignRequest } from '../../harness/asked-manager.ts'
import { settle } from '../../harness/fake-clock.ts'
import { CHUNK, context, type Fate, MortalWriters } from '../../harness/mortal-writers.ts'

const deaths: readonly Fate[] = ['dies at once', 'dies after some nodes', 'dies after all nodes']
const scenarios: ReadonlyArray<{ readonly name: string, readonly before?: readonly number[], readonly dead: readonly number[], readonly deadSize?: number, readonly after: ReadonlyArray<readonly number[]> }> = [
  { name: 'of an empty blob, nobody after it', dead: [0, 3], after: [] },
  { name: 'of an empty blob, others after it', dead: [0, 3], after: [[1], [3]] },
  { name: 'in a leaf that others share', before: [0, 1, 2, 3, 4, 5], dead: [1, 2, 5], after: [[2], [0], [5, 6]] },
  { name: 'that grew the blob, and a small one after it', before: [0], dead: [700], after: [[5]] },
  { name: 'that grew an empty blob, and a small one after it', dead: [700], after: [[5], [699]] },
  { name: 'that grew the blob without content', before: [1], dead: [], deadSize: 300, after: [[0], [299]] },
  { name: 'that grew the blob, and one that grows it further', before: [0, 9], dead: [40], after: [[5000], [41]] }
]

describe.each([2, 64])('fan-out %i: a writer', (fanOut) => {
  test.each(scenarios.flatMap((scenario) => deaths.map((fate) => ({ ...scenario, fate }))))('$name, $fate', async ({ before, dead, deadSize, after, fate }) => {
    const run = await new MortalWriters().begin(fanOut)
    if (before !== undefined) await (await run.write({ fate: 'lives', chunks: before }))()
    const late = await run.write({ fate, chunks: dead, ...deadSize === undefined ? {} : { sizeChunks: deadSize } })
    const published = (await run.log()).length
    // They refer forward to the dead one, and do not wait for it.
    for (const chunks of after) expect(await (await run.write({ fate: 'lives', chunks }))()).toBeNull()
    await run.clock.advance(LEASE_MS - 1)
    expect((await run.log()).length).toBe(published)
    await run.clock.advance(100)
    expect(await run.check()).toEqual([...new Array<number>(published).fill(1), 2, ...after.map(() => 1)])
    await expect(late()).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    // Who comes now builds on it.
    await (await run.write({ fate: 'lives', chunks: [2] }))()
    expect((await run.check()).length).toBe(published + after.length + 2)
  })

  test('behind other dead ones, with living ones between', async () => {
    const run = await new MortalWriters().begin(fanOut)
    const fates: Fate[] = ['dies after all nodes', 'lives', 'dies after some nodes', 'dies at once', 'dies after all nodes', 'lives', 'dies at once']
    for (const [at, fate] of fates.entries()) {
      const last = await run.write({ fate, chunks: [at, at + 1, 20 * at] })
      if (fate === 'lives') await last()
    }
    await run.clock.advance(LEASE_MS + 100)
    expect(await run.check()).toEqual([1, ...fates.map((fate) => fate === 'lives' ? 1 : 2)])
  })

  test('that died is not in the way of one before it that is slow', async () => {
    const run = await new MortalWriters().begin(fanOut)
    const slow = await run.write({ fate: 'lives', chunks: [0, 1] })
    await run.write({ fate: 'dies after all nodes', chunks: [1, 2] })
    await (await run.write({ fate: 'lives', chunks: [3] }))()
    for (let count = 0; count < 10; count++) {
      await run.clock.advance(LEASE_MS / 3)
      await run.fabric.manager.renew({ op: 'renew', requestId: 'request-0', blob: run.blob, version: 1 })
    }
    expect((await run.log()).length).toBe(1)
    await slow()
    await run.clock.advance(100)
    expect(await run.check()).toEqual([1, 1, 2, 1])
  })
})

test('more dead writers in a row than may be in flight: no chain of links gets too long', async () => {
  const run = await new MortalWriters().begin()
  for (let count = 0; count < 300; count++) {
    await run.write({ fate: 'dies at once', chunks: [0, 1] })
    await run.clock.advance(LEASE_MS / 2) // the one before is still in flight when the next comes
  }
  await (await run.write({ fate: 'lives', chunks: [1] }))()
  await run.clock.advance(2 * LEASE_MS)
  const reader = run.fabric.client('reader')
  const recent = await reader.recent(run.blob)
  expect(recent).toMatchObject({ version: 301, attempt: 1, exceptions: 300 })
  expect(await reader.chunkIds(recent, 0, 2)).toEqual(run.expected.at(-1))
})

describe('a lease', () => {
  test('is renewed by renewing and by asking again, and is whole after a restart', async () => {
    const run = await new MortalWriters().begin()
    const request = run.request([0], { requestId: 'slow-one' })
    await run.fabric.manager.assign(request, context)
    await run.clock.advance(LEASE_MS - 1)
    expect(await run.fabric.manager.renew({ op: 'renew', requestId: 'slow-one', blob: run.blob, version: 1 })).toEqual({ leaseMs: LEASE_MS })
    await run.clock.advance(LEASE_MS - 1)
    await run.fabric.manager.assign(request, context)
    await run.clock.advance(LEASE_MS - 1)
    await run.fabric.restart().recover()
    await run.clock.advance(LEASE_MS - 1)
    expect((await run.log()).length).toBe(1)
    await run.complete(1, 'slow-one')
    expect((await run.log()).map(({ attempt }) => attempt)).toEqual([1, 1])
    // Harmless then.
    await run.fabric.manager.renew({ op: 'renew', requestId: 'slow-one', blob: run.blob, version: 1 })
  })

  test('ends also when nobody asks for the blob after a restart', async () => {
    const run = await new MortalWriters().begin()
    await run.write({ fate: 'dies at once', chunks: [0] })
    await run.fabric.restart().recover()
    await run.clock.advance(LEASE_MS + 100)
    expect(run.fabric.records.stored).toContain(`version/${run.blob}/1`)
  })

  test('belongs to the request', async () => {
    const run = await new MortalWriters().begin()
    await run.write({ fate: 'dies at once', chunks: [0] })
    await expect(run.fabric.manager.renew({ op: 'renew', requestId: 'another-one', blob: run.blob, version: 1 })).rejects.toMatchObject({ code: 'ERR_NOT_ALLOWED' })
    await expect(run.fabric.manager.renew({ op: 'renew', requestId: 'another-one', blob: run.blob, version: 2 })).rejects.toMatchObject({ code: 'ERR_NOT_FOUND' })
  })

  test('that nobody waits for leaves no timer after all is published, or after a stop', async () => {
    const run = await new MortalWriters().begin()
    await (await run.write({ fate: 'lives', chunks: [0] }))()
    await run.clock.advance(LEASE_MS + 100)
    expect(run.clock.pending).toBe(0)
    await run.write({ fate: 'dies at once', chunks: [0] })
    await settle()
    expect(run.clock.pending).toBe(1)
    await run.fabric.manager.stop()
    expect(run.clock.pending).toBe(0)
    await run.clock.advance(2 * LEASE_MS)
    expect((await run.log()).length).toBe(2)
  })
})

describe('a fenced writer', () => {
  test('is refused whatever it asks, before and after a restart, and outcome tells why', async () => {
    const run = await new MortalWriters().begin()
    const request = run.request([0], { requestId: 'dead-one' })
    await run.fabric.manager.assign(request, context)
    await run.clock.advance(LEASE_MS + 100)
    for (const restarted of [false, true]) {
      const manager = restarted ? run.fabric.restart() : run.fabric.manager
      const refused = { code: 'ERR_CONFLICT', message: expect.stringMatching(/nothing was heard of the writer of version 1 .*as a new request/), fields: { version: 1, reason: 'fenced' } }
      await expect(run.complete(1, 'dead-one')).rejects.toMatchObject(refused)
      await expect(manager.renew({ op: 'renew', requestId: 'dead-one', blob: run.blob, version: 1 })).rejects.toMatchObject(refused)
      await expect(manager.assign(request, context)).rejects.toMatchObject(refused)
      expect(await manager.outcome({ op: 'outcome', requestId: 'dead-one' })).toEqual({ assigned: { blob: run.blob, version: 1, complete: true, aborted: true } })
    }
    expect(await run.fabric.client().outcome('dead-one')).toBe('aborted')
    expect((await run.log()).at(-1)).toMatchObject({ attempt: 2, exceptions: 1, bytesChanged: 0, message: expect.stringContaining('aborted') })
  })

  test('learns it only when it is durable', async () => {
    const run = await new MortalWriters().begin()
    const late = await run.write({ fate: 'dies after all nodes', chunks: [0] })
    const release = run.fabric.store.hold()
    await run.clock.advance(LEASE_MS + 100)
    let answered = false
    const refused = expect(late().finally(() => { answered = true })).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    await settle()
    expect(answered).toBe(false)
    release()
    await refused
  })

  test('gives its name back, and it never shows', async () => {
    const run = await new MortalWriters().begin()
    const { manager } = run.fabric
    const importing = (requestId: string): AssignRequest => ({
      op: 'assign', requestId, target: { kind: 'new', chunkSize: CHUNK, fanOut: 64, name: 'image' }, change: { kind: 'write', extents: [], size: 5 }
    })
    await manager.assign(importing('import-1'), context)
    await expect(manager.assign(importing('import-2'), context)).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    await run.clock.advance(LEASE_MS + 100)
    await expect(manager.resolve({ op: 'resolve', ref: 'image' })).rejects.toMatchObject({ code: 'ERR_NOT_FOUND', message: expect.not.stringContaining('reserved') })
    expect((await manager.images({ op: 'images', after: '' })).images).toEqual([])
    const { blob } = await manager.assign(importing('import-2'), context)
    await manager.complete({ op: 'complete', requestId: 'import-2', blob, version: 1, message: '', bytesChanged: 0 }, context)
    expect((await run.fabric.restart().resolve({ op: 'resolve', ref: 'image' })).version).toMatchObject({ blob, version: 1 })
  })

  test('is no conflict for who expects the version before it, unless the blob would be larger than he says', async () => {
    const run = await new MortalWriters().begin()
    await (await run.write({ fate: 'lives', chunks: [0, 1] }))()
    const expecting = async (expectedBase: number, chunks: readonly number[]): Promise<unknown> => {
      const request = run.request(chunks)
      return await run.fabric.manager.assign({ ...request, target: { kind: 'blob', blob: run.blob, expectedBase } }, context)
    }
    await run.write({ fate: 'dies at once', chunks: [1] })
    await expect(expecting(1, [0])).rejects.toMatchObject({ code: 'ERR_CONFLICT', message: expect.stringContaining('2 is being written') })
    await run.write({ fate: 'dies at once', chunks: [9] })
    await run.clock.advance(LEASE_MS + 100)
    run.fabric.restart()
    await expect(expecting(1, [0])).rejects.toMatchObject({ code: 'ERR_CONFLICT' }) // ten chunks, not two
    await expect(expecting(0, [9])).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    await expect(expecting(4, [9])).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    expect(await expecting(1, [9])).toMatchObject({ version: 4, sizeAfter: 10 * CHUNK })
    await expect(expecting(1, [9])).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
  })
})

describe('exceptions', () => {
  test('of the source are the clone\'s, and one publication record is enough to read it', async () => {
    const run = await new MortalWriters().begin()
    await (await run.write({ fate: 'lives', chunks: [0, 1, 2] }))()
    await run.write({ fate: 'dies after all nodes', chunks: [1, 30] })
    await run.clock.advance(LEASE_MS + 100)
    await run.write({ fate: 'dies after all nodes', chunks: [2] }) // of another version than the one that is cloned
    const client = run.fabric.client()
    const clone = await client.clone({ blob: run.blob, version: 2 })
    expect(clone).toMatchObject({ version: 0, attempt: 1, exceptions: 1 })
    const { version } = await run.fabric.manager.assign({
      ...run.request([5], { requestId: 'dead-clone' }), target: { kind: 'blob', blob: clone.blob }
    }, context)
    const written = client.write(clone.blob, [{ offset: 7 * CHUNK, bytes: new Uint8Array(CHUNK).fill(1) }])
    await run.clock.advance(LEASE_MS + 100)
    expect([version, (await written).exceptions]).toEqual([1, 2])
    run.fabric.restart()
    const again = await run.fabric.client().clone({ blob: clone.blob, version: 2 })
    expect(again.exceptions).toBe(2)
    run.fabric.store.crash() // the version manager is gone
    const reader = run.fabric.client('reader')
    const ids = await reader.chunkIds(await reader.version(again), 0, 31)
    const expected: Array<ChunkId | null> = run.expected[2]!.with(7, chunkIdOf(new Uint8Array(CHUNK).fill(1)))
    expect(ids).toEqual(expected)
  })

  test('have a bound: then writes are refused, with what to do', async () => {
    const run = await new MortalWriters().begin(64)
    for (let count = 0; count < EXCEPTIONS_MAX; count += 256) {
      for (let one = 0; one < 256; one++) await run.fabric.manager.assign(run.request([0]), context)
      await run.clock.advance(LEASE_MS + 100)
    }
    await expect(run.fabric.manager.assign(run.request([0]), context)).rejects.toMatchObject({ code: 'ERR_NOT_ALLOWED', message: expect.stringContaining('export') })
    const last = await run.fabric.client().recent(run.blob)
    expect(last).toMatchObject({ version: EXCEPTIONS_MAX, exceptions: EXCEPTIONS_MAX })
    expect(await run.fabric.client().chunkIds(last, 0, 1)).toEqual([null])
    // Reading, and cloning to read, go on.
    const clone = await run.fabric.client().clone(last)
    expect(clone.exceptions).toBe(EXCEPTIONS_MAX)
  })

  test('are never more than the bound, however many are at work', async () => {
    const run = await new MortalWriters().begin(64)
    for (let count = 0; count < EXCEPTIONS_MAX - 256; count += 128) {
      for (let one = 0; one < 128; one++) await run.fabric.manager.assign(run.request([0]), context)
      await run.clock.advance(LEASE_MS + 100)
    }
    for (let one = 0; one < 128; one++) await run.fabric.manager.assign(run.request([0]), context)
    await run.clock.advance(LEASE_MS + 100)
    for (let one = 0; one < 128; one++) await run.fabric.manager.assign(run.request([0]), context)
    await expect(run.fabric.manager.assign(run.request([0]), context)).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
  })
})
