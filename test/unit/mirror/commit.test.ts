/**
 * The daemon's half of a commit over a real overlay, with the fabric in memory: what it publishes, and what becomes of one whose end
 * nobody saw, in this daemon or the one before it.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { ChunkStore } from '../../../src/dht/chunk-store.ts'
import { type Committed, Committer } from '../../../src/mirror/commit.ts'
import { readCommitIntent } from '../../../src/mirror/commit-intent.ts'
import { writeFully } from '../../../src/mirror/files.ts'
import { PAGE_BYTES } from '../../../src/mirror/page-map.ts'
import type { Sealed } from '../../../src/mirror/sealable.ts'
import { unmountedSealable } from '../../../src/mirror/unmounted-copy.ts'
import { createWorkingCopy, listWorkingCopies, LockedCopy } from '../../../src/mirror/working-copy.ts'
import { nodeClock as clock, nodeRandom as random } from '../../../src/node/world.ts'
import { type ChunkId, chunkIdOf } from '../../../src/protocols/cid.ts'
import { P2pvmError } from '../../../src/protocols/errors.ts'
import type { BlobClient } from '../../../src/versioning/blob-client.ts'
import type { GroupRequest, Version } from '../../../src/versioning/blobs.ts'
import { MemoryFabric } from '../../harness/memory-fabric.ts'

const PAGES = 8
const NAME = 'vm1'
/** Takes all, and says of each chunk whether the fabric had it by then. */
const cache = {
  put: async (id: ChunkId) => {
    cached.push({ id, inFabric: fabric.chunks.values.has(id) })
    return true
  }
} as unknown as ChunkStore

let working: string
let fabric: MemoryFabric
let base: Version
let cached: Array<{ id: ChunkId, inFabric: boolean }>

beforeEach(async () => {
  working = mkdtempSync(join(tmpdir(), 'p2pvm-commit-'))
  fabric = new MemoryFabric()
  cached = []
  const { blob } = await fabric.client().create({ chunkSize: PAGE_BYTES })
  base = await fabric.client().write(blob, [{ offset: 0, bytes: new Uint8Array(PAGES * PAGE_BYTES).fill(1) }])
  await createWorkingCopy(working, NAME, base, random)
})

afterEach(() => { rmSync(working, { recursive: true }) })

