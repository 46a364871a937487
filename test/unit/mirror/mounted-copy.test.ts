/** The order of a seal and of its end, with a kernel and workers that only remember what they were told. */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { ChunkFiles } from '../../../src/mirror/chunk-files.ts'
import type { FileViewInit } from '../../../src/mirror/file-view.ts'
import { type FsyncProcess, MountedCopy, type MountedCopyComponents } from '../../../src/mirror/mounted-copy.ts'
import type { CopyInode } from '../../../src/mirror/namespace.ts'
import { PAGE_BYTES } from '../../../src/mirror/page-map.ts'
import { openSealedOverlay } from '../../../src/mirror/sealed-overlay.ts'
import type { VersionRef } from '../../../src/mirror/source.ts'
import { VersionTables } from '../../../src/mirror/version-tables.ts'
import { createWorkingCopy, readWorkingCopy } from '../../../src/mirror/working-copy.ts'
import { nodeClock as clock, nodeRandom as random } from '../../../src/node/world.ts'

const BASE: VersionRef = { blob: 'abcdefghijklmnop', version: 1, size: 8 * PAGE_BYTES, chunkSize: PAGE_BYTES }
const quiet = { debug () {}, info () {}, warn () {}, error () {} }
const signal = new AbortController().signal

let folder: string
let views: FileViewInit[]
/** What happens at publishing, before the workers have passed. */
let onPublish: (view: FileViewInit) => void | Promise<void>
let startFsync: () => FsyncProcess
/** Whether the kernel keeps writes to itself. */
let writeback: boolean
let copy: MountedCopy

const working = (): string => join(folder, 'working')
const overlays = (): number => readdirSync(join(working(), 'vm1')).filter((name) => name.startsWith('overlay-')).length
const write = async (page: number, byte: number): Promise<void> => { await copy.file.write(page * PAGE_BYTES, Buffer.alloc(PAGE_BYTES, byte)) }
const firstBytes = async (): Promise<number[]> => {
  const bytes = await copy.file.read(0, BASE.size)
  return Array.from({ length: 8 }, (_, page) => bytes[page * PAGE_BYTES] ?? -1)
}

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'p2pvm-copy-'))
  mkdirSync(working())
  views = []
  onPublish = () => {}
  writeback = true
  const source = { chunkIds: async (_version: VersionRef, _first: number, count: number) => new Array<null>(count).fill(null), fetch: async () => [] }
  const chunkFiles = new ChunkFiles({ source, clock, log: quiet, quiesce: async () => {}, signal }, { folder, openMax: 100, missDeadlineMs: 1000 })
  let lastPid = 100
  // First the flush ahead, then the one that seals: each has its FUSE_FSYNC handled, and ends.
  startFsync = () => {
    const pid = ++lastPid
    return { pid, done: Promise.resolve().then(async () => { await copy.fsync(pid) }) }
  }
  const components: MountedCopyComponents = {
    clock, random, log: quiet, signal, chunkFiles,
    tables: new VersionTables({ source, clock, folder: join(folder, 'leaves') }, chunkFiles),
    working: working(),
    holder: 'this mount',
    get writeback () { return writeback },
    missDeadlineMs: 1000,
    startFsync: () => startFsync(),
    publish: async (view) => {
      views.push(view)
      await onPublish(view)
    }
  }
  const state = await createWorkingCopy(working(), 'vm1', BASE, random)
  const inode: CopyInode = { kind: 'copy', ino: BigInt(state.ino), name: 'vm1', ref: BASE, size: BASE.size, unborn: false, mtimeMs: 0 }
  copy = await MountedCopy.open(inode, 1, components)
  copy.openCount++
})

afterEach(async () => {
  await copy.close()
  rmSync(folder, { recursive: true })
})

