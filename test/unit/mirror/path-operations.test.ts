/** What fuse-native asks for by path, without the library and without a kernel. */
import { constants } from 'node:fs'
import type { Handlers, Stat } from 'fuse-native'
import { beforeEach, describe, expect, it } from 'vitest'
import { ERRNO, ErrnoError } from '../../../src/mirror/errno.ts'
import { putInto } from '../../../src/mirror/fuse-native/library.ts'
import { PathOperations, statFs } from '../../../src/mirror/fuse-native/path-operations.ts'
import type { CopyInode, Inode } from '../../../src/mirror/namespace.ts'
import type { Change, Operations } from '../../../src/mirror/operations.ts'
import { nodeClock as clock } from '../../../src/node/world.ts'
import { P2pvmError } from '../../../src/protocols/errors.ts'

const BLOB = 'abcdefghijklmnop'
const SIZE = 10_000
const quiet = { debug () {}, info () {}, warn () {}, error () {} }
const copy: CopyInode = { kind: 'copy', ino: 2n ** 40n, name: `${BLOB}.1`, ref: { blob: BLOB, version: 1, size: SIZE, chunkSize: 4096 }, size: SIZE, unborn: false, mtimeMs: 5 }

let known: number
let walked: number
let changes: Change[]
let lines: string[]
let fail: unknown
let begin: () => void
let handlers: Handlers

beforeEach(() => {
  known = 0
  walked = 0
  changes = []
  lines = []
  fail = undefined
  const file = {
    size: SIZE,
    wholeSectors: (from: number, to: number) => from % 512 === 0 && (to % 512 === 0 || to === SIZE),
    read: async (offset: number, size: number) => Buffer.alloc(Math.max(0, Math.min(size, SIZE - offset)), 'r'),
    write: async () => { if (fail !== undefined) throw fail }
  }
  const operations = {
    walk: async (path: string[]): Promise<Inode> => {
      walked++
      if (fail !== undefined) throw fail
      return path.length === 2 ? copy : { kind: 'root', ino: 1n }
    },
    attributes: (inode: Inode) => ({ ino: inode.ino, size: inode === copy ? SIZE : 0, mtimeMs: 5, mode: inode === copy ? 0o100644 : 0o040755, nlink: 1, uid: 3, gid: 4 }),
    open: async (_inode: Inode, { writes }: { writes: boolean }) => ({ fh: writes ? 2 : 1, keepsPages: true }),
    change: async (_inode: Inode, change: Change) => { changes.push(change) },
    namespace: { remember: () => { known++ }, forget: (_ino: bigint, count: number) => { known -= count } },
    files: { byFh: () => file, release: async () => {} }
  } as unknown as Operations
  const made = new PathOperations(new AbortController().signal, { clock, log: quiet, trace: (line) => { lines.push(line) } })
  begin = () => { made.begin(operations) }
  handlers = made.handlers()
})

/** What a handler says: its result, or its value. */
async function said<T> (ask: (done: (result: number, value?: T) => void) => void): Promise<T | number> {
  return await new Promise((resolve) => { ask((result, value) => { resolve(value ?? result) }) })
}

const stat = async (path: string): Promise<Stat> => await said<Stat>((done) => { handlers.getattr(path, done) }) as Stat
const open = async (flags: number): Promise<number> => await said<number>((done) => { handlers.open('/working/x', flags, done) })
const read = async (handle: number, offset: number, size: number): Promise<number> =>
  await said((done) => { handlers.read('', handle, Buffer.alloc(size), size, offset, done) })

describe('a request', () => {
  it('waits for the beginning', async () => {
    const asked = stat('/')
    let answered = false
    void asked.then(() => { answered = true })
    await new Promise((resolve) => { setImmediate(resolve) })
    expect(answered).toBe(false)
    begin()
    expect((await asked).mode).toBe(0o040755)
  })

  it('that fails is answered a negative errno, once, whatever was thrown', async () => {
    begin()
    for (const [error, errno] of [[new ErrnoError(ERRNO.ENOENT), ERRNO.ENOENT], [new P2pvmError('ERR_UNAVAILABLE', 'gone'), ERRNO.EIO], [new TypeError('a defect'), ERRNO.EIO]] as const) {
      fail = error
      expect(await said((done) => { handlers.getattr('/x', done) })).toBe(-errno)
    }
    expect(lines).toEqual([expect.stringMatching(/^getattr "\/x" → ENOENT \d+ µs$/), expect.stringMatching(/EIO/), expect.stringMatching(/EIO/)])
  })

  it('that would make or remove something is refused', async () => {
    begin()
    const refused = [
      said((done) => { handlers.unlink('/x', done) }), said((done) => { handlers.rename('/x', '/y', done) }), said((done) => { handlers.create('/x', 0, done) }),
      said((done) => { handlers.mkdir('/x', 0, done) }), said((done) => { handlers.removexattr('/x', 'user.x', done) })
    ]
    expect(await Promise.all(refused)).toEqual(Array(5).fill(-ERRNO.EROFS))
  })

  it('for a size, a time or an owner is a change of the inode', async () => {
    begin()
    await said((done) => { handlers.truncate('/working/x', 7, done) })
    await said((done) => { handlers.utimens('/working/x', 1, 2, done) })
    await said((done) => { handlers.chown('/working/x', 1, 2, done) })
    expect(changes).toEqual([{ size: 7 }, { mtimeMs: 2 }, { ownership: true }])
  })
})

