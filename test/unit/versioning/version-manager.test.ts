/** The version manager's promises: durable before answered, idempotent, published in order, nothing lost. */
import { describe, expect, test } from 'vitest'
import { P2pvmError } from '../../../src/protocols/errors.ts'
import type { VersionOperation, VersionRequest } from '../../../src/protocols/version-protocol.ts'
import { Certificates } from '../../../src/versioning/certificates.ts'
import { FakeClock, settle } from '../../harness/fake-clock.ts'
import type { AssignRequest } from '../../harness/asked-manager.ts'
import { MARKED_MS, MemoryFabric } from '../../harness/memory-fabric.ts'
import { namedSigner } from '../../harness/signers.ts'
import type { WriteFate } from '../../harness/memory-stores.ts'
import { CHUNK, completeOf, context, newBlob, publish, recent, withBlob, writeTo } from '../../harness/version-requests.ts'

describe('assigning', () => {
  test('tells the base and everything in flight on top of it', async () => {
    const { fabric: { manager }, blob } = await withBlob()
    const first = await manager.assign(writeTo(blob, 'request-1', 0), context)
    const second = await manager.assign(writeTo(blob, 'request-2', 9), context)
    const third = await manager.assign({ ...writeTo(blob, 'request-3'), change: { kind: 'append', size: 10 } }, context)
    expect(first).toMatchObject({ version: 1, base: { version: 0, root: null }, sizeBefore: 0, sizeAfter: CHUNK, inFlight: [] })
    expect(second).toMatchObject({ version: 2, base: { version: 0 }, sizeBefore: CHUNK, sizeAfter: 10 * CHUNK })
    expect(third).toMatchObject({ version: 3, extents: [{ offset: 10 * CHUNK, size: 10 }], sizeBefore: 10 * CHUNK, sizeAfter: 10 * CHUNK + 10 })
    expect(third.inFlight).toEqual([
      { version: 1, extents: [{ offset: 0, size: CHUNK }], sizeBefore: 0, sizeAfter: CHUNK },
      { version: 2, extents: [{ offset: 9 * CHUNK, size: CHUNK }], sizeBefore: CHUNK, sizeAfter: 10 * CHUNK }
    ])
    await manager.complete(completeOf(blob, 1, 'request-1'), context)
    const fourth = await manager.assign(writeTo(blob, 'request-4'), context)
    expect(fourth).toMatchObject({ base: { version: 1, root: { blob, version: 1 } }, inFlight: [{ version: 2 }, { version: 3 }] })
  })

  test('with an expected base is a conflict as soon as another writer was assigned', async () => {
    const { fabric: { manager }, blob } = await withBlob()
    await manager.assign(writeTo(blob, 'request-1', 0, 0), context)
    await expect(manager.assign(writeTo(blob, 'request-2', 0, 0), context)).rejects.toMatchObject({ code: 'ERR_CONFLICT', message: expect.stringContaining('1 is being written') })
    // Of many at once one gets it.
    const many = await Promise.allSettled(Array.from({ length: 5 }, async (_, at) => await manager.assign(writeTo(blob, `request-1${at}`, 0, 1), context)))
    expect(many.filter(({ status }) => status === 'fulfilled').length).toBe(1)
  })

  test('stops at a bound of what is in flight, and goes on when that is published', async () => {
    const { fabric: { manager }, blob } = await withBlob()
    for (let version = 1; version <= 256; version++) await manager.assign(writeTo(blob, `request-${version}`), context)
    await expect(manager.assign(writeTo(blob, 'one-too-many'), context)).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
    await manager.complete(completeOf(blob, 1, 'request-1'), context)
    expect((await manager.assign(writeTo(blob, 'one-too-many'), context)).inFlight.length).toBe(255)
  })

  test('a name is reserved from then on, and shows when the version is published', async () => {
    const { fabric: { manager } } = await withBlob()
    const request: AssignRequest = {
      op: 'assign', requestId: 'import-1', target: { kind: 'new', chunkSize: CHUNK, fanOut: 64, name: 'image' }, change: { kind: 'write', extents: [], size: 5 }
    }
    const { blob, version } = await manager.assign(request, context)
    const other = manager.assign({ ...request, requestId: 'import-2' }, context)
    await expect(other).rejects.toMatchObject({ code: 'ERR_CONFLICT', message: expect.stringMatching(/taken by a write of writer that is not published/) })
    await expect(manager.resolve({ op: 'resolve', ref: 'image' })).rejects.toMatchObject({ code: 'ERR_NOT_FOUND', message: expect.stringContaining('reserved') })
    expect((await manager.images({ op: 'images', after: '' })).images).toEqual([])
    expect((await manager.assign(request, context)).blob).toBe(blob)

    await manager.complete(completeOf(blob, version, 'import-1'), context)
    expect((await manager.resolve({ op: 'resolve', ref: 'image' })).version).toMatchObject({ blob, version: 1, size: 5 })
    await expect(manager.create(newBlob('create-2', 'image'), context)).rejects.toMatchObject({ code: 'ERR_CONFLICT', message: expect.stringContaining(blob) })
    await expect(manager.create(newBlob('create-3', 'Not a name'), context)).rejects.toMatchObject({ code: 'ERR_USAGE' })
  })

  test('of two that want a name at once, one gets it', async () => {
    const { fabric: { manager } } = await withBlob()
    const both = await Promise.allSettled(['one', 'two'].map(async (one) => await manager.create(newBlob(`request-${one}`, 'name'), context)))
    expect(both.map(({ status }) => status)).toEqual(['fulfilled', 'rejected'])
  })

  test('a clone has the source\'s root and size, and only of what is published', async () => {
    const { fabric, blob } = await withBlob()
    await publish(fabric, blob, 1)
    const { version: clone } = await fabric.manager.create({ op: 'create', requestId: 'clone-it', of: { kind: 'clone', source: { blob, version: 1 } } }, context)
    expect(clone).toMatchObject({ version: 0, size: CHUNK, root: { blob, version: 1 }, parent: { blob, version: 1 }, fanOut: 4 })
    await fabric.manager.assign(writeTo(blob, 'in-flight'), context)
    for (const source of [{ blob, version: 2 }, { blob: 'a'.repeat(16), version: 0 }]) {
      await expect(fabric.manager.create({ op: 'create', requestId: 'clone-nothing', of: { kind: 'clone', source } }, context)).rejects.toMatchObject({ code: 'ERR_NOT_FOUND' })
    }
  })
})

