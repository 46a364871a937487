/** A client's group: versions of several blobs, all or none, over stores in memory. The clock is the test's. */
import { describe, expect, test } from 'vitest'
import { type ChunkId, chunkIdOf } from '../../../src/protocols/cid.ts'
import { LEASE_MS } from '../../../src/protocols/version-protocol.ts'
import type { BlobClient } from '../../../src/versioning/blob-client.ts'
import { GROUP_MEMBERS_MAX, type GroupMember, type GroupRequest, type Version } from '../../../src/versioning/blobs.ts'
import { FakeClock } from '../../harness/fake-clock.ts'
import { MemoryFabric } from '../../harness/memory-fabric.ts'

const CHUNK = 4096
const requestId = 'all-disks-of-a-machine'

const bytesOf = (fill: number): Uint8Array => new Uint8Array(CHUNK).fill(fill)

class Disks {
  readonly clock = new FakeClock()
  readonly fabric = new MemoryFabric({ clock: this.clock })
  readonly client: BlobClient = this.fabric.client()
  readonly blobs: string[] = []

  /** As many blobs, of 4 chunks of ones each. */
  static async of (count: number): Promise<Disks> {
    const disks = new Disks()
    for (let at = 0; at < count; at++) {
      const { blob } = await disks.client.create({ chunkSize: CHUNK, fanOut: 4 })
      await disks.client.write(blob, [{ offset: 0, bytes: new Uint8Array(4 * CHUNK).fill(1) }])
      disks.blobs.push(blob)
    }
    return disks
  }

  /** The chunks are on the fabric. */
  async member (target: GroupMember['target'], fill: number, indices: readonly number[]): Promise<GroupMember> {
    if (fill !== 0) await this.fabric.chunks.put(chunkIdOf(bytesOf(fill)), bytesOf(fill))
    const chunks = new Map<number, ChunkId | null>(indices.map((index) => [index, fill === 0 ? null : chunkIdOf(bytesOf(fill))]))
    return { target, chunks, size: (Math.max(...indices) + 1) * CHUNK, bytesChanged: indices.length * CHUNK }
  }

  /** One chunk of each. */
  async group (expectedBase = 1): Promise<GroupRequest> {
    const members = await Promise.all(this.blobs.map(async (blob, at) => await this.member({ kind: 'blob', blob, expectedBase }, 2 + at, [at])))
    return { requestId, members, message: 'checkpoint' }
  }

  async versions (): Promise<number[][]> {
    return await Promise.all(this.blobs.map(async (blob) => (await this.client.log(blob)).slice(2).map(({ attempt }) => attempt)))
  }
}

/** The chunk's bytes, which are all the same. */
async function fillOf (client: BlobClient, version: Version, chunk: number): Promise<number> {
  const bytes = await client.read(version, chunk * CHUNK, CHUNK)
  expect(bytes).toEqual(bytesOf(bytes[0]!))
  return bytes[0]!
}

