/**
 * Aborting a dead writer's version when something else fails, too: storage peers are away, the version manager crashes, its disk is
 * full; and what a client that was only slow is told. The clock is the test's.
 */
import { describe, expect, test } from 'vitest'
import { LEASE_MS } from '../../../src/protocols/version-protocol.ts'
import { MARKED_MS } from '../../harness/memory-fabric.ts'
import type { WriteFate } from '../../harness/memory-stores.ts'
import { CHUNK, context, MortalWriters } from '../../harness/mortal-writers.ts'

describe('storage peers that are away', () => {
  test('while a version is aborted: it is tried again, less and less often, and done when they are back', async () => {
    const run = await new MortalWriters().begin()
    await run.write({ fate: 'dies at once', chunks: [0] })
    await (await run.write({ fate: 'lives', chunks: [1] }))()
    let puts = 0
    run.fabric.records.beforePut = async () => { puts += 1 }
    run.fabric.records.down = true
    await run.clock.advance(LEASE_MS + 100)
    expect(puts).toBeGreaterThan(0)
    await run.clock.advance(300_000)
    expect(puts).toBeGreaterThan(20)
    expect(puts).toBeLessThan(100)
    run.fabric.records.down = false
    await run.clock.advance(15_000)
    expect(await run.check()).toEqual([1, 2, 1])
  })

  test('while somebody waits: it is tried for him at once', async () => {
    const run = await new MortalWriters().begin()
    await run.write({ fate: 'dies at once', chunks: [0] })
    run.fabric.records.down = true
    await run.clock.advance(LEASE_MS + 300_000)
    const wait = async (): Promise<unknown> => await run.fabric.manager.wait({ op: 'wait', blob: run.blob, version: 1, waitMs: 1000 }, context)
    await expect(wait()).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
    run.fabric.records.down = false
    expect(await wait()).toMatchObject({ published: { version: 1, attempt: 2 } })
  })

  test('while a version is published: that too is made up for unasked, and its name shows', async () => {
    const run = await new MortalWriters().begin()
    const { manager, records } = run.fabric
    const { blob } = await manager.assign({
      op: 'assign', requestId: 'import-1', target: { kind: 'new', chunkSize: CHUNK, fanOut: 64, name: 'image' }, change: { kind: 'write', extents: [], size: 0 }
    }, context)
    records.down = true
    const completed = manager.complete({ op: 'complete', requestId: 'import-1', blob, version: 1, message: '', bytesChanged: 0 }, context)
    await expect(completed).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
    await run.clock.advance(600_000)
    records.down = false
    await run.clock.advance(15_000)
    expect((await manager.resolve({ op: 'resolve', ref: 'image' })).version).toMatchObject({ blob, version: 1, attempt: 1 })
  })
})

describe('a crash of the version manager', () => {
  test.each<ReturnType<WriteFate>>(['lost', 'kept, not answered'])('at each of its writes while it aborts, which is then %s', async (fate) => {
    for (let crashAt = 1; crashAt <= 4; crashAt++) {
      const run = await new MortalWriters().begin(2)
      await (await run.write({ fate: 'lives', chunks: [0, 1, 2] }))()
      const late = await run.write({ fate: 'dies after some nodes', chunks: [1, 9] })
      await (await run.write({ fate: 'lives', chunks: [2] }))()
      await run.clock.advance(MARKED_MS)
      const before = run.fabric.store.writes
      run.fabric.store.fate = (at) => at === before + crashAt ? fate : 'kept'
      await run.clock.advance(LEASE_MS + MARKED_MS)
      // The attempt that counts, the version complete, and that it and the one behind it are published.
      expect(run.fabric.store.dead, `write ${crashAt}`).toBe(crashAt <= 3)
      await run.fabric.restart().recover()
      await run.clock.advance(LEASE_MS + 100)
      expect(await run.check(), `write ${crashAt}`).toEqual([1, 1, 2, 1])
      await expect(late()).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    }
  })

  test.each([0, 1, 2, 3])('after %i of the nodes that it wrote: they are the same when it writes them again', async (stored) => {
    const run = await new MortalWriters().begin(2)
    await (await run.write({ fate: 'lives', chunks: [0, 1, 2] }))()
    await run.write({ fate: 'dies after all nodes', chunks: [1, 9] })
    const { records } = run.fabric
    const put = records.put.bind(records)
    records.put = async (batch) => {
      await put(batch.slice(0, stored))
      throw new Error('crashed')
    }
    await run.clock.advance(LEASE_MS + 10)
    expect(records.stored.filter((name) => name.startsWith(`node/${run.blob}/2.2/`)).length).toBe(stored)
    records.put = put
    await run.fabric.restart().recover()
    expect(await run.check()).toEqual([1, 1, 2])
  })

  test('a full disk of it only delays', async () => {
    const run = await new MortalWriters().begin()
    await run.write({ fate: 'dies at once', chunks: [0] })
    run.fabric.store.fate = () => 'disk full'
    await run.clock.advance(2 * LEASE_MS)
    expect((await run.log()).length).toBe(1)
    run.fabric.store.fate = () => 'kept'
    await run.clock.advance(2 * LEASE_MS)
    expect(await run.check()).toEqual([1, 2])
  })
})

