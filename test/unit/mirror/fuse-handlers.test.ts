/** The handlers and the namespace, called with bytes, without a kernel. */
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { ERRNO, errnoOf, ErrnoError } from '../../../src/mirror/errno.ts'
import { withCheckedReplies } from '../../harness/checked-replies.ts'
import { Commands } from '../../../src/mirror/fuse/commands.ts'
import { parseMountinfo, placesOf } from '../../../src/mirror/fuse/device.ts'
import { Handlers, type Request } from '../../../src/mirror/fuse/handlers.ts'
import { NO_JOURNAL } from '../../../src/mirror/mount-journal.ts'
import { Namespace } from '../../../src/mirror/namespace.ts'
import type { OpenFiles } from '../../../src/mirror/open-files.ts'
import { Operations } from '../../../src/mirror/operations.ts'
import type { MirrorSource, VersionRef } from '../../../src/mirror/source.ts'
import { createWorkingCopy, removeWorkingCopy } from '../../../src/mirror/working-copy.ts'
import { nodeClock as clock, nodeRandom as random } from '../../../src/node/world.ts'
import { P2pvmError } from '../../../src/protocols/errors.ts'

const BLOB = 'abcdefghijklmnop'
const VERSIONS: VersionRef[] = [1, 2, 0].map((version) => ({ blob: BLOB, version, size: 8192 * version, chunkSize: 4096 }))

let working: string
let namespace: Namespace
let handlers: Handlers
let gone: boolean

const source: MirrorSource = {
  images: async () => ['debian-12', 'web'],
  versions: async () => [1, 2],
  resolve: async (ref) => {
    if (gone) throw new P2pvmError('ERR_UNAVAILABLE', 'the daemon is gone')
    const [name = '', version = 'latest'] = ref.split('@')
    const found = VERSIONS.find((one) => (name === BLOB || name === 'debian-12') && (version === 'latest' || String(one.version) === version))
    if (found === undefined) throw new P2pvmError('ERR_NOT_FOUND', `there is no ${ref}`)
    return found
  },
  chunkIds: async () => [],
  fetch: async () => [],
  clone: async () => ({ blob: 'ponmlkjihgfedcba', version: 0, size: 8192, chunkSize: 4096 }),
  commit: async (_name, { as }) => {
    if (as === 'taken') throw new P2pvmError('ERR_CONFLICT', 'the name is taken')
    return { blob: BLOB, version: 3, size: 8192, chunkSize: 4096 }
  }
}

beforeEach(() => {
  working = join(mkdtempSync(join(tmpdir(), 'p2pvm-names-')), 'working')
  mkdirSync(working)
  gone = false
  namespace = new Namespace({ source, clock, random, working })
  const withCopy: OpenFiles['withCopy'] = async () => undefined as never
  const sizeOf: OpenFiles['sizeOf'] = () => undefined
  handlers = withCheckedReplies(new Handlers({
    operations: new Operations({
      namespace, working, clock, missDeadlineMs: 200,
      files: { withCopy, sizeOf, open: async () => ({ fh: 7, keepsPages: true }) } as unknown as OpenFiles,
      commands: new Commands({ source, journal: NO_JOURNAL, mount: 'mount', signal: new AbortController().signal })
    }),
    journal: NO_JOURNAL,
    resend: false,
    onInit () {}
  }))
})

afterEach(() => { rmSync(join(working, '..'), { recursive: true }) })

function request (nodeid: bigint, body: Buffer): Request {
  return { header: { len: 0, opcode: 0, unique: 1n, nodeid, uid: 0, gid: 0, pid: 1 }, body, signal: new AbortController().signal }
}

async function errno (work: () => unknown): Promise<string | undefined> {
  try {
    await work()
    return undefined
  } catch (error) {
    return Object.entries(ERRNO).find(([, value]) => value === errnoOf(error))?.[0]
  }
}