describe('completing and publishing', () => {
  test('in order, whatever the order of completion, and a record only when all before it are complete', async () => {
    const { fabric, blob } = await withBlob()
    const { manager, records } = fabric
    for (const number of [1, 2, 3]) await manager.assign(writeTo(blob, `request-${number}`), context)
    expect(await manager.complete(completeOf(blob, 3, 'request-3'), context)).toEqual({ published: null })
    expect(await manager.complete(completeOf(blob, 2, 'request-2'), context)).toEqual({ published: null })
    expect(await recent(fabric, blob)).toBe(0)
    expect(records.stored).toEqual([`version/${blob}/0`])
    const { published } = await manager.complete(completeOf(blob, 1, 'request-1'), context)
    expect(published).toMatchObject({ version: 1, message: 'done', parent: { blob, version: 0 } })
    expect(await recent(fabric, blob)).toBe(3)
    expect(records.stored).toEqual([0, 1, 2, 3].map((version) => `version/${blob}/${version}`))
  })

  test('is answered only when the record is on storage peers', async () => {
    const { fabric, blob } = await withBlob()
    const replicating = Promise.withResolvers<void>()
    fabric.records.beforePut = async () => { await replicating.promise }
    const published = publish(fabric, blob, 1)
    await settle()
    expect(await recent(fabric, blob)).toBe(0)
    replicating.resolve()
    await published
    expect(await recent(fabric, blob)).toBe(1)
  })

  test.each(['wait', 'complete again', 'the next complete', 'a restart'])('replication that failed is made up for by %s', async (by) => {
    const { fabric, blob } = await withBlob()
    await fabric.manager.assign(writeTo(blob, 'write-1'), context)
    await fabric.manager.assign(writeTo(blob, 'write-2'), context)
    fabric.records.down = true
    await expect(fabric.manager.complete(completeOf(blob, 1, 'write-1'), context)).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
    await expect(fabric.manager.wait({ op: 'wait', blob, version: 1, waitMs: 1000 }, context)).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
    expect(await recent(fabric, blob)).toBe(0)
    fabric.records.down = false
    if (by === 'wait') await fabric.manager.wait({ op: 'wait', blob, version: 1, waitMs: 1000 }, context)
    if (by === 'complete again') await fabric.manager.complete(completeOf(blob, 1, 'write-1'), context)
    if (by === 'the next complete') await fabric.manager.complete(completeOf(blob, 2, 'write-2'), context)
    if (by === 'a restart') await fabric.restart().recover()
    expect(await recent(fabric, blob)).toBe(by === 'the next complete' ? 2 : 1)
  })

  test('that fails wakes those who wait, so that they try again', async () => {
    const { fabric, blob } = await withBlob({ clock: new FakeClock() })
    await fabric.manager.assign(writeTo(blob, 'write-1'), context)
    await fabric.manager.assign(writeTo(blob, 'write-2'), context)
    const waiting = fabric.manager.wait({ op: 'wait', blob, version: 2, waitMs: 10_000 }, context)
    const told = expect(waiting).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
    await settle()
    fabric.records.down = true
    await expect(fabric.manager.complete(completeOf(blob, 1, 'write-1'), context)).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
    await told
  })

  test('repeated while it is under way makes one publication record', async () => {
    const clock = new FakeClock()
    const { fabric, blob } = await withBlob({ clock })
    await fabric.manager.assign(writeTo(blob, 'write-1'), context)
    const release = fabric.store.hold()
    const first = fabric.manager.complete(completeOf(blob, 1, 'write-1'), context)
    await clock.advance(1000)
    const second = fabric.manager.complete({ ...completeOf(blob, 1, 'write-1'), message: 'other' }, context)
    release()
    expect(await second).toEqual(await first)
    fabric.restart()
    expect(await fabric.manager.complete(completeOf(blob, 1, 'write-1'), context)).toEqual(await first)
  })

  test('belongs to the request that was assigned the version', async () => {
    const { fabric: { manager }, blob } = await withBlob()
    await manager.assign(writeTo(blob, 'write-1'), context)
    await expect(manager.complete(completeOf(blob, 1, 'write-2'), context)).rejects.toMatchObject({ code: 'ERR_NOT_ALLOWED' })
    await expect(manager.complete(completeOf(blob, 2, 'write-2'), context)).rejects.toMatchObject({ code: 'ERR_NOT_FOUND' })
    await expect(manager.complete(completeOf('a'.repeat(16), 2, 'write-2'), context)).rejects.toMatchObject({ code: 'ERR_NOT_FOUND' })
  })

  test('wait is woken, ends after its time, and when the caller gives up', async () => {
    const clock = new FakeClock()
    const { fabric: { manager }, blob } = await withBlob({ clock })
    await manager.assign(writeTo(blob, 'write-1'), context)
    const woken = manager.wait({ op: 'wait', blob, version: 1, waitMs: 10_000 }, context)
    await settle()
    await manager.complete(completeOf(blob, 1, 'write-1'), context)
    expect(await woken).toMatchObject({ published: { version: 1 } }) // and the clock has not moved

    await manager.assign(writeTo(blob, 'write-2'), context)
    const waited = manager.wait({ op: 'wait', blob, version: 2, waitMs: 10_000 }, context)
    await clock.advance(10_000)
    expect(await waited).toEqual({ published: null })
    const caller = new AbortController()
    const given = manager.wait({ op: 'wait', blob, version: 2, waitMs: 10_000 }, { ...context, signal: caller.signal })
    caller.abort(new P2pvmError('ERR_ABORTED', 'enough'))
    await expect(given).rejects.toMatchObject({ code: 'ERR_ABORTED' })
    await expect(manager.wait({ op: 'wait', blob, version: 3, waitMs: 1 }, context)).rejects.toMatchObject({ code: 'ERR_NOT_FOUND' })
    await manager.stop()
    expect(clock.pending).toBe(0)
  })
})

