/** What a FUSE server finds that takes over from a killed one: the journal on disk, and inodes, files and commands made of it. */
import { appendFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { ERRNO, ErrnoError } from '../../../src/mirror/errno.ts'
import { Commands } from '../../../src/mirror/fuse/commands.ts'
import { Handlers, type Request } from '../../../src/mirror/fuse/handlers.ts'
import { type KernelRecord, KernelState } from '../../../src/mirror/kernel-state.ts'
import { checkJournal, MountJournal } from '../../../src/mirror/mount-journal.ts'
import { Namespace } from '../../../src/mirror/namespace.ts'
import type { OpenFiles } from '../../../src/mirror/open-files.ts'
import { Operations } from '../../../src/mirror/operations.ts'
import type { MirrorSource, VersionRef } from '../../../src/mirror/source.ts'
import { createWorkingCopy, removeWorkingCopy } from '../../../src/mirror/working-copy.ts'
import { nodeClock as clock, nodeRandom as random } from '../../../src/node/world.ts'
import { KeptLog } from '../../harness/quiet.ts'

const log = new KeptLog()
const MOUNT = { holder: 'abcd', startedMs: 1700000000000 }
const BLOB = 'abcdefghijklmnop'
const REF: VersionRef = { blob: BLOB, version: 1, size: 8192, chunkSize: 4096 }
const RESENT = 2n ** 63n
const VERSION = { kind: 'version', ref: REF } as const

let folder: string
let path: string

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'p2pvm-journal-'))
  path = join(folder, 'id.inodes')
})

afterEach(() => { rmSync(folder, { recursive: true }) })