async function lookup (parent: bigint, name: string): Promise<{ ino: bigint, size: number, mode: string, entrySeconds: number }> {
  const out = await handlers.lookup(request(parent, Buffer.from(`${name}\0`)))
  if (out === undefined) throw new Error('no entry')
  return { ino: out.readBigUInt64LE(0), size: Number(out.readBigUInt64LE(48)), mode: out.readUInt32LE(100).toString(8), entrySeconds: Number(out.readBigUInt64LE(16)) }
}

async function walk (...names: string[]): Promise<Awaited<ReturnType<typeof lookup>>> {
  let entry = { ino: 1n, size: 0, mode: '', entrySeconds: 0 }
  for (const name of names) entry = await lookup(entry.ino, name)
  return entry
}

async function list (ino: bigint): Promise<string[]> {
  const fh = (await handlers.opendir(request(ino, Buffer.alloc(8))))?.readUInt32LE(0) ?? 0
  const body = Buffer.alloc(40)
  body.writeUInt32LE(fh, 0)
  body.writeUInt32LE(4096, 16)
  const out = await handlers.readdir(request(ino, body)) ?? Buffer.alloc(0)
  handlers.releasedir(request(ino, body))
  const names: string[] = []
  for (let at = 0; at < out.length; at += Math.ceil((24 + out.readUInt32LE(at + 16)) / 8) * 8) names.push(out.toString('utf8', at + 24, at + 24 + out.readUInt32LE(at + 16)))
  return names
}

describe('the namespace', () => {
  it('has images by name, immutable versions in them, and nothing else', async () => {
    expect(await list(1n)).toEqual(['.', '..', 'by-name', 'working'])
    expect(await list((await walk('by-name')).ino)).toEqual(['.', '..', 'debian-12', 'web'])
    expect(await list((await walk('by-name', 'debian-12')).ino)).toEqual(['.', '..', '1', '2'])
    expect(await walk('by-name', 'debian-12', '2')).toMatchObject({ size: 16384, mode: '100444', entrySeconds: 24 * 3600 })
    for (const path of [['x'], ['by-name', 'nope'], ['by-name', 'debian-12', '3'], ['by-name', 'debian-12', '01'], ['by-name', 'debian-12', 'x'], ['working', 'x'], ['working', '..'], ['bbbbbbbbbbbbbbbb'], [BLOB, '9']]) {
      expect(await errno(async () => await walk(...path)), path.join('/')).toBe('ENOENT')
    }
    expect(await errno(async () => await walk('by-name', 'debian-12', '1', 'x'))).toBe('ENOTDIR')
  })

  it('gives an inode to a version and to a working copy, not to a path', async () => {
    const version = (await walk('by-name', 'debian-12', '1')).ino
    expect((await walk('by-name', 'debian-12', '2')).ino).not.toBe(version)
    const other = new Namespace({ source, clock, random, working })
    expect((await other.walk(['by-name', 'debian-12', '1'], new AbortController().signal)).ino).toBe(version) // after a new start too

    const alias = await walk(BLOB, '1')
    expect(alias).toMatchObject({ size: 8192, mode: '100644', entrySeconds: 1 })
    expect((await walk(BLOB, '1')).ino).toBe(alias.ino)
    const base = VERSIONS[0]
    if (base === undefined) throw new Error('no version')
    await createWorkingCopy(working, `${BLOB}.1`, base, random, { ino: alias.ino, origin: base })
    expect((await walk('working', `${BLOB}.1`)).ino).toBe(alias.ino)
    expect((await walk(BLOB, '1')).ino).toBe(alias.ino)
    await removeWorkingCopy(working, `${BLOB}.1`, random)
    handlers.forget(request(alias.ino, Buffer.from([4, 0, 0, 0, 0, 0, 0, 0])))
    expect((await walk(BLOB, '1')).ino).not.toBe(alias.ino)
  })

  it('does not take a working copy that somebody named like an alias for one', async () => {
    const base = VERSIONS[1]
    if (base === undefined) throw new Error('no version')
    await createWorkingCopy(working, `${BLOB}.1`, base, random)
    expect(await errno(async () => await walk(BLOB, '1'))).toBe('EBUSY')
  })

  it('forgets what the kernel forgets, and not before', async () => {
    const { ino } = await walk('by-name', 'debian-12', '1')
    await walk('by-name', 'debian-12', '1')
    handlers.forget(request(ino, Buffer.from([1, 0, 0, 0, 0, 0, 0, 0])))
    handlers.getattr(request(ino, Buffer.alloc(16)))
    const body = Buffer.alloc(24)
    body.writeUInt32LE(1, 0)
    body.writeBigUInt64LE(ino, 8)
    body.writeUInt32LE(1, 16)
    handlers.batchForget(request(0n, body))
    expect(await errno(() => handlers.getattr(request(ino, Buffer.alloc(16))))).toBe('ESTALE')
    handlers.forget(request(1n, Buffer.from([255, 255, 0, 0, 0, 0, 0, 0])))
    handlers.getattr(request(1n, Buffer.alloc(16))) // the root stays
  })

  it('is there without the daemon where working copies are concerned, and waits for it no longer than it may', async () => {
    const base = VERSIONS[0]
    if (base === undefined) throw new Error('no version')
    await createWorkingCopy(working, 'vm1', base, random)
    await createWorkingCopy(working, `${BLOB}.1`, base, random, { origin: base })
    gone = true
    await walk('working', 'vm1')
    await walk(BLOB, '1')
    expect(await errno(async () => await walk('by-name', 'debian-12'))).toBe('EIO')
  })
})

