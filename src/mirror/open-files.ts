/**
 * The files of the mount that are open: one per inode, whatever the number of handles, under one number (`fh`) that is
 * never used again. Opening and closing go one at a time, so that a file that is opened while it is being closed is whole.
 */
import { P2pvmError } from '../protocols/errors.ts'
import { ERRNO, ErrnoError } from './errno.ts'
import { MountedCopy, type MountedCopyComponents } from './mounted-copy.ts'
import { type Growable, MountedFile } from './mounted-file.ts'
import { Mutex } from './mutex.ts'
import type { FileEntry } from './kernel-state.ts'
import type { Inode } from './namespace.ts'
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE } from './system-calls.ts'

export interface OpenFilesComponents extends MountedCopyComponents {
  /** Makes the workers forget a file; resolves when none can be using it. */
  readonly withdraw: (fh: number) => Promise<void>
  /** The kernel writes back and forgets its pages of `[from, to)`; resolves when it has. */
  readonly flushPages: (ino: bigint, from: number, to: number) => Promise<void>
}

/** lseek(2); the kernel knows the other kinds by itself. */
export const SEEK_DATA = 3
export const SEEK_HOLE = 4

const MODES_OF_ZERO: readonly number[] = [FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE]
const MODES_OF_ALLOCATION: readonly number[] = [0, FALLOC_FL_KEEP_SIZE]

interface OpenFile {
  readonly ino: bigint
  readonly file: MountedFile
  readonly copy: MountedCopy | undefined
  /** Handles of the kernel, and operations of the daemon. */
  users: number
}

export class OpenFiles {
  readonly #components: OpenFilesComponents
  readonly #byIno = new Map<bigint, OpenFile>()
  readonly #byFh = new Map<number, OpenFile>()
  readonly #turn = new Mutex()
  readonly #flushing = new Mutex()
  #lastFh = 0

  constructor (components: OpenFilesComponents) {
    this.#components = components
  }

  /**
   * What the kernel has open from a server before this one, and `lastFh`, the last handle that it was given. What cannot be
   * opened any more is left out: its users get EBADF. `inodeOf` may throw.
   */
  async restore (files: Iterable<readonly [fh: number, FileEntry]>, lastFh: number, inodeOf: (ino: bigint) => Inode): Promise<void> {
    for (const [fh, { ino, users }] of files) {
      try {
        const open = await this.#openAs(fh, inodeOf(BigInt(ino)))
        open.users = users
        if (open.copy !== undefined) open.copy.openCount = users
      } catch (error) {
        this.#components.log.error('a file that was open cannot be opened again', { ino, error })
      }
    }
    this.#lastFh = lastFh
  }

  /** A working copy between the seal and the end of a commit stays open, though no program has it open. */
  async resumeCommit (inode: Inode): Promise<void> {
    const open = this.#byIno.get(inode.ino) ?? await this.#openFirst(inode)
    open.copy?.resumeCommit()
    if (open.users === 0 && open.copy?.committing !== true) await this.#close(open)
  }

  /** Brings every open file to the workers, which have just been started. */
  async publish (): Promise<void> {
    for (const { file } of [...this.#byFh.values()]) await file.change()
  }

  /** For the kernel. `keepsPages`: those that it has of this inode are still right. */
  async open (inode: Inode): Promise<{ fh: number, keepsPages: boolean }> {
    return await this.#turn.run(async () => {
      const before = this.#byIno.get(inode.ino)
      const open = before ?? await this.#openFirst(inode)
      open.users++
      if (open.copy !== undefined) open.copy.openCount++
      return { fh: open.file.fh, keepsPages: before !== undefined || open.copy === undefined || open.copy.keepsPages }
    })
  }

