/** LSEEK, FALLOCATE and growth on bytes, over real overlays and version tables, with a kernel that only remembers what it was told. */
import { mkdirSync, mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { ChunkFiles } from '../../../src/mirror/chunk-files.ts'
import { ERRNO, errnoOf } from '../../../src/mirror/errno.ts'
import { FileView, type FileViewInit } from '../../../src/mirror/file-view.ts'
import { withCheckedReplies } from '../../harness/checked-replies.ts'
import { Commands } from '../../../src/mirror/fuse/commands.ts'
import { Handlers, type Request } from '../../../src/mirror/fuse/handlers.ts'
import { NO_JOURNAL } from '../../../src/mirror/mount-journal.ts'
import type { CopyInode, Inode, Namespace } from '../../../src/mirror/namespace.ts'
import { OpenFiles } from '../../../src/mirror/open-files.ts'
import { foldUnder, Overlay } from '../../../src/mirror/overlay.ts'
import { PAGE_BYTES } from '../../../src/mirror/page-map.ts'
import { Operations } from '../../../src/mirror/operations.ts'
import type { MirrorSource, VersionRef } from '../../../src/mirror/source.ts'
import { VersionTables } from '../../../src/mirror/version-tables.ts'
import { createWorkingCopy, readWorkingCopy, workingCopyInfo } from '../../../src/mirror/working-copy.ts'
import { nodeClock as clock, nodeRandom as random } from '../../../src/node/world.ts'
import { P2pvmError } from '../../../src/protocols/errors.ts'
import { KeptLog } from '../../harness/quiet.ts'

const CHUNK = 2 * PAGE_BYTES
const CHUNKS = 100
const SIZE = CHUNKS * CHUNK - 1000 // the last chunk is short, and its last page too
const BASE: VersionRef = { blob: 'abcdefghijklmnop', version: 1, size: SIZE, chunkSize: CHUNK }
/** These have bytes; the others are holes. */
const DATA = new Set([1, 2, 70, CHUNKS - 1])
const [SEEK_DATA, SEEK_HOLE] = [3, 4]
const MIB = 1024 * 1024

const version: Inode = { kind: 'version', ino: 7n, ref: BASE, mtimeMs: 0 }

let folder: string
let files: OpenFiles
let handlers: Handlers
let copy: CopyInode
let asked: Array<[number, number]>
let gone: boolean
let flushed: Array<[number, number]>
let onPublish: (view: FileViewInit) => Promise<void>
// What the kernel still has, and writes back when it is told to.
let onFlush: (from: number, to: number) => Promise<void>

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'p2pvm-sparse-'))
  asked = []
  gone = false
  flushed = []
  onFlush = async () => {}
  onPublish = async () => {}
  mkdirSync(working())
  await createWorkingCopy(working(), 'vm1', BASE, random)
  await start()
})

const working = (): string => join(folder, 'working')

/** As a process that has just started, which knows what is on disk. */
async function start (): Promise<void> {
  const source = {
    chunkIds: async (_version: VersionRef, first: number, count: number) => {
      if (gone) throw new P2pvmError('ERR_UNAVAILABLE', 'the daemon is gone')
      if (first + count > CHUNKS) throw new P2pvmError('ERR_PROTOCOL', 'the version has no such chunks')
      asked.push([first, count])
      return Array.from({ length: count }, (_, at) => DATA.has(first + at) ? 'bafkreibc7zsxrxfgaym7ozdnhzjgt3djms64gxh4q2vqslofmqn5ocl3ra' : null)
    },
    fetch: async () => { throw new Error('no chunk is fetched') }
  }
  const { signal } = new AbortController()
  const chunkFiles = new ChunkFiles({ source, clock, log: new KeptLog(), quiesce: async () => {}, signal }, { folder, openMax: 100, missDeadlineMs: 100 })
  files = new OpenFiles({
    clock, random, log: new KeptLog(), signal, chunkFiles,
    working: working(),
    tables: new VersionTables({ source, clock, folder: join(folder, 'leaves') }, chunkFiles),
    holder: 'this mount', writeback: true,
    missDeadlineMs: 100,
    publish: async (view) => { await onPublish(view) },
    withdraw: async () => {},
    startFsync: () => ({ pid: 1, done: Promise.resolve() }),
    flushPages: async (ino, from, to) => {
      expect(ino).toBe(copy.ino)
      flushed.push([from, to])
      await onFlush(from, to)
    }
  })
  const state = await readWorkingCopy(working(), 'vm1')
  copy = { kind: 'copy', ino: BigInt(state.ino), name: 'vm1', ref: BASE, size: state.size, unborn: false, mtimeMs: 0 }
  const namespace = { inode: (ino: bigint) => ino === version.ino ? version : copy } as Namespace
  const commands = new Commands({ source: {} as MirrorSource, journal: NO_JOURNAL, mount: '', signal })
  const operations = new Operations({ namespace, files, working: working(), clock, missDeadlineMs: 100, commands })
  handlers = withCheckedReplies(new Handlers({ operations, journal: NO_JOURNAL, resend: false, onInit () {} }))
}

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

