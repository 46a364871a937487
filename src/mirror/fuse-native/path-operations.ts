/**
 * What fuse-native asks for, by path, as operations on inodes. libfuse keeps the kernel's node numbers by itself, one per
 * path: so that all aliases of a working copy have one page cache, `/<blob>/<version>` is a symbolic link here, to the
 * working copy's own name.
 *
 * State it owns: the handles that the kernel has, and with them what the namespace has to remember.
 */
import { constants } from 'node:fs'
import type { Handlers, Stat, StatFs } from 'fuse-native'
import { P2pvmError } from '../../protocols/errors.ts'
import type { Clock, Log } from '../../protocols/seams.ts'
import { ERRNO, ErrnoError, errnoOf } from '../errno.ts'
import { logFailure } from '../failures.ts'
import type { Kstatfs } from '../fuse/protocol.ts'
import { type Inode, NAME_BYTES_MAX } from '../namespace.ts'
import type { Operations } from '../operations.ts'
import { PAGE_BYTES } from '../page-map.ts'
import { type Trace, traceLine } from '../trace.ts'

export interface PathOperationsComponents {
  readonly clock: Clock
  readonly log: Log
  readonly trace?: Trace | undefined
}

interface Handle {
  readonly path: string
  readonly fh: number
  readonly inode: Inode
  /** Opened with O_DIRECT: in sectors. */
  readonly direct: boolean
}

const S_IFLNK = 0o120777
const WRITES = constants.O_WRONLY | constants.O_RDWR
/** libfuse hands the handles on as 32 bits, and takes 0 for none. */
const HANDLE_MAX = 2 ** 31 - 1
/** Of `StatFs`. */
const COUNT_MAX = 2 ** 32 - 1

export class PathOperations {
  readonly #components: PathOperationsComponents
  readonly #begun = Promise.withResolvers<void>()
  readonly #signal: AbortSignal
  #begunWith: Operations | undefined
  readonly #handles = new Map<number, Handle>()
  /** As long as it is open, this is the inode of its path: asked for with every write, and not to be looked up on disk each time. */
  readonly #open = new Map<string, { readonly inode: Inode, handles: number }>()
  #lastHandle = 0
  #lastRequest = 0n
  readonly counters: Record<string, number> = {}

  /** `signal` aborts when the mount ends. */
  constructor (signal: AbortSignal, components: PathOperationsComponents) {
    this.#signal = signal
    this.#components = components
  }

  /** Requests wait until this is called, once. */
  begin (operations: Operations): void {
    this.#begunWith = operations
    this.#begun.resolve()
  }

  get #operations (): Operations {
    if (this.#begunWith === undefined) throw new P2pvmError('ERR_INTERNAL', 'a request before the beginning')
    return this.#begunWith
  }

