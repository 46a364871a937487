/**
 * What the mirror uses of node:fs, node:fs/promises and its own system calls, over `CrashingFiles`: for `vi.mock`. Paths below
 * ROOT and the descriptors of what is open there go to the files of the moment, all others to the real modules.
 *
 * What is asynchronous takes effect some turns later, as the seed of the moment says: who does not wait for it has no right to it.
 */
import type * as fs from 'node:fs'
import type * as fsPromises from 'node:fs/promises'
import { promisify } from 'node:util'
import type * as systemCalls from '../../src/mirror/system-calls.ts'
import type { Chance } from '../harness/seed.ts'
import { type CrashingFiles, systemError } from './crashing-files.ts'

export const ROOT = '/simulated'
const FD_MIN = 1_000_000
const TURNS_MAX = 3
const DRAWN = 17
const O_CREAT = 0o100

/** Of the process that runs: its files, and how many turns each of its calls takes, round and round. */
const world: { files: CrashingFiles | undefined, turns: number[], calls: number } = { files: undefined, turns: [0], calls: 0 }
let lastFd = FD_MIN

/** The process of `files` begins; the one before has no descriptors any more. */
export function runOn (files: CrashingFiles, chance: Chance): void {
  world.files = files
  world.calls = 0
  world.turns = Array.from({ length: DRAWN }, () => chance.below(TURNS_MAX + 1))
}

function files (): CrashingFiles {
  if (world.files === undefined) throw new Error('no files are simulated at the moment')
  return world.files
}

const isOurs = (path: unknown): path is string => typeof path === 'string' && path.startsWith(ROOT)

/** The same process all along, except that files never change hands. */
async function later<T> (work: (of: CrashingFiles) => T): Promise<T> {
  const of = files()
  for (let turns = world.turns[world.calls++ % world.turns.length] ?? 0; turns > 0; turns--) await Promise.resolve()
  return work(of)
}

function openNow (path: string, flags: string | number): number {
  const create = typeof flags === 'number' ? (flags & O_CREAT) !== 0 : flags.startsWith('w')
  files().open(path, { create, exclusive: flags === 'wx', truncate: flags === 'w' }, ++lastFd)
  return lastFd
}

function readNow (path: string): Buffer {
  const node = files().find(path)
  if (node.kind !== 'file') throw systemError('EISDIR', path)
  const bytes = Buffer.alloc(node.now.size)
  files().read(node, bytes, 0, bytes.length, 0)
  return bytes
}

/** Of /proc, which tells boots and processes from one another. */
function ofProc (path: unknown): string | undefined {
  if (path === '/proc/sys/kernel/random/boot_id') return `00000000-0000-4000-8000-${files().boot.replace(/\D/g, '').padStart(12, '0')}\n`
  if (path !== `/proc/${process.pid}/stat`) return undefined
  return `${process.pid} (node) S ${Array.from({ length: 18 }, () => '0').join(' ')} ${files().process} 0`
}

const textOf = (bytes: Buffer, encoding: unknown): Buffer | string => encoding === undefined ? bytes : bytes.toString('utf8')

export function fsOver (real: typeof fs): typeof fs {
  const read = (fd: number, ...rest: unknown[]): void => { (real.read as (...args: unknown[]) => void)(fd, ...rest) }
  Object.defineProperty(read, promisify.custom, {
    value: async (fd: number, buffer: Uint8Array, at: number, length: number, position: number) =>
      ({ buffer, bytesRead: await later((of) => of.read(of.file(fd), buffer, at, length, position)) })
  })
  const changes = {
    read,
    openSync: (path: string, flags: string | number, mode?: number) => isOurs(path) ? openNow(path, flags) : real.openSync(path, flags, mode),
    closeSync: (fd: number) => { if (fd >= FD_MIN) files().close(fd); else real.closeSync(fd) },
    readSync: (fd: number, buffer: Uint8Array, at: number, length: number, position: number) =>
      fd >= FD_MIN ? files().read(files().file(fd), buffer, at, length, position) : real.readSync(fd, buffer, at, length, position),
    writeSync: (fd: number, buffer: Uint8Array, at: number, length: number, position: number) =>
      fd >= FD_MIN ? files().write(files().file(fd), buffer, at, length, position) : real.writeSync(fd, buffer, at, length, position),
    ftruncateSync: (fd: number, size: number) => { files().truncate(files().file(fd), size) },
    fdatasync: (fd: number, done: (error: Error | null) => void) => {
      const end = files().beginSync(files().file(fd))
      later(end).then(() => { done(null) }, done)
    },
    fstatSync: (fd: number) => ({ size: files().file(fd).now.size, mtimeMs: 0, nlink: 1 }),
    futimesSync: () => {},
    mkdirSync: (path: string) => { files().mkdir(path) },
    unlinkSync: (path: string) => { files().unlink(path) },
    readFileSync: (path: string, encoding?: unknown) => {
      const proc = ofProc(path)
      if (proc !== undefined) return proc
      return isOurs(path) ? textOf(readNow(path), encoding) : real.readFileSync(path, encoding as 'utf8')
    }
  }
  return { ...real, ...changes } as unknown as typeof fs
}

export function fsPromisesOver (real: typeof fsPromises): typeof fsPromises {
  const handle = (fd: number): unknown => ({
    writeFile: async (content: string | Uint8Array) => {
      const bytes = Buffer.from(content as string)
      await later((of) => of.write(of.file(fd), bytes, 0, bytes.length, 0))
    },
    sync: async () => { await later(files().beginSync(files().node(fd))) },
    close: async () => { await later((of) => { of.close(fd) }) }
  })
  const rm = async (path: string): Promise<void> => {
    const node = await later((of) => of.find(path)).catch(() => undefined)
    if (node === undefined) return
    if (node.kind === 'folder') for (const name of [...node.now.keys()]) await rm(`${path}/${name}`)
    await later((of) => { of.unlink(path) })
  }
  const changes = {
    rm,
    mkdir: async (path: string) => { await later((of) => { of.mkdir(path) }) },
    open: async (path: string, flags: string) => handle(await later(() => openNow(path, flags))),
    rename: async (from: string, to: string) => { await later((of) => { of.rename(from, to) }) },
    readdir: async (path: string) => await later((of) => of.names(path)),
    unlink: async (path: string) => { await later((of) => { of.unlink(path) }) },
    readFile: async (path: string, encoding?: unknown) => {
      const proc = ofProc(path)
      if (proc !== undefined) return proc
      return isOurs(path) ? await later(() => textOf(readNow(path), encoding)) : await real.readFile(path, encoding as 'utf8')
    },
    writeFile: async (path: string, content: string) => {
      const fd = await later(() => openNow(path, 'w'))
      const bytes = Buffer.from(content)
      await later((of) => of.write(of.file(fd), bytes, 0, bytes.length, 0))
      await later((of) => { of.close(fd) })
    }
  }
  return { ...real, ...changes } as unknown as typeof fsPromises
}

export function systemCallsOver (real: typeof systemCalls): typeof systemCalls {
  return { ...real, punchHole: (fd, offset, length) => files().punch(files().file(fd), offset, offset + length) }
}