/** The name of an error, or nothing. */
async function fallocate (fh: number, offset: number | bigint, length: number | bigint, mode: number): Promise<string | undefined> {
  const body = Buffer.alloc(32)
  body.writeUInt32LE(fh, 0)
  body.writeBigUInt64LE(BigInt(offset), 8)
  body.writeBigUInt64LE(BigInt(length), 16)
  body.writeUInt32LE(mode, 24)
  try {
    await handlers.fallocate(request(copy, body))
    return undefined
  } catch (error) {
    return nameOf(error)
  }
}

const KEEP_SIZE = 1
const PUNCH_HOLE = 2 | KEEP_SIZE
const ZERO_RANGE = 0x10

describe('FALLOCATE', () => {
  const bytesOf = async (fh: number, page: number, pages: number): Promise<Buffer> => await files.byFh(fh).read(page * PAGE_BYTES, pages * PAGE_BYTES)

  it.each([['PUNCH_HOLE', PUNCH_HOLE], ['ZERO_RANGE', ZERO_RANGE], ['ZERO_RANGE and KEEP_SIZE', ZERO_RANGE | KEEP_SIZE]])('with %s makes zeros of any bytes, and of no others', async (_, mode) => {
    const fh = await open(copy)
    await write(fh, 8, 4)
    expect(await fallocate(fh, 8 * PAGE_BYTES + 100, 2 * PAGE_BYTES + 500, mode)).toBeUndefined()
    expect(await fallocate(fh, 11 * PAGE_BYTES + 10, 20, mode)).toBeUndefined() // within one sector
    const expected = Buffer.alloc(4 * PAGE_BYTES, 1).fill(0, 100, 2 * PAGE_BYTES + 600).fill(0, 3 * PAGE_BYTES + 10, 3 * PAGE_BYTES + 30)
    expect((await bytesOf(fh, 8, 4)).equals(expected)).toBe(true)
  })

  it('fetches nothing for whole sectors of the base, and asks nobody', async () => {
    gone = true
    const fh = await open(copy)
    expect(await fallocate(fh, CHUNK, 2 * CHUNK, PUNCH_HOLE)).toBeUndefined()
    expect((await bytesOf(fh, 2, 4)).every((byte) => byte === 0)).toBe(true)
    expect(await fallocate(fh, SIZE - 1000, 10 * CHUNK, PUNCH_HOLE)).toBe('EIO') // begins within a sector that somebody else has
    expect(await fallocate(fh, SIZE - SIZE % 512, 10 * CHUNK, PUNCH_HOLE)).toBeUndefined()
    expect((await files.byFh(fh).read(SIZE - SIZE % 512, 4096)).every((byte) => byte === 0)).toBe(true)
  })

  it('writes nothing where the base is known to be zeros and nobody has written', async () => {
    const fh = await open(copy)
    await lseek(fh, 0, SEEK_DATA) // now the chunk ids are known
    await write(fh, 10)
    expect(await fallocate(fh, 0, SIZE, PUNCH_HOLE)).toBeUndefined()
    const written = [...files.byFh(fh).layers.top?.map.bytes ?? []].flatMap((mask, page) => mask === 0 ? [] : page)
    expect(written).toEqual([2, 3, 4, 5, 10, 140, 141, 198, 199])
    expect((await files.byFh(fh).read(0, SIZE)).every((byte) => byte === 0)).toBe(true)
  })

  it('zeros pages of the sealed overlay too, and they stay zeros when it is folded back', async () => {
    const fh = await open(copy)
    await lseek(fh, 0, SEEK_DATA) // now the chunk ids are known: page 8 is in a hole
    await write(fh, 8, 2)
    const file = files.byFh(fh)
    const { layers } = file
    const sealed = layers.top
    const top = await Overlay.open(join(folder, 'next'), SIZE)
    if (sealed === undefined) throw new Error('no overlay')
    await file.change({ top, sealed })
    expect(await fallocate(fh, 8 * PAGE_BYTES, PAGE_BYTES, PUNCH_HOLE)).toBeUndefined()
    const expected = Buffer.alloc(2 * PAGE_BYTES, 1).fill(0, 0, PAGE_BYTES)
    expect((await bytesOf(fh, 8, 2)).equals(expected)).toBe(true)
    await foldUnder(top, sealed, async () => {})
    await file.change({ sealed: undefined })
    expect((await bytesOf(fh, 8, 2)).equals(expected)).toBe(true)
    await file.change(layers)
    await top.close()
  })

  it('without either does nothing, and succeeds within the file', async () => {
    const fh = await open(copy)
    for (const mode of [0, KEEP_SIZE]) expect(await fallocate(fh, 100, SIZE - 100, mode)).toBeUndefined()
    expect(await fallocate(fh, SIZE, 5 * CHUNK, KEEP_SIZE)).toBeUndefined()
    expect(await fallocate(fh, SIZE, 5 * CHUNK, ZERO_RANGE | KEEP_SIZE)).toBeUndefined()
    expect(files.byFh(fh).size).toBe(SIZE)
    expect(files.byFh(fh).layers.top?.map.bytes.every((mask) => mask === 0)).toBe(true)
  })

  it('refuses other modes, numbers that are none, and files that never change', async () => {
    const fh = await open(copy)
    for (const mode of [2, 4, 8, 0x10 | 2, 0x20, 0x40, 0x80, 2 ** 32 - 1]) expect(await fallocate(fh, 0, PAGE_BYTES, mode), String(mode)).toBe('ENOTSUP') // EOPNOTSUPP's other name
    expect(await fallocate(fh, 0, 0, PUNCH_HOLE)).toBe('EINVAL')
    for (const number of [2 ** 53, 2n ** 63n, 2n ** 64n - 1n]) {
      expect(await fallocate(fh, number, 1, PUNCH_HOLE)).toBe('EINVAL')
      expect(await fallocate(fh, 0, number, PUNCH_HOLE)).toBe('EINVAL')
    }
    expect(await fallocate(fh + 1, 0, 1, PUNCH_HOLE)).toBe('EBADF')
    for (const mode of [0, PUNCH_HOLE, ZERO_RANGE]) expect(await fallocate(await open(version), 0, PAGE_BYTES, mode)).toBe('EROFS')
  })
})