describe('a journal', () => {
  const written = (...records: KernelRecord[]): MountJournal => {
    const journal = MountJournal.create(path, MOUNT, log)
    for (const record of records) journal.append(record)
    return journal
  }

  it('is there for the next server as of the last record, counted', () => {
    const journal = written(
      { kind: 'lookup', unique: '2', ino: '7', inode: VERSION },
      { kind: 'lookup', unique: '4', ino: '7', inode: VERSION },
      { kind: 'lookup', unique: '6', ino: '8', inode: { kind: 'copy', name: 'vm1', ref: REF, unborn: true } },
      { kind: 'open', unique: '8', fh: 1, ino: '7', keepsPages: true },
      { kind: 'open', unique: '10', fh: 1, ino: '7', keepsPages: true },
      { kind: 'open', unique: '12', fh: 5, ino: '8', keepsPages: false },
      { kind: 'release', unique: '14', fh: 5 },
      { kind: 'born', ino: '8' },
      { kind: 'mtime', ino: '8', mtimeMs: 5 },
      { kind: 'committing', workingCopy: 'vm1', on: true },
      { kind: 'opendir', unique: '16', fh: 3, ino: '1' },
      { kind: 'forget', ino: '7', nlookup: 1 })
    const next = MountJournal.open(path, log)
    expect(next.mount).toEqual(MOUNT)
    expect(next.state.snapshot()).toEqual(journal.state.snapshot())
    expect(next.state.snapshot()).toMatchObject({
      inodes: [['7', { inode: VERSION, nlookup: 1 }], ['8', { inode: { kind: 'copy', unborn: false }, nlookup: 1, mtimeMs: 5 }]],
      files: [[1, { ino: '7', users: 2 }]],
      folders: [[3, '1']],
      committing: ['vm1'],
      lastFh: 5,
      lastFolder: 3
    })
    expect(next.answered('10', 'open')).toMatchObject({ fh: 1, keepsPages: true })
    expect(next.answered('99', 'open')).toBeUndefined()
    next.append({ kind: 'forget', ino: '7', nlookup: 1 })
    expect([...MountJournal.open(path, log).state.inodes.keys()]).toEqual(['8'])
  })

  it('ignores a last record that was cut off, wherever, and goes on after the one before', () => {
    written({ kind: 'lookup', unique: '2', ino: '7', inode: VERSION })
    const whole = readFileSync(path)
    const line = `${JSON.stringify({ kind: 'lookup', unique: '4', ino: '9', inode: VERSION } satisfies KernelRecord)}\n`
    for (let cut = 0; cut < line.length; cut++) {
      writeFileSync(path, whole)
      appendFileSync(path, line.slice(0, cut))
      const journal = MountJournal.open(path, log)
      expect([...journal.state.inodes.keys()], `${cut} bytes`).toEqual(['7'])
      journal.append({ kind: 'mtime', ino: '7', mtimeMs: 5 }) // shorter than most of what was cut off
      expect([...MountJournal.open(path, log).state.inodes], `${cut} bytes`).toEqual([['7', { inode: VERSION, nlookup: 1, mtimeMs: 5 }]])
    }
  })

  it('stays small, and forgets neither what is open nor what was answered last', () => {
    const journal = written({ kind: 'open', unique: '1', fh: 1, ino: '7', keepsPages: true })
    for (let unique = 2; unique < 30_000; unique += 2) {
      journal.append({ kind: 'lookup', unique: String(unique), ino: String(unique), inode: VERSION })
      journal.append({ kind: 'forget', ino: String(unique), nlookup: 1 })
    }
    expect(statSync(path).size).toBeLessThan(2 * 2 ** 20)
    expect(readdirSync(folder)).toEqual(['id.inodes'])
    const next = MountJournal.open(path, log)
    expect(next.state.snapshot()).toMatchObject({ inodes: [], files: [[1, { ino: '7', users: 1 }]], lastFh: 1 })
    expect(next.answered('29998', 'lookup')).toMatchObject({ ino: '29998' })
    expect(new KernelState(next.state.snapshot()).answered('29998', 'lookup')).toMatchObject({ ino: '29998' })
    expect(next.answered('1', 'open')).toBeUndefined() // long ago
  })

  it('is not there at all while it cannot be written, and whole when it can', () => {
    const journal = written({ kind: 'lookup', unique: '2', ino: '7', inode: VERSION })
    journal.close()
    mkdirSync(`${path}.new`) // in the way of the snapshot
    journal.append({ kind: 'lookup', unique: '4', ino: '8', inode: VERSION })
    expect(existsSync(path)).toBe(false)
    expect(() => { checkJournal(path) }).toThrow()
    expect(() => MountJournal.open(path, log)).toThrow(expect.objectContaining({ code: 'ERR_NOT_FOUND' }) as Error)
    rmSync(`${path}.new`, { recursive: true })
    journal.append({ kind: 'lookup', unique: '6', ino: '9', inode: VERSION })
    expect([...MountJournal.open(path, log).state.inodes.keys()]).toEqual(['7', '8', '9'])
  })

  it('of another format is refused', () => {
    written()
    checkJournal(path)
    writeFileSync(path, readFileSync(path, 'utf8').replace('"format":1', '"format":2'))
    expect(() => { checkJournal(path) }).toThrow(expect.objectContaining({ code: 'ERR_CORRUPT' }) as Error)
    expect(() => MountJournal.open(path, log)).toThrow(expect.objectContaining({ code: 'ERR_CORRUPT' }) as Error)
  })
})