describe('an alias', () => {
  it('is a link to the working copy by its own name, which is the file', async () => {
    begin()
    const target = await said<string>((done) => { handlers.readlink(`/${BLOB}/1`, done) })
    expect(target).toBe(`../working/${BLOB}.1`)
    expect(await stat(`/${BLOB}/1`)).toMatchObject({ mode: 0o120777, size: String(target).length })
    expect(await stat(`/working/${BLOB}.1`)).toMatchObject({ mode: 0o100644, size: SIZE, uid: 3, gid: 4, blocks: 20 })
    expect(await said((done) => { handlers.readlink(`/working/${BLOB}.1`, done) })).toBe(-ERRNO.EINVAL)
  })
})

describe('a handle', () => {
  it('is nobody else\'s, is remembered by the namespace as long as it is open, and is bad after it', async () => {
    begin()
    const handles = [await open(0), await open(constants.O_RDWR)]
    expect(new Set(handles).size).toBe(2)
    expect(known).toBe(2)
    expect(await said((done) => { handlers.release('', handles[0] ?? 0, done) })).toBe(0)
    expect(known).toBe(1)
    expect(await read(handles[0] ?? 0, 0, 512)).toBe(-ERRNO.EBADF)
    expect(await read(handles[1] ?? 0, 0, 512)).toBe(512)
  })

  it('spares looking its path up, until the last one is released', async () => {
    begin()
    const handles = [await open(0), await open(0)]
    const before = walked
    await stat('/working/x')
    await said((done) => { handlers.release('', handles[0] ?? 0, done) })
    await stat('/working/x')
    expect(walked).toBe(before)
    await said((done) => { handlers.release('', handles[1] ?? 0, done) })
    await stat('/working/x')
    expect(walked).toBe(before + 1)
  })

  it('of O_DIRECT reads in sectors, up to the end of the file', async () => {
    begin()
    const [direct, buffered] = [await open(constants.O_DIRECT), await open(0)]
    expect([await read(direct, 0, 1), await read(direct, 100, 512), await read(direct, 0, 512), await read(direct, 9728, 512), await read(direct, SIZE, 4096)])
      .toEqual([-ERRNO.EINVAL, -ERRNO.EINVAL, 512, SIZE - 9728, 0])
    expect(await read(buffered, 0, 1)).toBe(1)
  })

  it('writes what it is given, and makes the file newer; a full disk is ENOSPC', async () => {
    begin()
    const handle = await open(constants.O_RDWR)
    copy.mtimeMs = 5
    const write = async (): Promise<number> => await said((done) => { handlers.write('', handle, Buffer.alloc(4096), 700, 0, done) })
    expect(await write()).toBe(700)
    expect(copy.mtimeMs).toBeGreaterThan(5)
    fail = new P2pvmError('ERR_DISK_FULL', 'full')
    expect(await write()).toBe(-ERRNO.ENOSPC)
  })
})

describe('what libfuse takes', () => {
  it('of statfs is 32 bits: in larger units where there are too many blocks', () => {
    expect(statFs({ bsize: 4096, blocks: 100, bfree: 50, bavail: 40, files: 10, ffree: 5 })).toMatchObject({ bsize: 4096, frsize: 4096, blocks: 100, bavail: 40, ffree: 5, namemax: 255 })
    const large = statFs({ bsize: 4096, blocks: 2 ** 34, bfree: 2 ** 33, bavail: 2 ** 33, files: 2 ** 40, ffree: 2 ** 40 })
    expect(large).toMatchObject({ files: 2 ** 32 - 1, ffree: 2 ** 32 - 1 })
    expect(large.blocks).toBeLessThan(2 ** 32)
    expect([large.blocks * large.frsize, large.bfree * large.frsize]).toEqual([2 ** 46, 2 ** 45])
  })

  it('of an attribute is no more than there is room for', () => {
    const room = Buffer.alloc(5)
    expect([putInto(Buffer.alloc(0), Buffer.from('value')), putInto(room, Buffer.from('value')), putInto(Buffer.alloc(4), Buffer.from('value'))]).toEqual([5, 5, -ERRNO.ERANGE])
    expect(room.toString()).toBe('value')
  })
})