describe('the disk', () => {
  test('nothing is answered before it is there', async () => {
    const { fabric, blob } = await withBlob()
    const release = fabric.store.hold()
    let answered = 0
    const requests = [1, 2, 3].map(async (number) => {
      await fabric.manager.assign(writeTo(blob, `write-${number}`), context)
      answered += 1
    })
    await settle()
    expect(answered).toBe(0)
    release()
    await Promise.all(requests)
  })

  test('writers of one blob share a flush; blobs do not wait for one another', async () => {
    const { fabric, blob } = await withBlob()
    const { version: { blob: other } } = await fabric.manager.create(newBlob('create-other'), context)
    const before = fabric.store.writes
    const release = fabric.store.hold()
    const requests = Array.from({ length: 50 }, async (_, number) => await fabric.manager.assign(writeTo(blob, `write-${number}`), context))
    requests.push(fabric.manager.assign(writeTo(other, 'write-other'), context))
    await settle()
    expect(fabric.store.writes - before).toBe(2)
    release()
    const assigned = await Promise.all(requests)
    expect(fabric.store.writes - before).toBe(3)
    expect(assigned.slice(0, 50).map(({ version }) => version)).toEqual(Array.from({ length: 50 }, (_, at) => at + 1))
  })

  test('full: an error, no gap, and on it goes when there is room', async () => {
    const { fabric, blob } = await withBlob()
    await fabric.manager.assign(writeTo(blob, 'write-1'), context)
    fabric.store.fate = () => 'disk full'
    const failed = await Promise.allSettled([2, 3].map(async (number) => await fabric.manager.assign(writeTo(blob, `write-${number}`), context)))
    expect(failed.map((one) => one.status === 'rejected' && (one.reason as P2pvmError).code)).toEqual(['ERR_DISK_FULL', 'ERR_DISK_FULL'])
    await expect(fabric.manager.complete(completeOf(blob, 1, 'write-1'), context)).rejects.toMatchObject({ code: 'ERR_DISK_FULL' })
    fabric.store.fate = () => 'kept'
    await fabric.manager.complete(completeOf(blob, 1, 'write-1'), context)
    expect(await recent(fabric, blob)).toBe(1)
    expect(await fabric.manager.assign(writeTo(blob, 'write-3'), context)).toMatchObject({ version: 2, inFlight: [] })
  })

  test('a write costs the same, however long the history', async () => {
    const { fabric, blob } = await withBlob()
    const sizes: number[] = []
    const { write } = fabric.store
    fabric.store.write = async (operations) => {
      sizes.push(operations.reduce((sum, { key, value }) => sum + key.length + (value?.length ?? 0), 0))
      await write.call(fabric.store, operations)
    }
    for (let number = 1000; number < 1500; number++) await publish(fabric, blob, number)
    const [first, last] = [sizes.slice(0, 3), sizes.slice(-3)].map((three) => three.reduce((sum, size) => sum + size, 0)) as [number, number]
    // The last one is linked to one more record, and has longer numbers.
    expect(last).toBeLessThan(first + 75)
  })

  test('more blobs than are kept in memory', async () => {
    const fabric = new MemoryFabric()
    const blobs: string[] = []
    for (let count = 0; count < 4200; count++) blobs.push((await fabric.manager.create(newBlob(`request-${count}`), context)).version.blob)
    await publish(fabric, blobs[0]!, 1)
    expect(await recent(fabric, blobs[0]!)).toBe(1)
    expect(await recent(fabric, blobs[1]!)).toBe(0)
  })
})