describe('replies', () => {
  it('have the sizes that their rows say, of every handler that needs no file', async () => {
    const { ino } = await walk(BLOB, '1')
    const xattr = Buffer.concat([Buffer.from([64, 0, 0, 0, 0, 0, 0, 0]), Buffer.from('user.p2pvm.base\0')])
    handlers.getattr(request(ino, Buffer.alloc(16)))
    await handlers.open(request(ino, Buffer.alloc(8)))
    await handlers.statfs()
    await handlers.getxattr(request(ino, xattr))
    handlers.listxattr(request(ino, xattr))
    handlers.init(request(0n, Buffer.from([7, 0, 0, 0, 38, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])))
    expect(handlers.flush()).toBeUndefined()
    expect(handlers.destroy()).toBeUndefined()
    const short = withCheckedReplies({ statfs: async () => Buffer.alloc(79) } as unknown as Handlers)
    await expect(short.statfs()).rejects.toThrow('FUSE_STATFS answered 79 bytes, not 80 to 80')
  })
})

describe('setattr', () => {
  const setattr = async (ino: bigint, valid: number, size = 0): Promise<Buffer | undefined> => {
    const body = Buffer.alloc(88)
    body.writeUInt32LE(valid, 0)
    body.writeUInt32LE(size, 16)
    body.writeUInt32LE(1700000000, 40)
    return await handlers.setattr(request(ino, body))
  }

  it('takes times, which every fsync begins with, and neither a smaller size nor another owner', async () => {
    const { ino } = await walk(BLOB, '1')
    expect((await setattr(ino, 1 << 5))?.readUInt32LE(16 + 32)).toBe(1700000000)
    await setattr(ino, 1 << 3, 8192)
    expect(await errno(async () => await setattr(ino, 1 << 3, 8191))).toBe('EPERM')
    expect(await errno(async () => await setattr(ino, 1 << 1))).toBe('EPERM')
    const version = await walk('by-name', 'debian-12', '1')
    for (const valid of [1 << 5, 1 << 3]) expect(await errno(async () => await setattr(version.ino, valid, 1 << 20))).toBe('EROFS')
  })
})

