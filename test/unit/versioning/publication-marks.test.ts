/** That a version is published is made durable later than it is told: with the next write, or soon by itself. Lost, it is found out again. */
import { describe, expect, test } from 'vitest'
import { FakeClock, settle } from '../../harness/fake-clock.ts'
import { MARKED_MS, MemoryFabric } from '../../harness/memory-fabric.ts'
import { completeOf, context, newBlob, publish, recent, withBlob, writeTo } from '../../harness/version-requests.ts'

test('that a version is published goes to disk with the next write, or soon by itself', async () => {
  const clock = new FakeClock()
  const { fabric, blob } = await withBlob({ clock })
  const marked = (version: number): boolean => fabric.store.get(`vm/published/${blob}/${String(version).padStart(12, '0')}`) !== undefined
  expect([fabric.store.writes, marked(0)]).toEqual([1, false])
  await publish(fabric, blob, 1)
  expect([fabric.store.writes, marked(0), marked(1)]).toEqual([3, true, false])
  await clock.advance(MARKED_MS)
  expect([fabric.store.writes, marked(1)]).toEqual([4, true])
  await clock.advance(MARKED_MS)
  expect(fabric.store.writes).toBe(4)

  await publish(fabric, blob, 2)
  const release = fabric.store.hold()
  let stopped = false
  const stopping = fabric.manager.stop().then(() => { stopped = true })
  await settle()
  expect([fabric.store.writes, stopped]).toEqual([7, false])
  release()
  await stopping
  expect(marked(2)).toBe(true)
})

test('on a full disk it stays for a later write', async () => {
  const clock = new FakeClock()
  const { fabric, blob } = await withBlob({ clock })
  await publish(fabric, blob, 1)
  fabric.store.fate = () => 'disk full'
  await clock.advance(MARKED_MS)
  await expect(fabric.manager.create(newBlob('another-blob'), context)).rejects.toMatchObject({ code: 'ERR_DISK_FULL' })
  expect(await recent(fabric, blob)).toBe(1)
  expect((await fabric.manager.log({ op: 'log', blob, from: 0 })).versions.length).toBe(2)
  fabric.store.fate = () => 'kept'
  await publish(fabric, blob, 2)
  fabric.restart()
  fabric.records.down = true
  expect((await fabric.manager.assign(writeTo(blob, 'write-1'), context)).base.version).toBe(0)
  expect(fabric.store.get(`vm/published/${blob}/000000000001`)).toBeDefined()
})

describe('between publication and the mark of it', () => {
  /** Version 2 of an image was published, and that was lost. */
  async function inDoubt (): Promise<{ fabric: MemoryFabric, blob: string }> {
    const fabric = new MemoryFabric({ clock: new FakeClock() })
    const { version: { blob } } = await fabric.manager.create(newBlob('create-request', 'image'), context)
    for (const number of [1, 2]) await publish(fabric, blob, number)
    fabric.restart()
    return { fabric, blob }
  }

  const asked: Record<string, (fabric: MemoryFabric, blob: string) => Promise<unknown>> = {
    'recent': async ({ manager }, blob) => (await manager.recent({ op: 'recent', blob })).version.version,
    'a name': async ({ manager }) => (await manager.resolve({ op: 'resolve', ref: 'image' })).version.version,
    'a name with a version': async ({ manager }) => (await manager.resolve({ op: 'resolve', ref: 'image', version: 2 })).version.version,
    'the list of images': async ({ manager }) => (await manager.images({ op: 'images', after: '' })).images[0]?.latest.version,
    'the log': async ({ manager }, blob) => (await manager.log({ op: 'log', blob, from: 0 })).versions.at(-1)?.version,
    'a clone': async ({ manager }, blob) => (await manager.create({ op: 'create', requestId: 'clone-it', of: { kind: 'clone', source: { blob, version: 2 } } }, context)).version.parent?.version,
    'a write': async ({ manager }, blob) => (await manager.assign(writeTo(blob, 'write-3', 0, 2), context)).base.version,
    'a write of a group': async ({ manager }, blob) => {
      const { target, change } = writeTo(blob, 'group-3', 0, 2)
      return (await manager.assignGroup({ op: 'assignGroup', requestId: 'group-of-one', members: [{ target, change }] }, context)).members[0]?.base.version
    }
  }

  test.each(Object.keys(asked))('nothing older is told after a crash: %s', async (what) => {
    const { fabric, blob } = await inDoubt()
    fabric.records.down = true
    await expect(asked[what]!(fabric, blob)).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE', message: expect.stringMatching(/not certain until storage peers/), fields: { blob } })
    fabric.records.down = false
    expect(await asked[what]!(fabric, blob)).toBe(2)
  })

  test('a version that is complete behind one that is not is in no doubt', async () => {
    const { fabric, blob } = await withBlob({ clock: new FakeClock() })
    await fabric.manager.assign(writeTo(blob, 'write-1'), context)
    await fabric.manager.assign(writeTo(blob, 'write-2'), context)
    await fabric.manager.complete(completeOf(blob, 2, 'write-2'), context)
    fabric.restart()
    fabric.records.down = true
    expect(await recent(fabric, blob)).toBe(0)
  })
})
