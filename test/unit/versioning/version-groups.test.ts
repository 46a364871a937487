/** Groups at the version manager: what their members are assigned, and that they are complete, is one step: all or none, whatever happens. */
import { describe, expect, test } from 'vitest'
import { encodeMessage } from '../../../src/protocols/message-codec.ts'
import type { RequestHandler } from '../../../src/protocols/transport.ts'
import {
  GROUP_IN_FLIGHT_EXTENTS_MAX, GROUP_IN_FLIGHT_VERSIONS_MAX, GROUP_MEMBERS_MAX, LEASE_MS, MESSAGE_CHARACTERS_MAX, serveVersions, type VersionRequest
} from '../../../src/protocols/version-protocol.ts'
import type { Version } from '../../../src/versioning/blobs.ts'
import type { AssignGroupRequest, AssignRequest } from '../../harness/asked-manager.ts'
import { FakeClock, settle } from '../../harness/fake-clock.ts'
import { MARKED_MS, MemoryFabric } from '../../harness/memory-fabric.ts'
import type { WriteFate } from '../../harness/memory-stores.ts'
import { namedSigner } from '../../harness/signers.ts'

const CHUNK = 4096
const GROUP = 'group-of-disks'
const context = { peer: 'writer', signal: new AbortController().signal }

type Member = AssignGroupRequest['members'][number]

const change: Member['change'] = { kind: 'write', extents: [{ offset: 0, size: CHUNK }], size: CHUNK }
const on = (blob: string, expectedBase = 0): Member => ({ target: { kind: 'blob', blob, expectedBase }, change })
const fresh = (name?: string): Member => ({ target: { kind: 'new', chunkSize: CHUNK, fanOut: 4, ...name === undefined ? {} : { name } }, change })
const cloneOf = (blob: string, version = 0, name?: string): Member =>
  ({ target: { kind: 'clone', source: { blob, version }, ...name === undefined ? {} : { name } }, change })
const groupOf = (members: Member[], requestId = GROUP): AssignGroupRequest => ({ op: 'assignGroup', requestId, members })
const single = (blob: string, requestId: string): AssignRequest => ({ op: 'assign', requestId, target: { kind: 'blob', blob }, change })

type Assigned = Awaited<ReturnType<MemoryFabric['manager']['assignGroup']>>
const completionOf = ({ members }: { readonly members: ReadonlyArray<{ readonly blob: string, readonly version: number }> }, requestId = GROUP): VersionRequest<'completeGroup'> => ({
  op: 'completeGroup', requestId, message: 'all disks', members: members.map(({ blob, version }, at) => ({ blob, version, bytesChanged: at }))
})

async function withBlobs (count: number): Promise<{ fabric: MemoryFabric, blobs: string[], clock: FakeClock }> {
  const clock = new FakeClock()
  const fabric = new MemoryFabric({ clock })
  const blobs: string[] = []
  for (let at = 0; at < count; at++) {
    blobs.push((await fabric.manager.create({ op: 'create', requestId: `create-${at}-it`, of: { kind: 'new', chunkSize: CHUNK, fanOut: 4 } }, context)).version.blob)
  }
  return { fabric, blobs, clock }
}

const logOf = async ({ manager }: MemoryFabric, blob: string): Promise<Version[]> => (await manager.log({ op: 'log', blob, from: 0 })).versions
/** Attempts of the versions that show, behind version 0. */
const attempts = async (fabric: MemoryFabric, blobs: readonly string[]): Promise<number[][]> =>
  await Promise.all(blobs.map(async (blob) => (await logOf(fabric, blob)).slice(1).map(({ attempt }) => attempt)))
const contentOf = ({ store }: MemoryFabric): Map<string, string> =>
  new Map(Array.from(store.range({ start: '', end: '~' }), ({ key, value }) => [key, Buffer.from(value).toString('hex')]))