/** What a client has learned so far, and needs for his next request. */
interface Known { blob: string, clone: string }
type Answer = Readonly<Record<string, unknown>>
type AnyRequest = AssignRequest | VersionRequest<Exclude<VersionOperation, 'assign'>>

/** A client's day. */
const script: ReadonlyArray<(known: Known) => AnyRequest> = [
  () => newBlob('request-create', 'image'),
  ({ blob }) => writeTo(blob, 'request-write-1', 3),
  ({ blob }) => ({ ...writeTo(blob, 'request-append'), change: { kind: 'append', size: 5 } }),
  ({ blob }) => completeOf(blob, 2, 'request-append'),
  ({ blob }) => completeOf(blob, 1, 'request-write-1'),
  ({ blob }) => ({ op: 'wait', blob, version: 2, waitMs: 1000 }),
  ({ blob }) => ({
    op: 'assign', requestId: 'request-commit-as', target: { kind: 'clone', source: { blob, version: 2 }, name: 'other' },
    change: { kind: 'write', extents: [{ offset: 0, size: CHUNK }], size: 0 }
  }),
  ({ clone }) => completeOf(clone, 1, 'request-commit-as'),
  ({ blob }) => writeTo(blob, 'request-expecting', 0, 2),
  ({ blob }) => completeOf(blob, 3, 'request-expecting')
]