describe('publishing a group', () => {
  test('makes a version of each, in their order: a blob, a new one, a clone', async () => {
    const disks = await Disks.of(2)
    const [a = '', b = ''] = disks.blobs
    const members = [
      await disks.member({ kind: 'blob', blob: b, expectedBase: 1 }, 2, [0, 9]),
      await disks.member({ kind: 'new', chunkSize: CHUNK, name: 'scratch' }, 3, [1]),
      await disks.member({ kind: 'clone', source: { blob: a, version: 1 }, name: 'machine' }, 4, [2]),
      await disks.member({ kind: 'blob', blob: a, expectedBase: 1 }, 0, [3])
    ]
    const published = await disks.client.publishGroup({ requestId, members, message: 'checkpoint' })
    expect(published.map(({ blob, version, size, message }) => [blob, version, size / CHUNK, message])).toEqual([
      [b, 2, 10, 'checkpoint'], [published[1]!.blob, 1, 2, 'checkpoint'], [published[2]!.blob, 1, 4, 'checkpoint'], [a, 2, 4, 'checkpoint']
    ])
    expect(published.map(({ bytesChanged }) => bytesChanged / CHUNK)).toEqual([2, 1, 1, 1])
    const reader = disks.fabric.client('reader')
    const contents = await Promise.all(published.map(async (version) =>
      await Promise.all(Array.from({ length: version.size / CHUNK }, async (_, chunk) => await fillOf(reader, version, chunk)))))
    expect(contents).toEqual([[2, 1, 1, 1, 0, 0, 0, 0, 0, 2], [0, 3], [1, 1, 4, 1], [1, 1, 1, 0]])
    expect((await reader.images()).map(({ name, blob }) => [name, blob])).toEqual([['machine', published[2]!.blob], ['scratch', published[1]!.blob]])
    expect((await reader.resolve('machine')).version).toBe(1)
  })

  test('again, by the same or by another client, has the same answer', async () => {
    const disks = await Disks.of(3)
    const request = await disks.group()
    const first = await disks.client.publishGroup(request)
    expect(await disks.client.publishGroup(request)).toEqual(first)
    disks.fabric.restart()
    expect(await disks.fabric.client().publishGroup(request)).toEqual(first)
    expect(await disks.client.groupOutcome({ requestId, count: 3 })).toEqual(first)
    for (const [at, version] of first.entries()) expect(await disks.client.outcome(`${requestId}-${at}`)).toEqual(version)
    for (const count of [1, 2, 4]) await expect(disks.client.groupOutcome({ requestId, count }), `${count} members`).rejects.toMatchObject({ code: 'ERR_USAGE', fields: { requestId } })
  })

  test('of which one has moved on makes none', async () => {
    const disks = await Disks.of(3)
    const request = await disks.group()
    await disks.client.append(disks.blobs[1]!, bytesOf(9))
    await expect(disks.client.publishGroup(request)).rejects.toMatchObject({ code: 'ERR_CONFLICT', fields: { blob: disks.blobs[1], member: 1, latest: 2, reason: 'moved-on' } })
    expect(await disks.versions()).toEqual([[], [1], []])
    expect(await disks.client.groupOutcome({ requestId, count: 3 })).toBeUndefined()
  })

  test('with more runs than its share may name: extents say more than is written, and what was there stays', async () => {
    const disks = await Disks.of(GROUP_MEMBERS_MAX)
    const indices = Array.from({ length: 300 }, (_, at) => 2 * at)
    const members = await Promise.all(disks.blobs.map(async (blob) => await disks.member({ kind: 'blob', blob, expectedBase: 1 }, 2, indices)))
    const asked: number[] = []
    const { service } = disks.fabric.manager
    const { assignGroup } = service
    service.assignGroup = async (request, context) => {
      asked.push(...request.members.map(({ change }) => change.kind === 'write' ? change.extents.length : 0))
      return await assignGroup.call(service, request, context)
    }
    const published = await disks.client.publishGroup({ requestId, members })
    expect(asked).toEqual(members.map(() => 256))
    for (const version of [published[0]!, published.at(-1)!]) {
      const ids = await disks.client.chunkIds(version, 0, 599)
      const [one, two] = [chunkIdOf(bytesOf(1)), chunkIdOf(bytesOf(2))]
      expect(ids).toEqual(Array.from({ length: 599 }, (_, at) => at % 2 === 0 ? two : at < 4 ? one : null))
    }
  })

  test('whose words are off is refused before anybody is asked', async () => {
    const disks = await Disks.of(1)
    const [member] = (await disks.group()).members as [GroupMember]
    const off: Array<[GroupRequest, string]> = [
      [{ requestId, members: [] }, 'ERR_USAGE'],
      [{ requestId: 'x'.repeat(62), members: [member] }, 'ERR_USAGE'],
      [{ requestId: 'short', members: [member] }, 'ERR_USAGE'],
      [{ requestId, members: [member], message: 'x'.repeat(1001) }, 'ERR_USAGE'],
      [{ requestId, members: [{ ...member, size: -1 }] }, 'ERR_USAGE'],
      [{ requestId, members: [{ ...member, target: { kind: 'new', chunkSize: 5 } }] }, 'ERR_USAGE'],
      [{ requestId, members: [{ ...member, target: { kind: 'new', chunkSize: CHUNK, name: 'Not a name' } }] }, 'ERR_USAGE'],
      [{ requestId, members: [{ ...member, target: { kind: 'blob', blob: 'nothing', expectedBase: 1 } }] }, 'ERR_NOT_FOUND']
    ]
    disks.fabric.manager.service.assignGroup = async () => { throw new Error('asked') }
    for (const [request, code] of off) await expect(disks.client.publishGroup(request), JSON.stringify(request)).rejects.toMatchObject({ code })
    for (const count of [0, 17, 1.5]) await expect(disks.client.groupOutcome({ requestId, count })).rejects.toMatchObject({ code: 'ERR_USAGE' })
    await expect(disks.client.groupOutcome({ requestId: 'x'.repeat(62), count: 1 })).rejects.toMatchObject({ code: 'ERR_USAGE' })
  })
})