describe('a file that grows', () => {
  const LARGER = SIZE + 3 * CHUNK + 17
  /** The size that the kernel is told, or the name of the error. */
  const setSize = async (inode: Inode, size: number | bigint): Promise<number | string> => {
    const body = Buffer.alloc(88)
    body.writeUInt32LE(1 << 3, 0)
    body.writeBigUInt64LE(BigInt(size), 16)
    try {
      return Number((await handlers.setattr(request(inode, body)))?.readBigUInt64LE(16 + 8))
    } catch (error) {
      return nameOf(error)
    }
  }

  const writeAt = async (fh: number, offset: number, bytes: Buffer): Promise<string | undefined> => {
    const body = Buffer.alloc(40)
    body.writeUInt32LE(fh, 0)
    body.writeBigUInt64LE(BigInt(offset), 8)
    body.writeUInt32LE(bytes.length, 16)
    try {
      await handlers.write(request(copy, Buffer.concat([body, bytes])))
      return undefined
    } catch (error) {
      return nameOf(error)
    }
  }

  const tail = async (fh: number, from: number): Promise<Buffer> => await files.byFh(fh).read(from, 100 * CHUNK)

  it('by SETATTR has zeros at its end, on disk before it is answered, and its version is what it was', async () => {
    expect(await setSize(copy, LARGER)).toBe(LARGER) // nobody has it open
    expect(await readWorkingCopy(working(), 'vm1')).toMatchObject({ size: LARGER, baseSize: SIZE })
    expect(await workingCopyInfo(working(), 'vm1')).toMatchObject({ size: LARGER, dirtyBytes: 0 })
    const fh = await open(copy)
    expect((await tail(fh, CHUNKS * CHUNK)).equals(Buffer.alloc(LARGER - CHUNKS * CHUNK))).toBe(true)
    expect(handlers.getattr(request(copy, Buffer.alloc(16)))?.readUInt32LE(16 + 8)).toBe(LARGER)
    expect(await lseek(fh, (CHUNKS - 1) * CHUNK, SEEK_HOLE)).toBe(CHUNKS * CHUNK)
    expect(await lseek(fh, CHUNKS * CHUNK, SEEK_DATA)).toBe('ENXIO')
    expect(await lseek(fh, LARGER, SEEK_HOLE)).toBe('ENXIO')
    expect(await files.byFh(await open(version)).read(SIZE, 1)).toHaveLength(0)
  })

  it('by WRITE has the bytes, whatever is between them and what was its end', async () => {
    gone = true // zeros come from nowhere
    const fh = await open(copy)
    const from = SIZE + CHUNK + 100
    expect(await writeAt(fh, from, Buffer.alloc(700, 7))).toBeUndefined()
    expect(files.byFh(fh).size).toBe(from + 700)
    expect(await readWorkingCopy(working(), 'vm1')).toMatchObject({ size: from + 700 })
    expect(await writeAt(fh, SIZE + 5000, Buffer.alloc(10, 8))).toBeUndefined()
    const first = CHUNKS * CHUNK // what lies before is in a chunk of the version
    const expected = Buffer.alloc(from + 700).fill(7, from).fill(8, SIZE + 5000, SIZE + 5010).subarray(first)
    expect((await tail(fh, first)).equals(expected)).toBe(true)
    await Promise.all([1, 2, 3, 4].map(async (n) => await writeAt(fh, from + n * CHUNK, Buffer.alloc(512, n))))
    expect(files.byFh(fh).size).toBe(from + 4 * CHUNK + 512)
    for (const n of [1, 2, 3, 4]) expect((await files.byFh(fh).read(from + n * CHUNK, 512)).equals(Buffer.alloc(512, n))).toBe(true)
  })

  it('by FALLOCATE has zeros, of which those before its end are written', async () => {
    const fh = await open(copy)
    await write(fh, 2 * CHUNKS - 1 - 4, 2)
    expect(await fallocate(fh, CHUNKS * CHUNK - 4 * PAGE_BYTES, 6 * PAGE_BYTES, ZERO_RANGE)).toBeUndefined()
    expect(files.byFh(fh).size).toBe(CHUNKS * CHUNK + 2 * PAGE_BYTES)
    expect((await tail(fh, CHUNKS * CHUNK - 4 * PAGE_BYTES)).equals(Buffer.alloc(6 * PAGE_BYTES))).toBe(true)
    expect(await fallocate(fh, SIZE, LARGER - SIZE, 0)).toBeUndefined()
    expect(files.byFh(fh).size).toBe(LARGER)
  })

  it('and is zeroed, however large, gives all space back but that of cut pages at both ends', async () => {
    const fh = await open(copy)
    expect(await setSize(copy, 64 * MIB)).toBe(64 * MIB)
    const written = [[0, PAGE_BYTES], [16 * MIB - PAGE_BYTES, 16 * MIB + PAGE_BYTES], [48 * MIB - PAGE_BYTES, 48 * MIB + PAGE_BYTES], [50 * MIB, 50 * MIB + PAGE_BYTES]] as const
    for (const [from, to] of written) expect(await writeAt(fh, from, Buffer.alloc(to - from, 1))).toBeUndefined()
    const overlay = files.byFh(fh).layers.top?.folder ?? ''
    const taken = (): number => statSync(join(overlay, 'pages')).blocks * 512
    expect(taken()).toBeGreaterThanOrEqual(6 * PAGE_BYTES)
    expect(await fallocate(fh, 512, 50 * MIB, PUNCH_HOLE)).toBeUndefined()
    expect(taken()).toBe(2 * PAGE_BYTES)
    const bytes = await files.byFh(fh).read(0, 64 * MIB)
    expect(bytes.equals(Buffer.alloc(64 * MIB).fill(1, 0, 512).fill(1, 50 * MIB + 512, 50 * MIB + PAGE_BYTES))).toBe(true)
  })

  it('keeps what workers wrote until they passed, and takes their writes again after', async () => {
    const fh = await open(copy)
    const file = files.byFh(fh)
    await write(fh, 0)
    const views: FileViewInit[] = []
    let onDisk: number | undefined
    const { table, top } = file.layers
    const old = new FileView({ fh, size: SIZE, base: table.view, top: top?.view(), routeWrites: false })
    onPublish = async (view) => {
      views.push(view)
      if (views.length > 1) return
      onDisk = (await readWorkingCopy(working(), 'vm1')).size // a worker is still at it with the view of before
      old.writeFrom(Buffer.alloc(PAGE_BYTES, 5), 0, 6 * PAGE_BYTES, 7 * PAGE_BYTES)
    }
    expect(await setSize(copy, LARGER)).toBe(LARGER)
    expect(onDisk).toBe(LARGER) // before anybody sees it
    expect(views.map(({ size, routeWrites }) => [size, routeWrites])).toEqual([[SIZE, true], [LARGER, false]])
    expect((await file.read(6 * PAGE_BYTES, PAGE_BYTES)).equals(Buffer.alloc(PAGE_BYTES, 5))).toBe(true)
    const view = new FileView(views.at(-1) ?? (() => { throw new Error('no view') })())
    expect(view.takesWrite(LARGER - LARGER % 512, LARGER)).toBe(true)
    view.writeFrom(Buffer.alloc(LARGER % 512, 6), 0, LARGER - LARGER % 512, LARGER)
    expect((await file.read(LARGER - 1, 10)).equals(Buffer.alloc(1, 6))).toBe(true)
  })

  it('is as it was in the next process, and never smaller', async () => {
    const fh = await open(copy)
    await writeAt(fh, LARGER - 512, Buffer.alloc(512, 9))
    await files.close()
    await start()
    const again = await open(copy)
    expect(await lseek(again, 71 * CHUNK, SEEK_HOLE)).toBe(71 * CHUNK)
    expect(asked.at(-1)).toEqual([64, CHUNKS - 64]) // the chunks of the version, and no others
    expect((await tail(again, LARGER - 512)).equals(Buffer.alloc(512, 9))).toBe(true)
    for (const size of [0, SIZE, LARGER - 1]) expect(await setSize(copy, size)).toBe('EPERM')
    expect(files.byFh(again).size).toBe(LARGER)
  })

  it('is refused where it cannot be, and for sizes that are none', async () => {
    expect(await setSize(version, LARGER)).toBe('EROFS')
    expect(await setSize(copy, 4 * 2 ** 40 + 1)).toBe('EFBIG')
    for (const size of [2 ** 53, 2n ** 63n, 2n ** 64n - 1n]) expect(await setSize(copy, size)).toBe('EINVAL')
    const fh = await open(copy)
    expect(await writeAt(fh, 2 ** 52, Buffer.alloc(1))).toBe('EFBIG')
    expect(await fallocate(fh, 2 ** 52, 2 ** 52, 0)).toBe('EFBIG')
    expect(await writeAt(await open(version), SIZE, Buffer.alloc(1))).toBe('EROFS')
    expect(await readWorkingCopy(working(), 'vm1')).toMatchObject({ size: SIZE })
  })
})