describe('assigning', () => {
  test('gives each member what it would get alone, in one write', async () => {
    const { fabric, blobs: [a = '', b = ''] } = await withBlobs(2)
    const before = fabric.store.writes
    const { members } = await fabric.manager.assignGroup(groupOf([on(b), fresh('data'), on(a), cloneOf(a, 0, 'copy')]), context)
    expect(fabric.store.writes - before).toBe(1)
    expect(members.map(({ blob, version, base }) => [blob, version, base.version])).toEqual([
      [b, 1, 0], [members[1]!.blob, 1, 0], [a, 1, 0], [members[3]!.blob, 1, 0]
    ])
    expect(new Set(members.map(({ blob }) => blob)).size).toBe(4)
    expect(members[3]!.base.parent).toEqual({ blob: a, version: 0 })
    for (const [at, { blob }] of members.entries()) {
      expect(await fabric.manager.outcome({ op: 'outcome', requestId: `${GROUP}-${at}` })).toEqual({ assigned: { blob, version: 1, complete: false, aborted: false } })
      expect(await fabric.manager.renew({ op: 'renew', requestId: `${GROUP}-${at}`, blob, version: 1 })).toEqual({ leaseMs: LEASE_MS })
    }
  })

  const refusals: ReadonlyArray<{ name: string, code: string, says: RegExp, fields: object, member: (blob: string) => Member, before?: (fabric: MemoryFabric, blob: string) => Promise<unknown> }> = [
    { name: 'of which another version is expected', code: 'ERR_CONFLICT', says: /has moved on/, fields: { latest: 0, expectedBase: 1 }, member: (blob) => on(blob, 1) },
    {
      name: 'that another writer is at', code: 'ERR_CONFLICT', says: /1 is being written/, fields: {}, member: (blob) => on(blob),
      before: async ({ manager }, blob) => await manager.assign(single(blob, 'another-writer'), context)
    },
    { name: 'that is no blob', code: 'ERR_NOT_FOUND', says: /no blob a{16}/, fields: { blob: 'a'.repeat(16) }, member: () => on('a'.repeat(16)) },
    { name: 'of no such version', code: 'ERR_NOT_FOUND', says: /no version 7/, fields: { name: 'copy', version: 7 }, member: (blob) => cloneOf(blob, 7, 'copy') },
    { name: 'with a name that is none', code: 'ERR_USAGE', says: /Not a name/, fields: { name: 'Not a name' }, member: () => fresh('Not a name') },
    {
      name: 'with a name that is taken', code: 'ERR_CONFLICT', says: /taken is taken by/, fields: { name: 'taken' }, member: () => fresh('taken'),
      before: async ({ manager }) => await manager.create({ op: 'create', requestId: 'create-named', of: { kind: 'new', chunkSize: CHUNK, fanOut: 4 }, name: 'taken' }, context)
    },
    {
      name: 'that writes beyond its end', code: 'ERR_USAGE', says: /does not fit/, fields: {},
      member: (blob) => ({ ...on(blob), change: { kind: 'write', extents: [{ offset: 8 * CHUNK, size: CHUNK }], size: CHUNK } })
    },
    {
      name: 'with too much in flight', code: 'ERR_UNAVAILABLE', says: /too many writes/, fields: {}, member: (blob) => on(blob, 256),
      before: async ({ manager }, blob) => { for (let at = 0; at < 256; at++) await manager.assign(single(blob, `in-flight-${at}`), context) }
    }
  ]
  test.each(refusals.flatMap((one) => [0, 1, 2].map((place) => ({ ...one, place }))))('a member $name, in place $place: nothing of any is', async (refusal) => {
    const { code, says, fields, member, place } = refusal
    const { fabric, blobs: [a = '', b = '', bad = ''] } = await withBlobs(3)
    await refusal.before?.(fabric, bad)
    const members = [on(a), fresh('data'), on(b)].toSpliced(place, place === 1 ? 0 : 1, member(bad))
    const [before, writes] = [contentOf(fabric), fabric.store.writes]
    const refused = fabric.manager.assignGroup(groupOf(members), context)
    await expect(refused).rejects.toMatchObject({ code, message: expect.stringMatching(says), fields: { ...fields, member: place } })
    const target = member(bad).target
    const noun = target.kind === 'blob' ? target.blob : target.name
    await expect(refused).rejects.toThrow(`${noun}, of a group: `)
    expect([contentOf(fabric), fabric.store.writes]).toEqual([before, writes])
    // Not in memory either: the others get what they would have got, and the name.
    const good = await fabric.manager.assignGroup(groupOf([on(a), on(b), fresh('data')]), context)
    expect(good.members.map(({ version, inFlight }) => [version, inFlight])).toEqual([[1, []], [1, []], [1, []]])
  })

  const noGroups: ReadonlyArray<readonly [string, RegExp, (blobs: readonly string[]) => Member[]]> = [
    ['nobody', /1 to 16 members, not 0/, () => []],
    ['too many', /1 to 16 members, not 17/, () => Array.from({ length: 17 }, () => fresh())],
    ['the same blob twice', /the same blob twice/, ([a = '', b = '']) => [on(a), on(b), on(a)]],
    ['the same name twice', /the same name twice/, ([a = '']) => [fresh('data'), cloneOf(a, 0, 'data')]],
    ['a blob at whatever version', /needs the version/, ([a = '']) => [{ target: { kind: 'blob', blob: a }, change }]]
  ]
  test.each(noGroups)('a group of %s is none', async (_, says, members) => {
    const { fabric, blobs } = await withBlobs(2)
    const writes = fabric.store.writes
    await expect(fabric.manager.assignGroup(groupOf(members(blobs)), context)).rejects.toMatchObject({ code: 'ERR_USAGE', message: expect.stringMatching(says) })
    await expect(fabric.client().publishGroup({
      requestId: GROUP, members: members(blobs).map(({ target }) => ({ target, chunks: new Map(), bytesChanged: 0 }))
    })).rejects.toMatchObject({ code: 'ERR_USAGE', message: expect.stringMatching(says) })
    expect(fabric.store.writes).toBe(writes)
  })

  test('a group of one, and two clones of one source, are groups', async () => {
    const { fabric, blobs: [a = ''] } = await withBlobs(1)
    expect((await fabric.manager.assignGroup(groupOf([on(a)]), context)).members).toMatchObject([{ blob: a, version: 1 }])
    expect((await fabric.manager.assignGroup(groupOf([cloneOf(a), cloneOf(a)], 'group-of-clones'), context)).members.length).toBe(2)
  })

  test('holds its names while it waits for its turn to be written', async () => {
    const { fabric, blobs: [a = ''] } = await withBlobs(1)
    const release = fabric.store.hold()
    const before = fabric.manager.assign(single(a, 'in-front-of-it'), context)
    const group = fabric.manager.assignGroup(groupOf([on(a, 1), fresh('data')]), context)
    await settle()
    const other = fabric.manager.create({ op: 'create', requestId: 'create-data', of: { kind: 'new', chunkSize: CHUNK, fanOut: 4 }, name: 'data' }, context)
    await expect(other).rejects.toMatchObject({ code: 'ERR_CONFLICT', message: expect.stringContaining('not published yet') })
    release()
    await Promise.all([before, group])
  })

  test('a full disk: nothing of any member is assigned, and all is when there is room', async () => {
    const { fabric, blobs: [a = '', b = ''] } = await withBlobs(2)
    fabric.store.fate = () => 'disk full'
    await expect(fabric.manager.assignGroup(groupOf([on(a), on(b), fresh('data')]), context)).rejects.toMatchObject({ code: 'ERR_DISK_FULL' })
    fabric.store.fate = () => 'kept'
    expect(await fabric.manager.outcome({ op: 'outcome', requestId: `${GROUP}-0` })).toEqual({ assigned: null })
    const { members } = await fabric.manager.assignGroup(groupOf([on(a), on(b), fresh('data')]), context)
    expect(members.map(({ version }) => version)).toEqual([1, 1, 1])
  })

  test('groups that cross wait for no one but the disk', async () => {
    const { fabric, blobs } = await withBlobs(3)
    const [a = '', b = '', c = ''] = blobs
    const written: string[] = []
    const { write } = fabric.store
    fabric.store.write = async (operations) => {
      written.push(...operations.map(({ key }) => key))
      await write.call(fabric.store, operations)
    }
    const release = fabric.store.hold()
    const plain = [a, b, c].map(async (blob, at) => await fabric.manager.assign(single(blob, `in-front-${at}`), context))
    const groups = [[a, b], [b, c], [c, a]].map(async ([one = '', other = ''], at) => {
      const base = (blob: string): number => 1 + [[a, b], [b, c], [c, a]].slice(0, at).filter((group) => group.includes(blob)).length
      return await fabric.manager.assignGroup(groupOf([on(one, base(one)), on(other, base(other))], `crossing-${at}`), context)
    })
    const behind = [a, b, c].map(async (blob, at) => await fabric.manager.assign(single(blob, `behind-it-${at}`), context))
    await settle()
    release()
    await Promise.all(plain)
    expect((await Promise.all(groups)).map(({ members }) => members.map(({ version }) => version))).toEqual([[2, 2], [3, 2], [3, 3]])
    expect((await Promise.all(behind)).map(({ version }) => version)).toEqual([4, 4, 4])
    // What survives a crash is a beginning of every blob's history.
    for (const blob of blobs) expect(written.filter((key) => key.startsWith(`vm/assigned/${blob}/`)).map((key) => Number(key.split('/')[3]))).toEqual([1, 2, 3, 4])
  })
})