describe('a server that takes over', () => {
  interface Server {
    readonly handlers: Handlers
    readonly namespace: Namespace
    readonly commands: Commands
    readonly journal: MountJournal
    /** Handles given out, by inode. */
    readonly opened: bigint[]
    readonly released: number[]
  }

  let commits: string[]
  let finishCommit: (ref: VersionRef) => void
  let lists: number

  const source = {
    images: async () => { lists++; return ['debian-12'] },
    resolve: async () => REF,
    commit: async (_name: string, { id }: { id: string }) => {
      commits.push(id)
      return await new Promise<VersionRef>((resolve) => { finishCommit = resolve })
    }
  } as unknown as MirrorSource

  const working = (): string => join(folder, 'working')

  beforeEach(() => {
    mkdirSync(working())
    commits = []
    lists = 0
  })

  async function server (journal: MountJournal): Promise<Server> {
    const namespace = new Namespace({ source, clock, random, working: working(), startedMs: journal.mount.startedMs })
    const opened: bigint[] = []
    const released: number[] = []
    const files = {
      open: async ({ ino }: { ino: bigint }) => ({ fh: opened.push(ino), keepsPages: true }),
      release: async (fh: number) => { released.push(fh) },
      withCopy: async () => undefined as never,
      sizeOf: () => undefined
    } as unknown as OpenFiles
    const commands = new Commands({ source, journal, mount: journal.mount.holder, signal: new AbortController().signal })
    const operations = new Operations({ namespace, files, commands, working: working(), clock, missDeadlineMs: 200 })
    const handlers = new Handlers({ operations, journal, resend: true, onInit () {} })
    await namespace.restore(journal.state.inodes)
    handlers.restore(journal.state)
    commands.restore(journal.state.commands.values())
    return { handlers, namespace, commands, journal, opened, released }
  }

  const first = async (): Promise<Server> => await server(MountJournal.create(path, MOUNT, log))
  const next = async (): Promise<Server> => await server(MountJournal.open(path, log))

  function request (unique: bigint, nodeid: bigint, body: Buffer): Request {
    return { header: { len: 0, opcode: 0, unique, nodeid, uid: 0, gid: 0, pid: 1 }, body, signal: new AbortController().signal }
  }

  async function lookup ({ handlers }: Server, unique: bigint, parent: bigint, name: string): Promise<bigint> {
    const out = await handlers.lookup(request(unique, parent, Buffer.from(`${name}\0`)))
    return out!.readBigUInt64LE(0)
  }

  const knows = ({ namespace }: Server, ino: bigint): boolean => {
    try {
      namespace.inode(ino)
      return true
    } catch (error) {
      if (error instanceof ErrnoError && error.errno === ERRNO.ESTALE) return false
      throw error
    }
  }

  const forget = ({ handlers }: Server, ino: bigint, nlookup: number): void => {
    const body = Buffer.alloc(8)
    body.writeUInt32LE(nlookup)
    handlers.forget(request(0n, ino, body))
  }

  it('answers a LOOKUP that comes again as it was answered, and counts it once', async () => {
    const before = await first()
    const byName = await lookup(before, 2n, 1n, 'by-name')
    const image = await lookup(before, 4n, byName, 'debian-12')
    const version = await lookup(before, 6n, image, '1')
    const after = await next()
    expect(await lookup(after, RESENT | 6n, image, '1')).toBe(version)
    expect(await lookup(after, 8n, image, '1')).toBe(version)
    forget(after, version, 1)
    expect(knows(after, version)).toBe(true)
    forget(after, version, 1)
    expect(knows(after, version)).toBe(false)
    expect(knows(await next(), version)).toBe(false)
  })

  it('keeps the number of an alias that nobody has written to, and finds the one that was brought into being meanwhile', async () => {
    const before = await first()
    const blob = await lookup(before, 2n, 1n, BLOB)
    const alias = await lookup(before, 4n, blob, '1')
    const after = await next()
    expect(await lookup(after, 6n, blob, '1')).toBe(alias)
    expect(after.namespace.inode(alias)).toMatchObject({ unborn: true, size: 8192 })
    await createWorkingCopy(working(), `${BLOB}.1`, { ...REF, size: 12288 }, random, { ino: alias, origin: REF })
    const third = await next()
    expect(third.namespace.inode(alias)).toMatchObject({ unborn: false, size: 12288 })
    expect(await lookup(third, 8n, blob, '1')).toBe(alias)
    third.journal.append({ kind: 'born', ino: String(alias) })
    await removeWorkingCopy(working(), `${BLOB}.1`, random)
    expect((await next()).namespace.inode(alias)).toMatchObject({ unborn: false }) // stale: never made again under that number
  })

  it('keeps the time that a program has set', async () => {
    const before = await first()
    const blob = await lookup(before, 2n, 1n, BLOB)
    const alias = await lookup(before, 4n, blob, '1')
    const body = Buffer.alloc(88)
    body.writeUInt32LE(1 << 5, 0)
    body.writeUInt32LE(1600000000, 40)
    await before.handlers.setattr(request(6n, alias, body))
    expect((await next()).namespace.inode(alias)).toMatchObject({ mtimeMs: 1600000000_000 })
    expect((await next()).handlers.getattr(request(8n, blob, Buffer.alloc(16)))).toBeDefined()
  })

  it('opens and releases once what comes again, under the same handle', async () => {
    const before = await first()
    const blob = await lookup(before, 2n, 1n, BLOB)
    const alias = await lookup(before, 4n, blob, '1')
    const opened = await before.handlers.open(request(6n, alias, Buffer.alloc(8)))
    const after = await next()
    expect(await after.handlers.open(request(RESENT | 6n, alias, Buffer.alloc(8)))).toEqual(opened)
    expect(after.opened).toEqual([])
    const release = Buffer.alloc(24)
    release.writeUInt32LE(1)
    await after.handlers.release(request(8n, alias, release))
    const third = await next()
    await third.handlers.release(request(RESENT | 8n, alias, release))
    expect([after.released, third.released]).toEqual([[1], []])
    // One of which nothing is known: the pages may be those of before it was opened first.
    const anew = await third.handlers.open(request(RESENT | 10n, alias, Buffer.alloc(8)))
    expect([opened, anew].map((out) => out!.readUInt32LE(8) & 2)).toEqual([2, 0])
  })

  it('goes on with open folders, which it lists again', async () => {
    const before = await first()
    const byName = await lookup(before, 2n, 1n, 'by-name')
    const opened = await before.handlers.opendir(request(4n, byName, Buffer.alloc(8)))
    const after = await next()
    expect(await after.handlers.opendir(request(RESENT | 4n, byName, Buffer.alloc(8)))).toEqual(opened)
    expect(lists).toBe(1)
    const read = Buffer.alloc(40)
    read.writeUInt32LE(opened!.readUInt32LE(0), 0)
    read.writeUInt32LE(4096, 16)
    expect((await after.handlers.readdir(request(6n, byName, read)))!.toString('latin1')).toContain('debian-12')
    expect(lists).toBe(2)
    const release = Buffer.alloc(24)
    release.writeUInt32LE(opened!.readUInt32LE(0))
    after.handlers.releasedir(request(8n, byName, release))
    await expect((await next()).handlers.readdir(request(10n, byName, read))).rejects.toMatchObject({ errno: ERRNO.EBADF })
    const other = await (await next()).handlers.opendir(request(12n, byName, Buffer.alloc(8)))
    expect(other!.readUInt32LE(0)).toBe(2) // a handle is never given out twice
  })

  it('asks again for the commit that an attribute has started, under the same id, and reports its outcome', async () => {
    const before = await first()
    before.commands.start(2n, 'user.p2pvm.commit', Buffer.from('web'), 'vm1')
    const after = await next()
    after.commands.start(RESENT | 2n, 'user.p2pvm.commit', Buffer.from('web'), 'vm1')
    expect(commits).toEqual([`${MOUNT.holder}-2`, `${MOUNT.holder}-2`])
    finishCommit({ ...REF, version: 2 })
    const outcome = (of: Server): unknown => JSON.parse(of.commands.outcome('user.p2pvm.commit', 'vm1').toString())
    await expect.poll(() => outcome(after)).toEqual({ state: 'done', blob: BLOB, version: 2 })
    expect(outcome(await next())).toEqual({ state: 'done', blob: BLOB, version: 2 })
    expect(commits).toHaveLength(2)
  })
})