describe('a seal', () => {
  it('cuts while its own fsync is being answered, and at no other', async () => {
    await write(0, 1)
    const pids: number[] = []
    const start = startFsync
    startFsync = () => {
      const process = start()
      pids.push(process.pid)
      return process
    }
    const before = views.length
    const sealing = copy.seal(signal)
    await copy.fsync(4242) // a program's own
    const sealed = await sealing
    expect(pids).toHaveLength(2)
    expect(views.slice(before).map(({ sealed }) => sealed !== undefined)).toEqual([true])
    expect(views.at(-1)?.top?.pagesFd).not.toBe(views[0]?.top?.pagesFd)
    expect(views.at(-1)?.sealed?.pagesFd).toBe(views[0]?.top?.pagesFd)
    expect(sealed).toMatchObject({ base: BASE, size: BASE.size })
    expect(copy.committing).toBe(true)
    await write(1, 2)
    expect(await firstBytes()).toEqual([1, 2, 0, 0, 0, 0, 0, 0])
  })

  it('is between two requests, with no fsync but the one that flushes ahead, where the kernel keeps nothing to itself', async () => {
    writeback = false
    const flushed = Promise.withResolvers<void>()
    let fsyncs = 0
    startFsync = () => {
      fsyncs++
      return { pid: 100, done: flushed.promise }
    }
    await write(0, 1)
    const sealing = copy.seal(signal)
    await write(1, 1)
    await copy.fsync(100) // a program's, whatever its pid
    await write(2, 1)
    expect(views.at(-1)?.sealed).toBeUndefined()
    flushed.resolve()
    const sealed = await sealing
    await write(3, 2)
    expect(fsyncs).toBe(1)
    const overlay = await openSealedOverlay(sealed.overlay, { chunkSize: PAGE_BYTES, size: sealed.size })
    expect([...overlay.dirtyChunks()]).toEqual([0, 1, 2])
    await overlay.close()
    expect(await firstBytes()).toEqual([1, 1, 1, 2, 0, 0, 0, 0])
  })

  it('names both overlays on disk before the cut, so that a crash at the cut changes nothing', async () => {
    let atCut: unknown
    onPublish = () => { atCut = readWorkingCopy(working(), 'vm1') }
    const sealed = await copy.seal(signal)
    expect(await atCut).toMatchObject({ sealed: sealed.overlay.split('/').at(-1) })
  })

  it('is complete, and its fsync answered, when every worker has passed, and not before', async () => {
    const workers = Promise.withResolvers<void>()
    const reached = Promise.withResolvers<void>()
    const answered: number[] = []
    const start = startFsync
    startFsync = () => {
      const { pid, done } = start()
      return { pid, done: done.then(() => { answered.push(pid) }) }
    }
    onPublish = async () => {
      reached.resolve()
      await workers.promise
    }
    let sealed = false
    const sealing = copy.seal(signal).then(() => { sealed = true })
    await reached.promise
    await new Promise((resolve) => { setImmediate(resolve) })
    expect([answered.length, sealed]).toEqual([1, false]) // the flush ahead alone
    workers.resolve()
    await sealing
    expect(answered.length).toBe(2)
  })

  it('flushes ahead without a sync: the kernel holds the writers until the answer', async () => {
    await write(0, 1)
    const { top } = await readWorkingCopy(working(), 'vm1')
    const synced = (): number => readFileSync(join(working(), 'vm1', top, 'map.synced'))[0] ?? 0
    const afterFsync: number[] = []
    const start = startFsync
    startFsync = () => {
      const { pid, done } = start()
      return { pid, done: done.then(() => { afterFsync.push(synced()) }) }
    }
    await copy.seal(signal)
    expect([...afterFsync, synced()]).toEqual([0, 0, 0xff])
  })

  it('has the size of the file at the cut: what it grew by while the kernel flushed, and nothing after', async () => {
    const larger = BASE.size + 4 * PAGE_BYTES
    let lastPid = 200
    // The kernel writes back past the end, and then asks for the fsync.
    startFsync = () => {
      const pid = ++lastPid
      const end = pid === 202 ? larger : BASE.size + PAGE_BYTES
      return {
        pid,
        done: Promise.resolve().then(async () => {
          await copy.file.write(end - PAGE_BYTES, Buffer.alloc(PAGE_BYTES, 3))
          await copy.fsync(pid)
        })
      }
    }
    let atCut = 0
    onPublish = async (view) => {
      if (view.sealed === undefined || atCut > 0) return
      atCut = view.size
      await write(10, 2)
      await copy.grow(larger + PAGE_BYTES)
    }
    expect(await copy.seal(signal)).toMatchObject({ size: larger, base: { size: BASE.size } })
    expect(atCut).toBe(larger)
    await write(12, 4)
    const bytes = await copy.file.read(0, larger + 2 * PAGE_BYTES)
    expect([bytes.length, ...[10, 11, 12].map((page) => bytes[page * PAGE_BYTES])]).toEqual([larger + PAGE_BYTES, 2, 3, 4])
    await copy.rebase({ ...BASE, version: 2, size: larger }, signal)
    expect(await readWorkingCopy(working(), 'vm1')).toMatchObject({ version: 2, size: larger + PAGE_BYTES, baseSize: larger })
    expect((await copy.file.read(12 * PAGE_BYTES, 2 * PAGE_BYTES)).equals(Buffer.alloc(PAGE_BYTES, 4))).toBe(true)
  })

  it('that cannot flush leaves everything as it was', async () => {
    await write(0, 1)
    const before = await readWorkingCopy(working(), 'vm1')
    startFsync = () => ({ pid: 7, done: Promise.reject(new Error('no such file')) })
    await expect(copy.seal(signal)).rejects.toThrow('no such file')
    const { sealed, top } = await readWorkingCopy(working(), 'vm1')
    expect([sealed, top]).toEqual([undefined, before.top])
    expect(overlays()).toBe(1)
    expect(copy.committing).toBe(false)
    await write(1, 2)
    expect(await firstBytes()).toEqual([1, 2, 0, 0, 0, 0, 0, 0])
  })

  it('whose process ends without its fsync having come has not cut', async () => {
    startFsync = () => ({ pid: 7, done: Promise.resolve() })
    await expect(copy.seal(signal)).rejects.toMatchObject({ code: 'ERR_INTERNAL' })
    expect(overlays()).toBe(1)
  })
})