describe('an answer', () => {
  test('fits a message, with the most of everything', async () => {
    const { fabric, blobs } = await withBlobs(GROUP_MEMBERS_MAX)
    const { manager } = fabric
    const [far, wide] = [2 ** 52, 2 ** 33]
    const runs = (count: number): Member['change'] =>
      ({ kind: 'write', extents: Array.from({ length: count }, (_, at) => ({ offset: far - 2 * wide * (count - at), size: wide })), size: far })
    for (const [at, blob] of blobs.entries()) {
      await manager.assign({ ...single(blob, `longest-${at}`), change: { kind: 'append', size: far } }, context)
      await manager.complete({ op: 'complete', requestId: `longest-${at}`, blob, version: 1, message: '\uffff'.repeat(MESSAGE_CHARACTERS_MAX), bytesChanged: far }, context)
      for (let one = 0; one < GROUP_IN_FLIGHT_VERSIONS_MAX / GROUP_MEMBERS_MAX; one++) {
        await manager.assign({ ...single(blob, `in-flight-${at}-${one}`), change: runs(GROUP_IN_FLIGHT_EXTENTS_MAX / GROUP_IN_FLIGHT_VERSIONS_MAX) }, context)
      }
    }
    const [expectedBase, extents] = [1 + GROUP_IN_FLIGHT_VERSIONS_MAX / GROUP_MEMBERS_MAX, 4096 / GROUP_MEMBERS_MAX]
    const members = blobs.map((blob) => ({ ...on(blob, expectedBase), change: runs(extents) }))
    let handler: RequestHandler | undefined
    serveVersions({ handle: (_, served) => { handler = served } }, manager.service)
    const bodyOf = (runsOf: (member: Member) => unknown): unknown => ({
      ...groupOf(members), writerKey: namedSigner('writer').publicKey, members: members.map((member) => ({ ...member, change: runsOf(member) }))
    })
    const flat = ({ change }: Member): unknown => change.kind === 'write' && { ...change, extents: change.extents.flatMap(({ offset, size }) => [offset, size]) }
    const body = bodyOf(flat)
    expect(encodeMessage({ body }).length).toBeGreaterThan(50_000)
    const answered = encodeMessage(await handler!({ body }, context)).length
    expect(answered).toBeGreaterThan(150_000)
    expect(answered).toBeLessThan(192 * 1024)
    const complete = completionOf({ members: blobs.map((blob) => ({ blob, version: expectedBase + 1 })) })
    expect(encodeMessage(await handler!({ body: complete }, context)).length).toBeLessThan(192 * 1024)

    // One extent more in any place is too much.
    const more = bodyOf((member) => ({ kind: 'write', extents: [...(flat(member) as { extents: number[] }).extents, far, 1], size: far + 1 }))
    await expect(handler!({ body: more }, context)).rejects.toMatchObject({ code: 'ERR_PROTOCOL', message: expect.stringContaining('4096 extents') })
  })

  test('would not fit with more in flight: that is published first', async () => {
    const { fabric, blobs: [a = '', b = ''] } = await withBlobs(2)
    for (let at = 0; at < GROUP_IN_FLIGHT_VERSIONS_MAX + 1; at++) await fabric.manager.assign(single(at % 2 === 0 ? a : b, `in-flight-${at}`), context)
    const request = groupOf([on(a, 65), on(b, 64)])
    await expect(fabric.manager.assignGroup(request, context)).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
    await fabric.manager.complete({ op: 'complete', requestId: 'in-flight-0', blob: a, version: 1, message: '', bytesChanged: 0 }, context)
    expect((await fabric.manager.assignGroup(request, context)).members.map(({ version }) => version)).toEqual([66, 65])
  })
})