describe('commands', () => {
  const ioctl = async (ino: bigint, cmd: number, bytes: Buffer): Promise<Buffer | undefined> => {
    const body = Buffer.alloc(32)
    body.writeUInt32LE(cmd, 12)
    body.writeUInt32LE(bytes.length, 24)
    return await handlers.ioctl(request(ino, Buffer.concat([body, bytes])))
  }

  it('are the ioctls of include/p2pvm.h', async () => {
    const { ino } = await walk(BLOB, '1')
    const commit = await ioctl(ino, 0xc1b8e901, Buffer.alloc(440))
    expect([commit?.readInt32LE(0), commit?.toString('latin1', 16 + 392, 16 + 408), commit?.readUInt32LE(16 + 424), commit?.readInt32LE(16 + 432)]).toEqual([0, BLOB, 3, 0])
    const clone = await ioctl(ino, 0xc0b8e902, Buffer.alloc(184))
    expect([clone?.readInt32LE(0), clone?.toString('latin1', 16 + 136, 16 + 152), clone?.readInt32LE(16 + 176)]).toEqual([0, 'ponmlkjihgfedcba', 0])
    const taken = await ioctl(ino, 0xc1b8e901, Buffer.concat([Buffer.from('taken'), Buffer.alloc(435)]))
    expect([taken?.readInt32LE(0), taken?.readInt32LE(16 + 432)]).toEqual([-ERRNO.EBUSY, ERRNO.EBUSY])
    const endless = await ioctl(ino, 0xc1b8e901, Buffer.alloc(440, 'x'))
    expect(endless?.readInt32LE(0)).toBe(-ERRNO.EINVAL)
    expect(await errno(async () => await ioctl(ino, 0x5401, Buffer.alloc(0)))).toBe('ENOTTY') // TCGETS: isatty(3)
    expect(await errno(async () => await ioctl(ino, 0xc1b8e901, Buffer.alloc(439)))).toBe('EINVAL')
    const version = await walk('by-name', 'debian-12', '1')
    expect(await errno(async () => await ioctl(version.ino, 0xc1b8e901, Buffer.alloc(440)))).toBe('EROFS')
  })

  it('run one at a time from attributes, which report what became of them', async () => {
    let finish: (ref: VersionRef) => void = () => {}
    const commands = new Commands({
      source: { ...source, commit: async () => await new Promise((resolve) => { finish = resolve }) },
      journal: NO_JOURNAL, mount: 'mount', signal: new AbortController().signal
    })
    expect(() => commands.outcome('user.p2pvm.commit', 'vm1')).toThrow(ErrnoError)
    commands.start(1n, 'user.p2pvm.commit', Buffer.from(''), 'vm1')
    expect(JSON.parse(commands.outcome('user.p2pvm.commit', 'vm1').toString())).toEqual({ state: 'running' })
    expect(await errno(() => { commands.start(1n, 'user.p2pvm.clone', Buffer.from(''), 'vm1') })).toBe('EBUSY')
    commands.start(1n, 'user.p2pvm.clone', Buffer.from(''), 'vm2')
    finish({ blob: BLOB, version: 7, size: 0, chunkSize: 4096 })
    await expect.poll(() => JSON.parse(commands.outcome('user.p2pvm.commit', 'vm1').toString()) as unknown).toEqual({ state: 'done', blob: BLOB, version: 7 })
  })
})

describe('mountinfo', () => {
  it('tells what is mounted exactly there', () => {
    const text = [
      '36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw',
      '40 35 0:39 / /tmp/with\\040blank rw - fuse.p2pvm p2pvm rw',
      '41 35 0:40 / /tmp/with rw - fuse.p2pvm p2pvm rw',
      '42 35 0:41 / /tmp/with rw - fuse.p2pvm p2pvm rw'
    ].join('\n')
    expect(parseMountinfo(text, '/tmp/with blank')).toEqual([39])
    expect(parseMountinfo(text, '/tmp/with')).toEqual([40, 41])
    expect(parseMountinfo(text, '/tmp')).toEqual([])
    expect([39, 41, 4].map((connection) => placesOf(text, connection))).toEqual([['/tmp/with blank'], ['/tmp/with'], []])
  })
})