  async release (fh: number): Promise<void> {
    // Not in turn: after the last close of a machine's disk it may take seconds, and others want to open theirs.
    if (this.#byFh.get(fh)?.users === 1) await this.#byFh.get(fh)?.copy?.settle()
    await this.#turn.run(async () => {
      const open = this.#byFh.get(fh)
      if (open === undefined) return
      if (open.copy !== undefined) open.copy.openCount--
      await this.#leave(open)
    })
  }

  /** For the daemon: the working copy is open while `work` runs, and stays so from a seal to the end of its commit. */
  async withCopy<T> (inode: Inode, work: (copy: MountedCopy) => Promise<T>): Promise<T> {
    const open = await this.#turn.run(async () => {
      const found = this.#byIno.get(inode.ino) ?? await this.#openFirst(inode)
      found.users++
      return found
    })
    try {
      if (open.copy === undefined) throw new P2pvmError('ERR_NOT_ALLOWED', 'a version never changes: make a working copy of it')
      return await work(open.copy)
    } finally {
      await this.#turn.run(async () => { await this.#leave(open) })
    }
  }

  /** EBADF when there is none. */
  byFh (fh: number): MountedFile {
    const open = this.#byFh.get(fh)
    if (open === undefined) throw new ErrnoError(ERRNO.EBADF)
    return open.file
  }

  /** Of the working copy with this inode number, bytes, while it is open: whoever asks by another `Inode` of it sees it grow. */
  sizeOf (ino: bigint): number | undefined {
    return this.#byIno.get(ino)?.file.size
  }

  /** Where data or a hole begins at or after `offset`. ENXIO at or past the end, and when there is no more data. */
  async seek (fh: number, offset: number, whence: number): Promise<number> {
    if (whence !== SEEK_DATA && whence !== SEEK_HOLE) throw new ErrnoError(ERRNO.EINVAL)
    const file = this.byFh(fh)
    if (offset >= file.size) throw new ErrnoError(ERRNO.ENXIO)
    const found = whence === SEEK_DATA ? await this.#seekData(fh, offset) : await this.#seekHole(fh, offset)
    if (found === undefined) throw new ErrnoError(ERRNO.ENXIO)
    return found
  }

  async #seekData (fh: number, offset: number): Promise<number | undefined> {
    const file = this.byFh(fh)
    const found = await file.nextData(offset)
    if (found === offset || !await this.#flush(fh, offset, found ?? file.size)) return found
    return await this.byFh(fh).nextData(offset)
  }

  async #seekHole (fh: number, offset: number): Promise<number> {
    for (let from = offset; ;) {
      const file = this.byFh(fh)
      const found = await file.nextHole(from)
      if (found >= file.size) return found
      const end = await file.nextData(found) ?? file.size
      if (!await this.#flush(fh, found, end)) return found
      from = await this.byFh(fh).nextHole(found)
      if (from < end) return from
    }
  }

  /**
   * What a program has written and the kernel has not is no hole, and the kernel does not write it back before it asks. One at
   * a time: each holds a thread of the pool until the writes have been answered, which may need another. False: nothing to do.
   */
  async #flush (fh: number, from: number, to: number): Promise<boolean> {
    const open = this.#byFh.get(fh)
    if (open?.copy === undefined) return false
    await this.#flushing.run(async () => { await this.#components.flushPages(open.ino, from, to) })
    return true
  }

  /**
   * Zeros a range, or does nothing: space on the disk is not reserved. Past the end the file grows, but with KEEP_SIZE.
   */
  async fallocate (fh: number, offset: number, length: number, mode: number): Promise<void> {
    const file = this.byFh(fh)
    if (this.#byFh.get(fh)?.copy === undefined) throw new ErrnoError(ERRNO.EROFS)
    const zeroes = MODES_OF_ZERO.includes(mode)
    if (!zeroes && !MODES_OF_ALLOCATION.includes(mode)) throw new ErrnoError(ERRNO.EOPNOTSUPP)
    if (length === 0) throw new ErrnoError(ERRNO.EINVAL)
    const end = offset + length
    if (zeroes) await file.zero(offset, Math.min(end, file.size))
    if ((mode & FALLOC_FL_KEEP_SIZE) === 0 && end > file.size) await file.grow(end)
  }

  async fsync (fh: number, pid: number): Promise<void> {
    await this.#byFh.get(fh)?.copy?.fsync(pid)
  }

  /** See `Overlay`. */
  writeBack (fh: number): void {
    this.#byFh.get(fh)?.file.layers.top?.writeBack()
  }

  /** Files that a program or the daemon has open. */
  get openCount (): number {
    return this.#byFh.size
  }

  copies (): MountedCopy[] {
    return [...this.#byIno.values()].flatMap(({ copy }) => copy ?? [])
  }

  async #openFirst (inode: Inode): Promise<OpenFile> {
    return await this.#openAs(++this.#lastFh, inode)
  }

  async #openAs (fh: number, inode: Inode): Promise<OpenFile> {
    let open: OpenFile
    if (inode.kind === 'version') {
      const table = this.#components.tables.acquire(inode.ref)
      const file = new MountedFile(fh, inode.ref.size, { table, top: undefined, sealed: undefined, routeWrites: true }, this.#components, NEVER_CHANGES)
      await file.change()
      open = { ino: inode.ino, file, copy: undefined, users: 0 }
    } else if (inode.kind === 'copy') {
      const copy = await MountedCopy.open(inode, fh, this.#components)
      open = { ino: inode.ino, file: copy.file, copy, users: 0 }
    } else {
      throw new ErrnoError(ERRNO.EISDIR)
    }
    this.#byIno.set(inode.ino, open)
    this.#byFh.set(fh, open)
    return open
  }

  async #leave (open: OpenFile): Promise<void> {
    open.users--
    if (open.users === 0 && open.copy?.committing !== true) await this.#close(open)
  }

  async #close (open: OpenFile): Promise<void> {
    this.#byIno.delete(open.ino)
    this.#byFh.delete(open.file.fh)
    await this.#components.withdraw(open.file.fh)
    if (open.copy !== undefined) await open.copy.close()
    else await this.#components.tables.release(open.file.layers.table)
  }

  /** The mount has ended. */
  async close (): Promise<void> {
    await this.#turn.run(async () => {
      for (const open of [...this.#byIno.values()]) await this.#close(open)
    })
  }
}

async function refuse (): Promise<never> {
  throw new ErrnoError(ERRNO.EROFS)
}

const NEVER_CHANGES: Growable = { makeWritable: refuse, grow: refuse }