async function write (page: number, byte: number, name = NAME): Promise<void> {
  const copy = await LockedCopy.open(working, name, random)
  const { pagesFd, mapFd } = copy.top.view()
  writeFully(pagesFd, Buffer.alloc(PAGE_BYTES, byte), 0, PAGE_BYTES, page * PAGE_BYTES)
  copy.top.map.mark(mapFd, page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
  await copy.close()
}

/** By a daemon that has just started. */
async function commit (blobs: BlobClient = fabric.client(), as?: string, id?: string): Promise<Committed> {
  const [committed] = await commitAll([{ name: NAME, as }], blobs, id)
  return committed!
}

async function revert (): Promise<void> {
  const committer = new Committer({ blobs: fabric.client(), chunks: fabric.chunks, cache, clock, random })
  await committer.revert({ folder: join(working, NAME), sealable: unmountedSealable(working, NAME, random) })
}

async function commitAll (which: ReadonlyArray<{ name: string, as?: string | undefined }>, blobs: BlobClient = fabric.client(), id?: string): Promise<Committed[]> {
  const members = which.map(({ name, as }) => ({ folder: join(working, name), sealable: unmountedSealable(working, name, random), as }))
  const seal = async (signal: AbortSignal): Promise<Sealed[]> => await Promise.all(members.map(async ({ sealable }) => await sealable.seal(signal)))
  return await new Committer({ blobs, chunks: fabric.chunks, cache, clock, random }).commit({ members, seal, id })
}

/** A client of which `publishGroup` is the test's. */
function withPublish (publish: (request: GroupRequest, blobs: BlobClient) => Promise<Version[]>): BlobClient {
  const blobs = fabric.client()
  return new Proxy(blobs, {
    get: (_, property) => {
      if (property === 'publishGroup') return async (request: GroupRequest) => await publish(request, blobs)
      const value: unknown = Reflect.get(blobs, property, blobs)
      return typeof value === 'function' ? value.bind(blobs) as unknown : value
    }
  })
}

/** First bytes of the pages of each version. */
async function history (blob = base.blob): Promise<number[][]> {
  const blobs = fabric.client()
  return await Promise.all((await blobs.log(blob)).slice(1).map(async (version) => {
    const bytes = await blobs.read(version, 0, version.size)
    return Array.from({ length: PAGES }, (_, page) => bytes[page * PAGE_BYTES]!)
  }))
}

const lost = new P2pvmError('ERR_UNAVAILABLE', 'the answer was lost')

/** As a mount does when nobody writes. */
async function grow (size: number): Promise<void> {
  const copy = await LockedCopy.open(working, NAME, random)
  await copy.recordGrowth(size)
  copy.top.grow(size)
  await copy.close()
}

describe('a commit', () => {
  it('is one version with what was written; chunks of zeros are holes, and what is as it was is left out', async () => {
    await write(2, 7)
    await write(5, 0)
    await write(6, 1)
    const stored = fabric.chunks.values.size
    expect(await commit()).toMatchObject({ version: { version: 2 }, chunks: 2, bytes: PAGE_BYTES })
    expect(fabric.chunks.values.size).toBe(stored + 1)
    expect(await history()).toEqual([[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 7, 1, 1, 0, 1, 1]])
    expect(await listWorkingCopies(working)).toMatchObject([{ version: 2, dirtyBytes: 0 }])
  })

  it('caches what the fabric has already, so that nothing is lost when it is evicted', async () => {
    await write(2, 7)
    await write(3, 8)
    await commit()
    expect(cached.map(({ id }) => id).sort()).toEqual([7, 8].map((byte) => chunkIdOf(Buffer.alloc(PAGE_BYTES, byte))).sort())
    expect(cached.map(({ inFabric }) => inFabric)).toEqual([true, true])
  })

  it('of a working copy that has grown makes a larger version, whether or not it wrote there', async () => {
    const blobs = fabric.client()
    await grow(PAGES * PAGE_BYTES + 100)
    expect(await commit()).toMatchObject({ version: { version: 2, size: PAGES * PAGE_BYTES + 100 }, chunks: 0 })
    await grow(20 * PAGE_BYTES)
    await write(15, 7)
    expect(await commit()).toMatchObject({ version: { version: 3, size: 20 * PAGE_BYTES }, chunks: 1 })
    const expected = Buffer.alloc(20 * PAGE_BYTES).fill(1, 0, PAGES * PAGE_BYTES).fill(7, 15 * PAGE_BYTES, 16 * PAGE_BYTES)
    expect(Buffer.compare(await blobs.read(await blobs.version({ blob: base.blob, version: 3 }), 0, 21 * PAGE_BYTES), expected)).toBe(0)
    expect(await blobs.version({ blob: base.blob, version: 1 })).toMatchObject({ size: PAGES * PAGE_BYTES })
    expect(await listWorkingCopies(working)).toMatchObject([{ version: 3, size: 20 * PAGE_BYTES, dirtyBytes: 0 }])
    await grow(21 * PAGE_BYTES)
    expect(await commit(blobs, 'larger')).toMatchObject({ version: { size: 21 * PAGE_BYTES } })
  })

  it('whose answer was lost does not come back after a revert, nor does it take one that never was published', async () => {
    await write(0, 2)
    await expect(commit(withPublish(async () => { throw lost }))).rejects.toBe(lost)
    await revert()
    expect(await readCommitIntent(join(working, NAME))).toBeUndefined()
    expect(await listWorkingCopies(working)).toMatchObject([{ version: 1, dirtyBytes: 0 }])
    await write(1, 3)
    expect(await commit()).toMatchObject({ version: { version: 2 } })

    await write(2, 4)
    await expect(commit(withPublish(async (request, blobs) => {
      await blobs.publishGroup(request)
      throw lost
    }))).rejects.toBe(lost)
    await revert()
    expect(await listWorkingCopies(working)).toMatchObject([{ version: 3, dirtyBytes: 0 }])
    await write(3, 5)
    await commit()
    expect((await history()).at(-1)).toEqual([1, 3, 4, 5, 1, 1, 1, 1])
  })

  it('that was published and whose answer was lost is there once, and the next one goes on from it', async () => {
    await write(0, 2)
    await expect(commit(withPublish(async (request, blobs) => {
      await blobs.publishGroup(request)
      throw lost
    }))).rejects.toBe(lost)
    expect(await listWorkingCopies(working)).toMatchObject([{ version: 1, dirtyBytes: PAGE_BYTES }])
    await write(1, 3)
    expect(await commit()).toMatchObject({ version: { version: 3 } })
    expect(await history()).toEqual([[1, 1, 1, 1, 1, 1, 1, 1], [2, 1, 1, 1, 1, 1, 1, 1], [2, 3, 1, 1, 1, 1, 1, 1]])
    expect(await listWorkingCopies(working)).toMatchObject([{ version: 3, dirtyBytes: 0 }])
  })

  it('that never reached the version manager is published first, as it was, by the next one', async () => {
    await write(0, 2)
    await expect(commit(withPublish(async () => { throw lost }))).rejects.toBe(lost)
    await write(1, 3)
    expect(await commit()).toMatchObject({ version: { version: 3 } })
    expect(await history()).toEqual([[1, 1, 1, 1, 1, 1, 1, 1], [2, 1, 1, 1, 1, 1, 1, 1], [2, 3, 1, 1, 1, 1, 1, 1]])
  })

  it('that is asked for again under its id is the same one, also by a daemon that knows nothing of it', async () => {
    await write(0, 2)
    const first = await commit(fabric.client(), undefined, 'a')
    await write(1, 3)
    expect(await commit(fabric.client(), undefined, 'a')).toMatchObject({ ...first, version: { blob: base.blob, version: 2 } })
    expect(await history()).toHaveLength(2)
    expect(await commit(fabric.client(), undefined, 'b')).toMatchObject({ version: { version: 3 } })
    expect(await history()).toEqual([[1, 1, 1, 1, 1, 1, 1, 1], [2, 1, 1, 1, 1, 1, 1, 1], [2, 3, 1, 1, 1, 1, 1, 1]])
  })

  it.each([true, false])('under an id whose end nobody saw is finished by who asks again, and is that one (published: %s)', async (published) => {
    await write(0, 2)
    await expect(commit(withPublish(async (request, blobs) => {
      if (published) await blobs.publishGroup(request)
      throw lost
    }), undefined, 'a')).rejects.toBe(lost)
    await write(1, 3)
    expect(await commit(fabric.client(), undefined, 'a')).toMatchObject({ version: { version: 2 }, chunks: 1 })
    expect(await history()).toEqual([[1, 1, 1, 1, 1, 1, 1, 1], [2, 1, 1, 1, 1, 1, 1, 1]])
    expect(await listWorkingCopies(working)).toMatchObject([{ version: 2, dirtyBytes: 2 * PAGE_BYTES }]) // folded back
    expect(await commit()).toMatchObject({ version: { version: 3 } })
    expect((await history()).at(-1)).toEqual([2, 3, 1, 1, 1, 1, 1, 1])
    expect(await commit(fabric.client(), undefined, 'a')).toMatchObject({ version: { version: 2 } }) // very late
  })

  it('of a working copy whose blob has moved on is a conflict that loses nothing, and nothing is left to be finished', async () => {
    await write(0, 2)
    await fabric.client().write(base.blob, [{ offset: 0, bytes: new Uint8Array([9]) }])
    await expect(commit()).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    expect(await readCommitIntent(join(working, NAME))).toBeUndefined()
    expect((await history()).length).toBe(2)
    expect(await listWorkingCopies(working)).toMatchObject([{ version: 1, dirtyBytes: PAGE_BYTES }])
  })
})

describe('a commit of several', () => {
  let other: Version

  beforeEach(async () => {
    const { blob } = await fabric.client().create({ chunkSize: PAGE_BYTES })
    other = await fabric.client().write(blob, [{ offset: 0, bytes: new Uint8Array(PAGES * PAGE_BYTES).fill(4) }])
    await createWorkingCopy(working, 'vm2', other, random)
    await write(0, 2)
    await write(0, 5, 'vm2')
  })

  const both = [{ name: NAME }, { name: 'vm2' }]
  const after = [[1, 1, 1, 1, 1, 1, 1, 1], [2, 1, 1, 1, 1, 1, 1, 1]]
  const otherAfter = [[4, 4, 4, 4, 4, 4, 4, 4], [5, 4, 4, 4, 4, 4, 4, 4]]

  it('is a version of each', async () => {
    expect(await commitAll(both)).toMatchObject([{ version: { blob: base.blob, version: 2 }, chunks: 1 }, { version: { blob: other.blob, version: 2 }, chunks: 1 }])
    expect([await history(), await history(other.blob)]).toEqual([after, otherAfter])
    expect(await listWorkingCopies(working)).toMatchObject([{ version: 2, dirtyBytes: 0 }, { version: 2, dirtyBytes: 0 }])
  })

  it('is a version of none when one of the blobs has moved on, and loses nothing', async () => {
    await fabric.client().write(other.blob, [{ offset: 0, bytes: new Uint8Array([9]) }])
    await expect(commitAll(both)).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    expect(await history()).toHaveLength(1)
    for (const { name } of both) expect(await readCommitIntent(join(working, name))).toBeUndefined()
    expect(await listWorkingCopies(working)).toMatchObject([{ version: 1, dirtyBytes: PAGE_BYTES }, { version: 1, dirtyBytes: PAGE_BYTES }])
    await commit()
    expect(await history()).toEqual(after)
  })

  it('whose answer was lost is finished by the next commit of each, whichever comes first', async () => {
    await expect(commitAll(both, withPublish(async (request, blobs) => {
      await blobs.publishGroup(request)
      throw lost
    }))).rejects.toBe(lost)
    expect(await listWorkingCopies(working)).toMatchObject([{ version: 1, dirtyBytes: PAGE_BYTES }, { version: 1, dirtyBytes: PAGE_BYTES }])
    await write(1, 6, 'vm2')
    expect(await commitAll([{ name: 'vm2' }])).toMatchObject([{ version: { blob: other.blob, version: 3 } }])
    await write(1, 3)
    expect(await commit()).toMatchObject({ version: { version: 3 } })
    expect(await history()).toEqual([...after, [2, 3, 1, 1, 1, 1, 1, 1]])
    expect(await history(other.blob)).toEqual([...otherAfter, [5, 6, 4, 4, 4, 4, 4, 4]])
  })

  it('that never reached the version manager is published whole by the next commit of one of them', async () => {
    await expect(commitAll(both, withPublish(async () => { throw lost }))).rejects.toBe(lost)
    await commit()
    expect(await history(other.blob)).toEqual(otherAfter)
    expect(await history()).toEqual([...after, after[1]]) // and its own, in which nothing is new
    await commitAll([{ name: 'vm2' }])
    expect(await history(other.blob)).toEqual([...otherAfter, otherAfter[1]])
    expect(await listWorkingCopies(working)).toMatchObject([{ dirtyBytes: 0 }, { dirtyBytes: 0 }])
  })

  it('takes each once', async () => {
    await expect(commitAll([...both, { name: NAME }])).rejects.toMatchObject({ code: 'ERR_USAGE' })
    expect(await commitAll([{ name: NAME, as: 'one' }, { name: 'vm2', as: 'two' }])).toMatchObject([{ version: { version: 1 } }, { version: { version: 1 } }])
  })
})