describe('the end of a commit', () => {
  it('bases the file on the new version, and takes the sealed overlay away when every worker has passed', async () => {
    await write(0, 1)
    await copy.seal(signal)
    onPublish = () => { expect(overlays()).toBe(2) }
    await copy.rebase({ ...BASE, version: 2 }, signal)
    expect(views.at(-1)?.sealed).toBeUndefined()
    expect(views.at(-1)?.base.slots).not.toBe(views[0]?.base.slots)
    expect(overlays()).toBe(1)
    expect(await readWorkingCopy(working(), 'vm1')).toMatchObject({ version: 2 })
    expect(copy.committing).toBe(false)
  })

  it('folds what was sealed back, with the workers writing nothing meanwhile', async () => {
    await write(0, 1)
    await write(1, 1)
    await copy.seal(signal)
    await write(1, 2)
    const before = views.length
    await copy.unseal(signal)
    expect(views.slice(before).map(({ routeWrites, sealed }) => [routeWrites, sealed !== undefined])).toEqual([[true, true], [false, false]])
    expect(await firstBytes()).toEqual([1, 2, 0, 0, 0, 0, 0, 0])
    expect(overlays()).toBe(1)
  })

  it('is made up for by the next seal when nobody saw it: never more than two overlays', async () => {
    await write(0, 1)
    await copy.seal(signal)
    await write(1, 2)
    await copy.seal(signal)
    expect(overlays()).toBe(2)
    expect(await firstBytes()).toEqual([1, 2, 0, 0, 0, 0, 0, 0])
  })

  it('refuses a version of a size that cannot be', async () => {
    await copy.seal(signal)
    for (const size of [1, BASE.size + 1]) await expect(copy.rebase({ ...BASE, version: 2, size }, signal)).rejects.toMatchObject({ code: 'ERR_INTERNAL' })
  })

  it('or a revert leaves a file that has grown as large as it is, with zeros', async () => {
    await copy.file.write(BASE.size, Buffer.alloc(PAGE_BYTES, 1))
    copy.openCount--
    await copy.revert(signal)
    expect((await copy.file.read(BASE.size, 2 * PAGE_BYTES)).equals(Buffer.alloc(PAGE_BYTES))).toBe(true)
    expect(await readWorkingCopy(working(), 'vm1')).toMatchObject({ size: BASE.size + PAGE_BYTES, baseSize: BASE.size })
    await write(8, 2)
    expect((await copy.file.read(BASE.size, 2 * PAGE_BYTES)).equals(Buffer.alloc(PAGE_BYTES, 2))).toBe(true)
  })

  it('is no time to revert while somebody has the file open', async () => {
    await write(0, 1)
    await expect(copy.revert(signal)).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    copy.openCount--
    await copy.revert(signal)
    expect(await firstBytes()).toEqual([0, 0, 0, 0, 0, 0, 0, 0])
    expect(overlays()).toBe(1)
  })
})