describe('a client', () => {
  test('that works for longer than a lease keeps its version', async () => {
    const run = await new MortalWriters().begin()
    run.fabric.records.beforePut = async (batch) => { if (batch[0]!.name.startsWith('node/')) await run.clock.sleep(20_000) }
    const written = run.fabric.client().write(run.blob, [{ offset: 0, bytes: new Uint8Array(CHUNK).fill(1) }])
    await run.clock.advance(25_000)
    expect(await written).toMatchObject({ version: 1, attempt: 1 })

    run.fabric.records.beforePut = async () => {}
    await run.fabric.manager.assign(run.request([0]), context) // dies, and the next one has to wait for its content
    const edge = run.fabric.client().write(run.blob, [{ offset: 100, bytes: new Uint8Array(5).fill(2) }])
    await run.clock.advance(LEASE_MS + 100)
    const version = await edge
    expect(version).toMatchObject({ version: 3, attempt: 1, exceptions: 1 })
    const content = new Uint8Array(CHUNK).fill(1)
    content.fill(2, 100, 105)
    expect(await run.fabric.client().read(version, 0, CHUNK)).toEqual(content)
  })

  test('that was not heard of stops, is told, and its version is the one before', async () => {
    const run = await new MortalWriters().begin()
    const client = run.fabric.client()
    await client.write(run.blob, [{ offset: 0, bytes: new Uint8Array(CHUNK).fill(1) }])
    const { renew } = run.fabric.manager.service
    run.fabric.manager.service.renew = async () => await new Promise<never>(() => {}) // cut off
    const stuck = Promise.withResolvers<void>()
    run.fabric.records.beforePut = async (batch) => { if (batch[0]!.name.startsWith(`node/${run.blob}/2/`)) await stuck.promise }
    const written = client.write(run.blob, [{ offset: 0, bytes: new Uint8Array(CHUNK).fill(2) }], { requestId: 'stuck-one' })
    const told = expect(written).rejects.toMatchObject({ code: 'ERR_CONFLICT', message: expect.stringContaining('as a new request') })
    await run.clock.advance(LEASE_MS + 100)
    run.fabric.manager.service.renew = renew
    await run.clock.advance(10_000)
    stuck.resolve()
    await run.clock.advance(10_000)
    await told
    expect(await client.outcome('stuck-one')).toBe('aborted')
    const recent = await client.recent(run.blob)
    expect(recent).toMatchObject({ version: 2, attempt: 2 })
    expect(await client.read(recent, 0, CHUNK)).toEqual(new Uint8Array(CHUNK).fill(1))
    await run.clock.advance(LEASE_MS)
    expect(run.clock.pending).toBe(0)
  })

  test('that asks for the outcome of a version in flight is told when it is aborted', async () => {
    const run = await new MortalWriters().begin()
    await run.fabric.manager.assign(run.request([0], { requestId: 'dead-one' }), context)
    const outcome = run.fabric.client().outcome('dead-one')
    await run.clock.advance(LEASE_MS + 100)
    expect(await outcome).toBe('aborted')
  })
})
