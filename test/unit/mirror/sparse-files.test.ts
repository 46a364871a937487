/** LSEEK on bytes, over real overlays and version tables, with a kernel that only remembers what it was told. */
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { ChunkFiles } from '../../../src/mirror/chunk-files.ts'
import { ERRNO, errnoOf } from '../../../src/mirror/errno.ts'
import { Commands } from '../../../src/mirror/fuse/commands.ts'
import { Handlers, type Request } from '../../../src/mirror/fuse/handlers.ts'
import type { CopyInode, Inode, Namespace } from '../../../src/mirror/namespace.ts'
import { OpenFiles } from '../../../src/mirror/open-files.ts'
import { PAGE_BYTES } from '../../../src/mirror/page-map.ts'
import type { MirrorSource, VersionRef } from '../../../src/mirror/source.ts'
import { VersionTables } from '../../../src/mirror/version-tables.ts'
import { createWorkingCopy } from '../../../src/mirror/working-copy.ts'
import { nodeClock as clock, nodeRandom as random } from '../../../src/node/world.ts'
import { P2pvmError } from '../../../src/protocols/errors.ts'

const CHUNK = 2 * PAGE_BYTES
const CHUNKS = 100
/** The last chunk is short, and its last page too. */
const SIZE = CHUNKS * CHUNK - 1000
const BASE: VersionRef = { blob: 'abcdefghijklmnop', version: 1, size: SIZE, chunkSize: CHUNK }
/** These have bytes; the others are holes. */
const DATA = new Set([1, 2, 70, CHUNKS - 1])
const SEEK_DATA = 3
const SEEK_HOLE = 4

const quiet = { debug () {}, info () {}, warn () {}, error () {} }
const version: Inode = { kind: 'version', ino: 7n, ref: BASE, mtimeMs: 0 }

let folder: string
let files: OpenFiles
let handlers: Handlers
let copy: CopyInode
let asked: Array<[number, number]>
let gone: boolean
let flushed: Array<[number, number]>
/** What the kernel still has, and writes back when it is told to. */
let onFlush: (from: number, to: number) => Promise<void>

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'p2pvm-sparse-'))
  asked = []
  gone = false
  flushed = []
  onFlush = async () => {}
  const working = join(folder, 'working')
  mkdirSync(working)
  const source = {
    chunkIds: async (_version: VersionRef, first: number, count: number) => {
      if (gone) throw new P2pvmError('ERR_UNAVAILABLE', 'the daemon is gone')
      asked.push([first, count])
      return Array.from({ length: count }, (_, at) => DATA.has(first + at) ? 'bafkreibc7zsxrxfgaym7ozdnhzjgt3djms64gxh4q2vqslofmqn5ocl3ra' : null)
    },
    fetch: async () => { throw new Error('no chunk is fetched') }
  }
  const { signal } = new AbortController()
  const chunkFiles = new ChunkFiles({ source, clock, log: quiet, quiesce: async () => {}, signal }, { folder, openMax: 100, missDeadlineMs: 100 })
  files = new OpenFiles({
    clock, random, log: quiet, signal, chunkFiles, working,
    tables: new VersionTables({ source, clock, folder: join(folder, 'leaves') }, chunkFiles),
    holder: 'this mount',
    missDeadlineMs: 100,
    publish: async () => {},
    withdraw: async () => {},
    startFsync: () => ({ pid: 1, done: Promise.resolve() }),
    flushPages: async (ino, from, to) => {
      expect(ino).toBe(copy.ino)
      flushed.push([from, to])
      await onFlush(from, to)
    }
  })
  const state = await createWorkingCopy(working, 'vm1', BASE, random)
  copy = { kind: 'copy', ino: BigInt(state.ino), name: 'vm1', ref: BASE, unborn: false, mtimeMs: 0 }
  const namespace = { inode: (ino: bigint) => ino === version.ino ? version : copy } as Namespace
  handlers = new Handlers({ namespace, files, working, clock, missDeadlineMs: 100, onInit () {}, commands: new Commands({} as MirrorSource, signal) })
})

afterEach(async () => {
  await files.close()
  rmSync(folder, { recursive: true })
})

function request (inode: Inode, body: Buffer): Request {
  return { header: { len: 0, opcode: 0, unique: 1n, nodeid: inode.ino, uid: 0, gid: 0, pid: 1 }, body, signal: new AbortController().signal }
}

async function open (inode: Inode): Promise<number> {
  return (await handlers.open(request(inode, Buffer.alloc(8))))?.readUInt32LE(0) ?? -1
}

const nameOf = (error: unknown): string => Object.entries(ERRNO).find(([, value]) => value === errnoOf(error))?.[0] ?? String(error)

/** An offset, or the name of an error. */
async function lseek (fh: number, offset: number | bigint, whence: number): Promise<number | string> {
  const body = Buffer.alloc(24)
  body.writeUInt32LE(fh, 0)
  body.writeBigUInt64LE(BigInt(offset), 8)
  body.writeUInt32LE(whence, 16)
  try {
    return Number((await handlers.lseek(request(copy, body)))?.readBigUInt64LE(0))
  } catch (error) {
    return nameOf(error)
  }
}

const write = async (fh: number, page: number, pages = 1): Promise<void> => { await files.byFh(fh).write(page * PAGE_BYTES, Buffer.alloc(pages * PAGE_BYTES, 1)) }