describe('a request repeated', () => {
  test('gets the same answer, also after a restart, and while it is under way', async () => {
    const { fabric, blobs: [a = '', b = ''] } = await withBlobs(2)
    const request = groupOf([on(a), fresh('data'), on(b)])
    const release = fabric.store.hold()
    const both = [fabric.manager.assignGroup(request, context), fabric.manager.assignGroup(request, context)]
    const outcome = fabric.manager.outcome({ op: 'outcome', requestId: `${GROUP}-1` })
    await settle()
    release()
    const [first, second] = await Promise.all(both) as [Assigned, Assigned]
    expect(second).toEqual(first)
    // What was not durable yet is waited for.
    expect(await outcome).toMatchObject({ assigned: { blob: first.members[1]!.blob, version: 1 } })
    fabric.restart()
    expect(await fabric.manager.assignGroup(request, context)).toEqual(first)
    const completed = await fabric.manager.completeGroup(completionOf(first))
    expect(completed.published.map((version) => version?.message)).toEqual(['all disks', 'all disks', 'all disks'])
    expect(completed.published.map((version) => version?.bytesChanged)).toEqual([0, 1, 2])
    expect(await fabric.manager.completeGroup(completionOf(first))).toEqual(completed)
    fabric.restart()
    expect(await fabric.manager.completeGroup(completionOf(first))).toEqual(completed)
    expect(await fabric.manager.assignGroup(request, context)).toEqual(first)
  })

  test('is for the same members, and of the same writer', async () => {
    const { fabric, blobs: [a = '', b = '', c = ''] } = await withBlobs(3)
    const { manager } = fabric
    const first = await manager.assignGroup(groupOf([on(a), on(b)]), context)
    const others = [
      [on(a)], [on(a), on(b), on(c)], [on(a), { ...on(b), change: { kind: 'append', size: 7 } as const }]
    ]
    for (const members of others) await expect(manager.assignGroup(groupOf(members), context)).rejects.toMatchObject({ code: 'ERR_USAGE', message: expect.stringContaining('something else') })
    await expect(manager.assignGroup(groupOf([on(a), on(b)]), context, namedSigner('other'))).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    await manager.assign(single(c, 'group-by-chance-1'), context)
    await expect(manager.assignGroup(groupOf([on(a, 1), on(b, 1)], 'group-by-chance'), context)).rejects.toMatchObject({ code: 'ERR_USAGE' })
    expect(await manager.assignGroup(groupOf([on(a), on(b)]), context)).toEqual(first)
    // A member is a request of its own.
    expect(await manager.assign(single(b, `${GROUP}-1`), context)).toEqual(first.members[1])
  })

  test('of another kind, while it is under way, is something else', async () => {
    const { fabric, blobs: [a = '', b = ''] } = await withBlobs(2)
    const release = fabric.store.hold()
    const group = fabric.manager.assignGroup(groupOf([on(a), on(b)]), context)
    for (const requestId of [GROUP, `${GROUP}-1`]) await expect(fabric.manager.assign(single(b, requestId), context)).rejects.toMatchObject({ code: 'ERR_USAGE' })
    release()
    await group
  })
})