describe('a client', () => {
  /** Puts of the tree nodes of a blob's version 2 take so long. */
  const slowTree = (disks: Disks, blob: string, ms: number): void => {
    disks.fabric.records.beforePut = async (batch) => { if (batch[0]!.name.startsWith(`node/${blob}/2/`)) await disks.clock.sleep(ms) }
  }

  test('that works for longer than a lease keeps all versions', async () => {
    const disks = await Disks.of(3)
    const request = await disks.group()
    slowTree(disks, disks.blobs[1]!, 20_000)
    const { renew } = disks.fabric.manager.service
    const renewed: string[] = []
    disks.fabric.manager.service.renew = async (one) => {
      renewed.push(one.requestId)
      return await renew.call(disks.fabric.manager.service, one)
    }
    const published = disks.client.publishGroup(request)
    await disks.clock.advance(25_000)
    expect((await published).map(({ attempt }) => attempt)).toEqual([1, 1, 1])
    expect(renewed.sort()).toEqual([0, 0, 1, 1, 2, 2].map((at) => `${requestId}-${at}`))
    await disks.clock.advance(LEASE_MS + 100)
    expect(disks.clock.pending).toBe(0)
  })

  test('of which one member was not heard of is told, and none shows', async () => {
    const disks = await Disks.of(3)
    const request = await disks.group()
    const { renew } = disks.fabric.manager.service
    disks.fabric.manager.service.renew = async (one) => one.requestId === `${requestId}-1`
      ? await new Promise<never>(() => {})
      : await renew.call(disks.fabric.manager.service, one)
    const stuck = Promise.withResolvers<void>()
    disks.fabric.records.beforePut = async (batch) => { if (batch[0]!.name.startsWith(`node/${disks.blobs[0]!}/2/`)) await stuck.promise }
    const told = expect(disks.client.publishGroup(request)).rejects.toMatchObject({ code: 'ERR_CONFLICT', fields: { blob: disks.blobs[1] } })
    await disks.clock.advance(100)
    let outcome: unknown = 'in flight'
    void disks.client.groupOutcome({ requestId, count: 3 }).then((known) => { outcome = known })
    await disks.clock.advance(LEASE_MS - 200)
    expect(outcome).toBe('in flight')
    await disks.clock.advance(200)
    // What became of one is what becomes of all.
    expect(await disks.versions()).toEqual([[], [2], []])
    expect(outcome).toBe('aborted')
    expect(await disks.client.groupOutcome({ requestId, count: 3 })).toBe('aborted')
    disks.fabric.manager.service.renew = renew
    await disks.clock.advance(20_000)
    stuck.resolve()
    await told
    await disks.clock.advance(2 * LEASE_MS)
    expect(await disks.versions()).toEqual([[2], [2], [2]])
    const recent = await disks.client.recent(disks.blobs[0]!)
    expect(await fillOf(disks.client, recent, 0)).toBe(1)
    // As a new request it goes through: aborted versions are no conflict.
    const again = await disks.client.publishGroup({ ...request, requestId: 'all-disks-once-more' })
    expect(again.map(({ version }) => version)).toEqual([3, 3, 3])
    await disks.clock.advance(LEASE_MS + 100)
    expect(disks.clock.pending).toBe(0)
  })

  test('that gives up because storage peers are away leaves nothing behind', async () => {
    const disks = await Disks.of(2)
    const request = await disks.group()
    const { records } = disks.fabric
    records.beforePut = async (batch) => { records.down = batch[0]!.name.startsWith('node/') }
    const failed = expect(disks.client.publishGroup(request)).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
    await disks.clock.advance(60_000)
    await failed
    records.beforePut = async () => {}
    records.down = false
    await disks.clock.advance(2 * LEASE_MS)
    expect(await disks.versions()).toEqual([[2], [2]])
    expect(await disks.client.groupOutcome({ requestId, count: 2 })).toBe('aborted')
  })

  test('that died before it was complete comes back in time: the same versions', async () => {
    const disks = await Disks.of(2)
    const request = await disks.group()
    disks.fabric.records.beforePut = async (batch) => { if (batch[0]!.name.startsWith('node/')) await new Promise<never>(() => {}) }
    disks.fabric.client().publishGroup(request).catch(() => {})
    await disks.clock.advance(100)
    disks.fabric.records.beforePut = async () => {}
    await disks.clock.advance(LEASE_MS / 2)
    const published = await disks.fabric.client().publishGroup(request)
    expect(published.map(({ version, attempt }) => [version, attempt])).toEqual([[2, 1], [2, 1]])
    expect(await Promise.all(published.map(async (version, at) => await fillOf(disks.client, version, at)))).toEqual([2, 3])
  })

  test('waits in the outcome for those in front of a member', async () => {
    const disks = await Disks.of(2)
    const [a = '', b = ''] = disks.blobs
    await disks.fabric.manager.assign({ op: 'assign', requestId: 'in-front-of-it', target: { kind: 'blob', blob: b }, change: { kind: 'append', size: 0 } },
      { peer: 'writer', signal: new AbortController().signal })
    const members = [
      await disks.member({ kind: 'blob', blob: a, expectedBase: 1 }, 2, [0]),
      await disks.member({ kind: 'blob', blob: b, expectedBase: 2 }, 3, [0])
    ]
    const published = disks.client.publishGroup({ requestId, members })
    await disks.clock.advance(1000)
    const outcome = disks.client.groupOutcome({ requestId, count: 2 })
    await disks.clock.advance(LEASE_MS)
    expect((await published).map(({ version, attempt }) => [version, attempt])).toEqual([[2, 1], [3, 1]])
    expect(await outcome).toEqual(await published)
  })

  test('that has the number of members wrong is told', async () => {
    const disks = await Disks.of(2)
    await disks.client.publishGroup(await disks.group())
    await expect(disks.client.groupOutcome({ requestId, count: 3 })).rejects.toMatchObject({ code: 'ERR_USAGE', message: expect.stringContaining('of 2 members, not 3') })
  })
})