  handlers (): Handlers {
    const answer = <T>(name: string, path: string, done: (result: number, value?: T) => void, work: () => Promise<T>): void => {
      void this.#serve(name, path, work, (value) => { done(0, value) }, done)
    }
    const count = (name: string, path: string, done: (result: number) => void, work: () => Promise<number>): void => {
      void this.#serve(name, path, work, done, done)
    }
    const act = (name: string, path: string, done: (result: number) => void, work: () => Promise<unknown>): void => {
      void this.#serve(name, path, work, () => { done(0) }, done)
    }
    const refuse = (name: string, path: string, done: (result: number) => void): void => {
      act(name, path, done, async () => { throw new ErrnoError(ERRNO.EROFS) })
    }
    const change = (name: string, path: string, done: (result: number) => void, what: Parameters<Operations['change']>[1]): void => {
      act(name, path, done, async () => { await this.#operations.change(await this.#inodeAt(path), what) })
    }
    return {
      getattr: (path, done) => { answer('getattr', path, done, async () => this.#stat(path, await this.#inodeAt(path))) },
      fgetattr: (path, _handle, done) => { answer('fgetattr', path, done, async () => this.#stat(path, await this.#inodeAt(path))) },
      readlink: (path, done) => { answer('readlink', path, done, async () => linkTarget(path, await this.#inodeAt(path)) ?? refuseLink()) },
      readdir: (path, done) => { answer('readdir', path, done, async () => await this.#list(path)) },
      open: (path, flags, done) => { answer('open', path, done, async () => await this.#openFile(path, flags)) },
      release: (path, handle, done) => { act('release', path, done, async () => { await this.#release(handle) }) },
      read: (path, handle, room, length, offset, done) => { count('read', path, done, async () => await this.#read(handle, room, length, offset)) },
      write: (path, handle, bytes, length, offset, done) => { count('write', path, done, async () => await this.#write(handle, bytes.subarray(0, length), offset)) },
      // What was written is here already; durability is for fsync.
      flush: (path, _handle, done) => { act('flush', path, done, async () => {}) },
      fsync: (path, _onlyBytes, handle, done) => { act('fsync', path, done, async () => { await this.#operations.files.fsync(this.#handle(handle).fh, 0) }) },
      statfs: (path, done) => { answer('statfs', path, done, async () => statFs(await this.#operations.statfs())) },
      truncate: (path, size, done) => { change('truncate', path, done, { size }) },
      ftruncate: (path, _handle, size, done) => { change('ftruncate', path, done, { size }) },
      // fuse-native gives the time of access for both.
      utimens: (path, _atimeMs, mtimeMs, done) => { change('utimens', path, done, { mtimeMs }) },
      chmod: (path, _mode, done) => { change('chmod', path, done, { ownership: true }) },
      chown: (path, _uid, _gid, done) => { change('chown', path, done, { ownership: true }) },
      setxattr: (path, name, value, _position, _flags, done) => {
        const bytes = Buffer.from(value) // the library takes it away with the answer
        act('setxattr', path, done, async () => { await this.#operations.setAttribute(++this.#lastRequest, await this.#inodeAt(path), name, bytes) })
      },
      getxattr: (path, name, _position, done) => { answer('getxattr', path, done, async () => await this.#operations.attribute(await this.#inodeAt(path), name)) },
      listxattr: (path, done) => { answer('listxattr', path, done, async () => this.#operations.attributeNames(await this.#inodeAt(path))) },
      // This tree is not made by its users.
      removexattr: (path, _name, done) => { refuse('removexattr', path, done) },
      create: (path, _mode, done) => { refuse('create', path, done) },
      mknod: (path, _mode, _device, done) => { refuse('mknod', path, done) },
      mkdir: (path, _mode, done) => { refuse('mkdir', path, done) },
      symlink: (_from, to, done) => { refuse('symlink', to, done) },
      link: (from, _to, done) => { refuse('link', from, done) },
      rename: (from, _to, done) => { refuse('rename', from, done) },
      unlink: (path, done) => { refuse('unlink', path, done) },
      rmdir: (path, done) => { refuse('rmdir', path, done) }
    }
  }

  /** Answers exactly once, and never throws: who asks is a thread of the library that waits for it. */
  async #serve<T> (name: string, path: string, work: () => Promise<T>, succeed: (value: T) => void, fail: (result: number) => void): Promise<void> {
    const { clock, log, trace } = this.#components
    const startedAt = trace === undefined ? 0 : clock.monotonic()
    this.counters[name] = (this.counters[name] ?? 0) + 1
    let errno = 0
    let value: T | undefined
    try {
      await this.#begun.promise
      value = await work()
    } catch (error) {
      errno = errnoOf(error)
      logFailure(log, name, error)
    }
    if (errno === 0) succeed(value as T)
    else fail(-errno)
    trace?.(traceLine(`${name} ${JSON.stringify(path)}`, errno, typeof value === 'number' ? String(value) : 'done', clock.monotonic() - startedAt))
  }

  async #inodeAt (path: string): Promise<Inode> {
    const open = this.#open.get(path)
    return open !== undefined ? open.inode : await this.#operations.walk(path.split('/').filter((name) => name !== ''), this.#signal)
  }

  #stat (path: string, inode: Inode): Stat {
    const { mode, uid, gid, size, nlink, mtimeMs } = this.#operations.attributes(inode)
    const target = linkTarget(path, inode)
    const bytes = target?.length ?? size
    return {
      mode: target === undefined ? mode : S_IFLNK,
      uid, gid, nlink,
      size: bytes,
      blksize: PAGE_BYTES,
      blocks: Math.ceil(bytes / BLOCK_BYTES),
      atime: mtimeMs,
      mtime: mtimeMs,
      ctime: mtimeMs
    }
  }

  async #list (path: string): Promise<string[]> {
    const entries = await this.#operations.list(await this.#inodeAt(path), this.#signal)
    return ['.', '..', ...entries.map(({ name }) => name)]
  }

  async #openFile (path: string, flags: number): Promise<number> {
    const inode = await this.#inodeAt(path)
    const { fh } = await this.#operations.open(inode, { writes: (flags & WRITES) !== 0 })
    do this.#lastHandle = this.#lastHandle % HANDLE_MAX + 1
    while (this.#handles.has(this.#lastHandle))
    this.#operations.namespace.remember(inode)
    this.#handles.set(this.#lastHandle, { path, fh, inode, direct: (flags & constants.O_DIRECT) !== 0 })
    const open = this.#open.get(path)
    if (open === undefined) this.#open.set(path, { inode, handles: 1 })
    else open.handles++
    return this.#lastHandle
  }

  async #release (number: number): Promise<void> {
    const { path, fh, inode } = this.#handle(number)
    this.#handles.delete(number)
    const open = this.#open.get(path)
    if (open !== undefined && --open.handles === 0) this.#open.delete(path)
    this.#operations.namespace.forget(inode.ino, 1)
    await this.#operations.files.release(fh)
  }

  async #read (number: number, room: Buffer, length: number, offset: number): Promise<number> {
    const { fh, direct } = this.#handle(number)
    const file = this.#operations.files.byFh(fh)
    const end = Math.min(offset + length, file.size)
    // As a disk's own file system has it, and as the direct driver's workers answer.
    if (direct && end > offset && !file.wholeSectors(offset, end)) throw new ErrnoError(ERRNO.EINVAL)
    return (await file.read(offset, length)).copy(room)
  }

  async #write (number: number, bytes: Buffer, offset: number): Promise<number> {
    const { fh, inode } = this.#handle(number)
    await this.#operations.files.byFh(fh).write(offset, bytes)
    if (inode.kind === 'copy') inode.mtimeMs = this.#components.clock.now()
    return bytes.length
  }

  #handle (number: number): Handle {
    const handle = this.#handles.get(number)
    if (handle === undefined) throw new ErrnoError(ERRNO.EBADF)
    return handle
  }
}

const BLOCK_BYTES = 512

/** Where an alias leads, from its own folder; undefined for what is no alias. */
export function linkTarget (path: string, inode: Inode): string | undefined {
  return inode.kind === 'copy' && !path.startsWith('/working/') ? `../working/${inode.name}` : undefined
}

function refuseLink (): never {
  throw new ErrnoError(ERRNO.EINVAL)
}

/** In larger units where there are too many of them. */
export function statFs ({ bsize, blocks, bfree, bavail, files, ffree }: Kstatfs): StatFs {
  let unit = bsize
  while (blocks * bsize / unit > COUNT_MAX) unit *= 2
  const scaled = (count: number): number => Math.floor(count * bsize / unit)
  const favail = Math.min(ffree, COUNT_MAX)
  return {
    bsize: unit, frsize: unit, blocks: scaled(blocks), bfree: scaled(bfree), bavail: scaled(bavail),
    files: Math.min(files, COUNT_MAX), ffree: favail, favail, namemax: NAME_BYTES_MAX
  }
}