describe('completing', () => {
  test('is one write for all, and what is not first in its blob is published later', async () => {
    const { fabric, blobs: [a = '', b = ''] } = await withBlobs(2)
    await fabric.manager.assign(single(b, 'in-front-of-it'), context)
    const assigned = await fabric.manager.assignGroup(groupOf([on(a), on(b, 1)]), context)
    const before = fabric.store.writes
    expect((await fabric.manager.completeGroup(completionOf(assigned))).published).toMatchObject([{ blob: a, version: 1 }, null])
    expect(fabric.store.writes - before).toBe(1) // complete, with a's publication
    await fabric.manager.complete({ op: 'complete', requestId: 'in-front-of-it', blob: b, version: 1, message: '', bytesChanged: 0 }, context)
    expect(await fabric.manager.wait({ op: 'wait', blob: b, version: 2, waitMs: 1000 }, context)).toMatchObject({ published: { message: 'all disks' } })
  })

  test('is of the whole group, in its order, and of nothing else', async () => {
    const { fabric, blobs: [a = '', b = '', c = ''] } = await withBlobs(3)
    const { manager } = fabric
    const group = await manager.assignGroup(groupOf([on(a), on(b)]), context)
    const before = contentOf(fabric)
    const [first, second] = group.members as [Assigned['members'][number], Assigned['members'][number]]
    await expect(manager.completeGroup(completionOf({ members: [first] }))).rejects.toMatchObject({ code: 'ERR_USAGE' })
    await expect(manager.completeGroup(completionOf({ members: [] }))).rejects.toMatchObject({ code: 'ERR_USAGE' })
    await expect(manager.completeGroup(completionOf({ members: [second, first] }))).rejects.toMatchObject({ code: 'ERR_NOT_ALLOWED' })
    await expect(manager.completeGroup(completionOf(group, 'another-group'))).rejects.toMatchObject({ code: 'ERR_NOT_ALLOWED' })
    await expect(manager.completeGroup(completionOf({ members: [first, { blob: c, version: 1 }] }))).rejects.toMatchObject({ code: 'ERR_NOT_FOUND' })
    for (const [at, { blob, version }] of group.members.entries()) {
      const alone = manager.complete({ op: 'complete', requestId: `${GROUP}-${at}`, blob, version, message: '', bytesChanged: 0 }, context)
      await expect(alone).rejects.toMatchObject({ code: 'ERR_NOT_ALLOWED', message: expect.stringContaining('one of a group of 2') })
    }
    // Versions that were assigned one by one are no group, whatever their requests are called.
    for (const [at, blob] of [c, c].entries()) await manager.assign(single(blob, `no-group-${at}`), context)
    await expect(manager.completeGroup(completionOf({ members: [{ blob: c, version: 1 }, { blob: c, version: 2 }] }, 'no-group'))).rejects.toMatchObject({ code: 'ERR_USAGE' })
    for (const [key, value] of before) expect(contentOf(fabric).get(key)).toBe(value)
    expect((await manager.completeGroup(completionOf(group))).published).toMatchObject([{ version: 1 }, { version: 1 }])
  })

  test('a full disk: none is complete, and all are when there is room', async () => {
    const { fabric, blobs: [a = '', b = ''] } = await withBlobs(2)
    const assigned = await fabric.manager.assignGroup(groupOf([on(a), on(b)]), context)
    fabric.store.fate = () => 'disk full'
    await expect(fabric.manager.completeGroup(completionOf(assigned))).rejects.toMatchObject({ code: 'ERR_DISK_FULL' })
    for (const at of [0, 1]) expect(await fabric.manager.outcome({ op: 'outcome', requestId: `${GROUP}-${at}` })).toMatchObject({ assigned: { complete: false } })
    fabric.store.fate = () => 'kept'
    expect((await fabric.manager.completeGroup(completionOf(assigned))).published).toMatchObject([{ attempt: 1 }, { attempt: 1 }])
  })

  test.each(['upkeep', 'a restart'])('once on disk, all are published, by %s, however long storage peers were away', async (by) => {
    const { fabric, blobs, clock } = await withBlobs(3)
    const assigned = await fabric.manager.assignGroup(groupOf(blobs.map((blob) => on(blob))), context)
    fabric.records.down = true
    await expect(fabric.manager.completeGroup(completionOf(assigned))).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
    await clock.advance(10 * LEASE_MS)
    expect(await attempts(fabric, blobs)).toEqual([[], [], []])
    if (by === 'a restart') await fabric.restart().recover()
    fabric.records.down = false
    await clock.advance(20_000)
    expect(await attempts(fabric, blobs)).toEqual([[1], [1], [1]])
  })
})