async function answer (fabric: MemoryFabric, request: AnyRequest): Promise<Answer> {
  return await (fabric.manager[request.op] as (request: unknown, of: typeof context) => Promise<Answer>)(request, context)
}

function learn (known: Known, request: AnyRequest, answer: Answer): void {
  if (request.op === 'create') known.blob = (answer['version'] as { blob: string }).blob
  if (request.op === 'assign' && request.target.kind === 'clone') known.clone = answer['blob'] as string
}

/** Runs the script; whoever gets no answer starts the manager again and repeats his request. */
async function runScript (fabric: MemoryFabric): Promise<{ known: Known, answers: Answer[] }> {
  const known = { blob: '', clone: '' }
  const answers: Answer[] = []
  for (const step of script) {
    const request = step(known)
    const got = await answer(fabric, request).catch(async (error: unknown) => {
      if (!fabric.store.dead) throw error
      fabric.restart()
      return await answer(fabric, request)
    })
    learn(known, request, got)
    answers.push(got)
  }
  return { known, answers }
}

describe('crashes', () => {
  test('each request repeated, also after a crash, gets the same answer and changes nothing', async () => {
    const fabric = new MemoryFabric({ clock: new FakeClock() })
    const known = { blob: '', clone: '' }
    for (const step of script) {
      const request = step(known)
      const first = await answer(fabric, request)
      expect(await answer(fabric, request)).toEqual(first)
      fabric.restart()
      expect(await answer(fabric, request)).toEqual(first)
      learn(known, request, first)
    }
    expect((await fabric.manager.log({ op: 'log', blob: known.blob, from: 0 })).versions.length).toBe(4)
  })

  test.each<ReturnType<WriteFate>>(['lost', 'kept, not answered'])('at every write, which is then %s: what was answered stays, what was not can be repeated', async (fate) => {
    const run = async (fate: WriteFate): Promise<{ fabric: MemoryFabric } & Awaited<ReturnType<typeof runScript>>> => {
      const clock = new FakeClock()
      const fabric = new MemoryFabric({ clock })
      fabric.store.fate = fate
      const ran = await runScript(fabric)
      await clock.advance(MARKED_MS)
      return { fabric, ...ran }
    }
    const { fabric: { store: { writes } } } = await run(() => 'kept')
    expect(writes).toBe(10)
    for (let crashAt = 1; crashAt <= writes; crashAt++) {
      const { fabric, known, answers } = await run((at) => at === crashAt ? fate : 'kept')
      fabric.restart()
      await fabric.manager.recover()
      for (const [at, step] of script.entries()) {
        // Whether a `complete` could say at once that it is published depends on when the crash came; what it published does not.
        const [before, again] = [answers[at]!, await answer(fabric, step(known))]
        if (before['published'] !== null) expect(again).toEqual(before)
      }
      const { versions } = await fabric.manager.log({ op: 'log', blob: known.blob, from: 0 })
      expect(versions.map(({ version, size }) => [version, size])).toEqual([[0, 0], [1, 4 * CHUNK], [2, 4 * CHUNK + 5], [3, 4 * CHUNK + 5]])
      expect((await fabric.manager.images({ op: 'images', after: '' })).images.map(({ name, latest }) => [name, latest.version])).toEqual([['image', 3], ['other', 1]])
    }
  })

  test('a request repeated while it is under way joins it', async () => {
    const { fabric: { manager, store }, blob } = await withBlob()
    const release = store.hold()
    const repeated = [1, 2, 3].flatMap((number) => {
      const ask = async (): Promise<number> => (await manager.assign(writeTo(blob, `write-${number}`), context)).version
      return [ask(), ask()]
    })
    const created = [1, 2].map(async () => (await manager.create(newBlob('create-again', 'image'), context)).version.blob)
    await settle()
    release()
    expect(await Promise.all(repeated)).toEqual([1, 1, 2, 2, 3, 3])
    expect(new Set(await Promise.all(created)).size).toBe(1)
  })

  test('a request id stands for one request', async () => {
    const { fabric: { manager }, blob } = await withBlob()
    await manager.assign(writeTo(blob, 'write-1', 3), context)
    await expect(manager.assign(writeTo(blob, 'write-1', 4), context)).rejects.toMatchObject({ code: 'ERR_USAGE' })
    await expect(manager.create(newBlob('write-1'), context)).rejects.toMatchObject({ code: 'ERR_USAGE' })
    await expect(manager.assign(writeTo(blob, 'create-request'), context)).rejects.toMatchObject({ code: 'ERR_USAGE' })
  })

  test('a request belongs to one writer, also after a restart; his certificate is the same each time', async () => {
    const { fabric, blob } = await withBlob()
    const first = await fabric.manager.assign(writeTo(blob, 'write-1'), context)
    for (let life = 0; life < 2; life++) {
      const other = fabric.manager.assign(writeTo(blob, 'write-1'), context, namedSigner('other'))
      await expect(other).rejects.toMatchObject({ code: 'ERR_CONFLICT', message: expect.stringContaining('belongs to the peer writer'), fields: { reason: 'another-writer' } })
      expect(await fabric.manager.assign(writeTo(blob, 'write-1'), context)).toEqual(first)
      fabric.restart()
    }
    expect(new Certificates(fabric.fabricKey).isGenuine(first.credentials.certificate)).toBe(true)
  })

  test('outcome tells what became of a request', async () => {
    const { fabric: { manager }, blob } = await withBlob()
    expect(await manager.outcome({ op: 'outcome', requestId: 'write-1' })).toEqual({ assigned: null })
    await manager.assign(writeTo(blob, 'write-1'), context)
    expect(await manager.outcome({ op: 'outcome', requestId: 'write-1' })).toEqual({ assigned: { blob, version: 1, complete: false, aborted: false } })
    await manager.complete(completeOf(blob, 1, 'write-1'), context)
    expect(await manager.outcome({ op: 'outcome', requestId: 'write-1' })).toEqual({ assigned: { blob, version: 1, complete: true, aborted: false } })
  })
})