describe('LSEEK', () => {
  it('finds data and holes by the chunks of the version, from inside either', async () => {
    for (const inode of [version, copy]) {
      const fh = await open(inode)
      expect(await lseek(fh, 0, SEEK_DATA)).toBe(CHUNK)
      expect(await lseek(fh, CHUNK + 1, SEEK_DATA)).toBe(CHUNK + 1)
      expect(await lseek(fh, CHUNK + 1, SEEK_HOLE)).toBe(3 * CHUNK)
      expect(await lseek(fh, 5 * CHUNK + 1, SEEK_HOLE)).toBe(5 * CHUNK + 1)
      expect(await lseek(fh, 3 * CHUNK, SEEK_DATA)).toBe(70 * CHUNK)
      expect(await lseek(fh, 71 * CHUNK, SEEK_DATA)).toBe((CHUNKS - 1) * CHUNK)
      expect(await lseek(fh, (CHUNKS - 1) * CHUNK, SEEK_HOLE)).toBe(SIZE)
      expect(await lseek(fh, SIZE - 1, SEEK_DATA)).toBe(SIZE - 1)
    }
  })

  it('is ENXIO at the end and past it, however far, and EINVAL or EBADF for what the kernel would not ask', async () => {
    const fh = await open(copy)
    for (const offset of [SIZE, SIZE + 1, 2 ** 53, 2n ** 63n, 2n ** 64n - 1n]) {
      expect(await lseek(fh, offset, SEEK_DATA)).toBe('ENXIO')
      expect(await lseek(fh, offset, SEEK_HOLE)).toBe('ENXIO')
    }
    for (const whence of [0, 1, 2, 5, 2 ** 32 - 1]) expect(await lseek(fh, 0, whence)).toBe('EINVAL')
    expect(await lseek(fh + 1, 0, SEEK_DATA)).toBe('EBADF')
  })

  it('is ENXIO when only a hole is left, and finds a hole in none', async () => {
    DATA.delete(CHUNKS - 1)
    try {
      const fh = await open(version)
      expect(await lseek(fh, 71 * CHUNK, SEEK_DATA)).toBe('ENXIO')
      expect(await lseek(fh, 71 * CHUNK, SEEK_HOLE)).toBe(71 * CHUNK)
    } finally {
      DATA.add(CHUNKS - 1)
    }
  })

  it('has pages of both overlays as data, and the pages beside them in a chunk of zeros as holes', async () => {
    const fh = await open(copy)
    await write(fh, 21)
    await files.byFh(fh).write(8 * PAGE_BYTES + 512, Buffer.alloc(512, 1)) // one sector: its page is data
    expect(await lseek(fh, 3 * CHUNK, SEEK_DATA)).toBe(8 * PAGE_BYTES)
    expect(await lseek(fh, 8 * PAGE_BYTES, SEEK_HOLE)).toBe(9 * PAGE_BYTES)
    expect(await lseek(fh, 9 * PAGE_BYTES, SEEK_DATA)).toBe(21 * PAGE_BYTES)
    expect(await lseek(fh, 21 * PAGE_BYTES + 5, SEEK_HOLE)).toBe(22 * PAGE_BYTES)
    const { layers } = files.byFh(fh)
    await files.byFh(fh).change({ top: undefined, sealed: layers.top })
    expect(await lseek(fh, 9 * PAGE_BYTES, SEEK_DATA)).toBe(21 * PAGE_BYTES)
    await files.byFh(fh).change(layers)
  })

  it('asks the kernel for what it has not written back, in what it would call a hole and nowhere else', async () => {
    const fh = await open(copy)
    expect(await lseek(fh, CHUNK, SEEK_DATA)).toBe(CHUNK)
    expect(flushed).toEqual([])
    onFlush = async () => { await write(fh, 40) }
    expect(await lseek(fh, 3 * CHUNK, SEEK_DATA)).toBe(40 * PAGE_BYTES)
    expect(flushed).toEqual([[3 * CHUNK, 70 * CHUNK]])
    onFlush = async () => { await write(fh, 6) }
    expect(await lseek(fh, CHUNK, SEEK_HOLE)).toBe(7 * PAGE_BYTES)
    onFlush = async (from) => { if (from < 41 * PAGE_BYTES) await write(fh, 7, 33) }
    expect(await lseek(fh, 7 * PAGE_BYTES, SEEK_HOLE)).toBe(41 * PAGE_BYTES) // all of the first hole was written
    expect(flushed.slice(1)).toEqual([[3 * CHUNK, 40 * PAGE_BYTES], [7 * PAGE_BYTES, 40 * PAGE_BYTES], [41 * PAGE_BYTES, 70 * CHUNK]])
    flushed = []
    expect(await lseek(await open(version), 3 * CHUNK, SEEK_DATA)).toBe(70 * CHUNK)
    expect(flushed).toEqual([]) // nobody can have written to it
  })

  it('asks the daemon for many chunk ids at once and for no chunk, and says EIO when nobody answers', async () => {
    gone = true
    const fh = await open(copy)
    expect(await lseek(fh, 0, SEEK_DATA)).toBe('EIO')
    gone = false
    expect(await lseek(fh, 3 * CHUNK, SEEK_DATA)).toBe(70 * CHUNK)
    expect(asked).toEqual([[0, CHUNKS]])
    gone = true
    expect(await lseek(fh, 71 * CHUNK, SEEK_HOLE)).toBe(71 * CHUNK)
  })
})