describe('a lease that has ended', () => {
  /** All renew but the one in `dead`. */
  async function allBut (dead: number): Promise<Awaited<ReturnType<typeof withBlobs>> & { assigned: Assigned, renewAll: () => Promise<void> }> {
    const made = await withBlobs(3)
    const assigned = await made.fabric.manager.assignGroup(groupOf(made.blobs.map((blob) => on(blob))), context)
    const renewAll = async (): Promise<void> => {
      for (const [at, { blob, version }] of assigned.members.entries()) {
        if (at !== dead) await made.fabric.manager.renew({ op: 'renew', requestId: `${GROUP}-${at}`, blob, version })
      }
    }
    await made.clock.advance(LEASE_MS - 1000)
    await renewAll()
    await made.clock.advance(2000)
    return { ...made, assigned, renewAll }
  }

  test.each([0, 1, 2])('of member %i: none is completed, before or after a restart, and all are aborted', async (dead) => {
    const { fabric, blobs, clock, assigned, renewAll } = await allBut(dead)
    const refused = { code: 'ERR_CONFLICT', message: expect.stringMatching(/nothing was heard of the writer/), fields: { blob: blobs[dead], reason: 'fenced' } }
    await expect(fabric.manager.completeGroup(completionOf(assigned))).rejects.toMatchObject(refused)
    await expect(fabric.manager.assignGroup(groupOf(blobs.map((blob) => on(blob))), context)).rejects.toMatchObject(refused)
    await fabric.restart().recover()
    await expect(fabric.manager.completeGroup(completionOf(assigned))).rejects.toMatchObject(refused)
    await renewAll()
    await clock.advance(LEASE_MS - 1000)
    expect(await attempts(fabric, blobs)).toEqual(blobs.map((_, at) => at === dead ? [2] : []))
    await clock.advance(2000)
    expect(await attempts(fabric, blobs)).toEqual([[2], [2], [2]])
    await expect(fabric.manager.completeGroup(completionOf(assigned))).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
  })

  test('is told only when it is durable', async () => {
    const { fabric, blobs, clock } = await withBlobs(2)
    const assigned = await fabric.manager.assignGroup(groupOf(blobs.map((blob) => on(blob))), context)
    const release = fabric.store.hold()
    await clock.advance(LEASE_MS + 100)
    let answered = false
    const refused = expect(fabric.manager.completeGroup(completionOf(assigned)).finally(() => { answered = true })).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    await settle()
    expect(answered).toBe(false)
    release()
    await refused
  })

  test('does not end what is being completed, and is whole for all by a repeated request', async () => {
    const { fabric, blobs, clock } = await withBlobs(2)
    const request = groupOf(blobs.map((blob) => on(blob)))
    const assigned = await fabric.manager.assignGroup(request, context)
    await clock.advance(LEASE_MS - 1)
    await fabric.manager.assignGroup(request, context)
    await clock.advance(LEASE_MS - 1)
    const release = fabric.store.hold()
    const completed = fabric.manager.completeGroup(completionOf(assigned))
    await clock.advance(2 * LEASE_MS)
    release()
    expect((await completed).published).toMatchObject([{ attempt: 1 }, { attempt: 1 }])
  })
})

describe('crashes', () => {
  /** Two blobs, a new one and a clone: assigned, complete. Whoever gets no answer starts the manager again, and says what that one found. */
  async function run (fate: WriteFate, found: (fabric: MemoryFabric, blobs: readonly string[]) => Promise<void>): Promise<{ fabric: MemoryFabric, blobs: string[], clock: FakeClock }> {
    const { fabric, blobs, clock } = await withBlobs(2)
    const before = fabric.store.writes
    fabric.store.fate = (at) => fate(at - before)
    const startAgain = async (): Promise<void> => {
      await fabric.restart().recover()
      await found(fabric, blobs)
    }
    const asked = async <T>(ask: () => Promise<T>): Promise<T> => await ask().catch(async (error: unknown) => {
      if (!fabric.store.dead) throw error
      await startAgain()
      return await ask()
    })
    const [a = '', b = ''] = blobs
    const assigned = await asked(async () => await fabric.manager.assignGroup(groupOf([on(a), fresh('data'), on(b), cloneOf(a, 0, 'copy')]), context))
    for (const { blob } of [assigned.members[1]!, assigned.members[3]!]) blobs.push(blob)
    await asked(async () => await fabric.manager.completeGroup(completionOf(assigned)))
    await clock.advance(MARKED_MS)
    if (fabric.store.dead) await startAgain()
    return { fabric, blobs, clock }
  }

  test.each<ReturnType<WriteFate>>(['lost', 'kept, not answered'])('at every write, which is then %s: all of a group or nothing', async (fate) => {
    const writes = await run(() => 'kept', async () => {}).then(({ fabric }) => fabric.store.writes - 2)
    expect(writes).toBe(3) // assigned, complete, that all are published
    const sawAll = new Set<boolean>()
    for (let crashAt = 1; crashAt <= writes; crashAt++) {
      const { fabric, blobs, clock } = await run((at) => at === crashAt ? fate : 'kept', async (fabric, blobs) => {
        const outcomes = await Promise.all([0, 1, 2, 3].map(async (at) => (await fabric.manager.outcome({ op: 'outcome', requestId: `${GROUP}-${at}` })).assigned))
        expect(new Set(outcomes.map((one) => one === null)).size, `write ${crashAt}: assigned`).toBe(1)
        expect(new Set(outcomes.map((one) => one?.complete)).size, `write ${crashAt}: complete`).toBe(1)
        // Who recovered has published what was complete.
        const shown = await attempts(fabric, blobs)
        expect(new Set(shown.map((one) => one.length)).size, `write ${crashAt}: published`).toBe(1)
        sawAll.add(shown[0]!.length === 1)
      })
      expect(await attempts(fabric, blobs)).toEqual([[1], [1], [1], [1]])
      expect((await fabric.manager.images({ op: 'images', after: '' })).images.map(({ name }) => name)).toEqual(['copy', 'data'])
      await clock.advance(2 * LEASE_MS)
      expect(clock.pending).toBe(0)
    }
    expect(sawAll).toEqual(new Set([false, true]))
  })
})
