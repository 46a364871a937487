/**
 * A working copy that this mount has open, and the mount's half of CLONE and COMMIT (`Sealable`).
 *
 * The seal, in order (design.md, "COMMIT is a cut"):
 *   1. a new overlay is made, and state.json names it: no change yet, since it is empty
 *   2. a first fsync by another process flushes ahead; the disk is not waited for
 *   3. a second one: when its FUSE_FSYNC arrives the kernel has delivered every dirty page and holds the writers of the file.
 *      The overlays are swapped, every worker passes, and only then it is answered. That is the freeze; it touches no disk.
 *   4. the sealed overlay is made durable, and is the daemon's to read
 * Where the kernel keeps no writes to itself (`driver.ts`, writeback), 3 is between any two requests, without an fsync.
 * Stores through mmap are not held by the kernel: such a page is in the cut as it was when it was last written back.
 *
 * A sealed overlay found when the file is opened (a crash in the middle of a commit) stays where it is: reads go through it.
 * The daemon, which knows what became of the commit, rebases or unseals; the next seal folds it otherwise. Each of these is
 * safe to ask for again when nobody heard the answer: so a FUSE server may be killed at any point, and the next one be asked.
 */
import { setImmediate as afterIo } from 'node:timers/promises'
import { withDeadline } from '../protocols/abort.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { Clock, Log, Random } from '../protocols/seams.ts'
import { ERRNO, ErrnoError } from './errno.ts'
import { type Growable, MountedFile, type MountedFileComponents } from './mounted-file.ts'
import { Mutex } from './mutex.ts'
import type { Journal } from './mount-journal.ts'
import type { CopyInode } from './namespace.ts'
import type { LockOwner } from './processes.ts'
import { foldUnder, type Overlay } from './overlay.ts'
import { withSignal } from './patience.ts'
import type { Together } from './seal-together.ts'
import type { Sealable, Sealed } from './sealable.ts'
import type { VersionRef } from './source.ts'
import type { VersionTables } from './version-tables.ts'
import { basedOn, baseOf, createWorkingCopy, LockedCopy } from './working-copy.ts'

/** A process that fsyncs the file through the mount; the FUSE server must never touch its own mount. */
export interface FsyncProcess {
  readonly pid: number
  readonly done: Promise<void>
}

export interface MountedCopyComponents extends MountedFileComponents {
  readonly tables: VersionTables
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
  readonly working: string
  /** Of this mount; see WorkingCopyState.holder. */
  readonly holder: string
  /** In whose name working copies are locked; undefined: of this process. */
  readonly owner?: LockOwner | undefined
  /** Of a mount that outlives its server. */
  readonly journal?: Journal
  readonly startFsync: (name: string, signal: AbortSignal) => FsyncProcess
  /** See `driver.ts`. */
  readonly writeback: boolean
}

/** Flushing waits for the slow path of single writes, and those for the network, each for its own deadline. */
const FSYNC_DEADLINE_MS = 120_000
/** Its page map is then a gigabyte of memory. */
const COPY_BYTES_MAX = 4 * 2 ** 40

export class MountedCopy implements Sealable, Growable {
  readonly inode: CopyInode
  readonly file: MountedFile
  /** The kernel's pages of this inode are of bytes that are still the file's. */
  readonly keepsPages: boolean
  readonly #components: MountedCopyComponents
  readonly #operations = new Mutex()
  readonly #making = new Mutex()
  readonly #growing = new Mutex()
  /** What the fsyncs of our own processes mean, by pid. */
  readonly #cuts = new Map<number, () => Promise<void>>()
  #locked: LockedCopy | undefined
  #sealedHere = false
  /** Told by `open-files.ts`. */
  openCount = 0

  private constructor (inode: CopyInode, fh: number, locked: LockedCopy | undefined, keepsPages: boolean, components: MountedCopyComponents) {
    this.inode = inode
    this.#components = components
    this.#locked = locked
    this.keepsPages = keepsPages
    const table = components.tables.acquire(locked === undefined ? inode.ref : baseOf(locked.state))
    const layers = { table, top: locked?.top, sealed: locked?.sealed, routeWrites: false }
    this.file = new MountedFile(fh, locked?.state.size ?? inode.size, layers, components, this)
  }

  /** ERR_CONFLICT while another process has it open; ESTALE when the name belongs to another working copy now. */
  static async open (inode: CopyInode, fh: number, components: MountedCopyComponents): Promise<MountedCopy> {
    const locked = await openLocked(inode, components)
    const keepsPages = locked === undefined || locked.state.holder === components.holder
    if (!keepsPages) await locked.change({ holder: components.holder })
    const copy = new MountedCopy(inode, fh, locked, keepsPages, components)
    await copy.file.change()
    return copy
  }

  /** True while a commit is between its seal and its end: it stays open then, whoever closes it. */
  get committing (): boolean {
    return this.#sealedHere
  }

  /** Sealed by a server before this one: the commit's end is still to come. */
  resumeCommit (): void {
    this.#sealedHere = this.#locked?.sealed !== undefined
  }

  #noteCommitting (on: boolean): void {
    if (this.#sealedHere === on) return
    this.#sealedHere = on
    this.#components.journal?.append({ kind: 'committing', workingCopy: this.inode.name, on })
  }

  /** The working copy of an alias that nobody has written to comes into being now. */
  async makeWritable (): Promise<LockedCopy> {
    const { inode } = this
    return await this.#making.run(async () => {
      if (this.#locked !== undefined) return this.#locked
      const { working, random, holder, owner, journal } = this.#components
      await createWorkingCopy(working, inode.name, inode.ref, random, { ino: inode.ino, origin: inode.ref, holder })
      inode.unborn = false
      journal?.append({ kind: 'born', ino: String(inode.ino) })
      this.#locked = await LockedCopy.open(working, inode.name, random, owner)
      await this.file.change({ top: this.#locked.top })
      return this.#locked
    })
  }

  /**
   * Makes the file larger, with zeros: on disk first. Not in turn with the operations: a seal waits for the kernel, which may
   * wait for this. EFBIG beyond COPY_BYTES_MAX.
   */
  async grow (size: number): Promise<void> {
    if (size > COPY_BYTES_MAX) throw new ErrnoError(ERRNO.EFBIG)
    const locked = await this.makeWritable()
    await this.#growing.run(async () => {
      if (size <= this.file.size) return
      await locked.recordGrowth(size)
      await this.file.growTo(size, () => { locked.top.grow(size) })
      this.inode.size = size
    })
  }

  /** FUSE_FSYNC by process `pid`. */
  async fsync (pid: number): Promise<void> {
    const cut = this.#cuts.get(pid)
    if (cut === undefined) await this.#locked?.sync()
    else await cut()
  }

  /** `together`: with others, at one moment. */
  async seal (signal: AbortSignal, together?: Together): Promise<Sealed> {
    return await this.#operations.run(async () => {
      signal.throwIfAborted()
      const { clock, signal: ending, writeback } = this.#components
      const locked = await this.makeWritable()
      if (locked.sealed !== undefined) await this.#fold(locked)
      const next = await locked.prepareCut()
      let freezeMs
      try {
        await this.#flushAhead(signal)
        freezeMs = await withDeadline(clock, FSYNC_DEADLINE_MS, [signal, ending], async (own) => {
          if (together !== undefined) await withSignal(own, together.flushed.arrive())
          const held = async (): Promise<void> => { if (together !== undefined) await withSignal(own, together.held.arrive()) }
          return writeback ? await this.#cutInFsync(locked, next, held, own) : await this.#cut(locked, next, held)
        })
      } catch (error) {
        if (locked.top !== next) await locked.giveUpCut(next)
        throw error
      }
      const { sealed } = locked
      if (sealed === undefined) throw new P2pvmError('ERR_INTERNAL', 'the cut left no sealed overlay')
      this.#noteCommitting(true)
      await sealed.sync()
      return { base: baseOf(locked.state), size: sealed.size, overlay: sealed.folder, freezeMs }
    })
  }

  /**
   * The kernel delivers what it has not written back. Its FUSE_FSYNC is answered without a sync: the kernel holds the file's
   * writers until the answer, and a gigabyte takes the disk seconds.
   */
  async #flushAhead (signal: AbortSignal): Promise<void> {
    const { clock, startFsync, signal: ending } = this.#components
    await withDeadline(clock, FSYNC_DEADLINE_MS, [signal, ending], async (own) => {
      const process = startFsync(this.inode.name, own)
      this.#cuts.set(process.pid, async () => {})
      try {
        await process.done
      } finally {
        this.#cuts.delete(process.pid)
      }
    })
  }

  /** How long it took, milliseconds, with the wait for those that are cut with it: what is written from then on goes to `next`. */
  async #cut (locked: LockedCopy, next: Overlay, held: () => Promise<void>): Promise<number> {
    const { clock } = this.#components
    const startedAt = clock.monotonic()
    await held()
    locked.cut(next)
    await this.file.change({ top: locked.top, sealed: locked.sealed })
    return clock.monotonic() - startedAt
  }

  async #cutInFsync (locked: LockedCopy, next: Overlay, held: () => Promise<void>, signal: AbortSignal): Promise<number> {
    const { clock, log } = this.#components
    let freezeMs: number | undefined
    const startedAt = clock.monotonic()
    const process = this.#components.startFsync(this.inode.name, signal)
    this.#cuts.set(process.pid, async () => {
      this.#cuts.delete(process.pid)
      freezeMs = await this.#cut(locked, next, held)
    })
    try {
      await process.done
    } catch (error) {
      if (freezeMs === undefined) throw error // else the cut stands, whatever became of the process after it
    } finally {
      this.#cuts.delete(process.pid)
    }
    if (freezeMs === undefined) throw new P2pvmError('ERR_INTERNAL', 'the fsync of the seal did not reach the server')
    // The kernel holds the inode's lock from the start of its fsync on: at most as long as that process lived.
    log.info('sealed', { name: this.inode.name, freezeMs, heldMsMax: clock.monotonic() - startedAt })
    return freezeMs
  }

  async rebase (version: VersionRef, signal: AbortSignal): Promise<void> {
    await this.#operations.run(async () => {
      const locked = await this.makeWritable()
      const { sealed } = locked
      await this.#changeBase(version, signal, sealed === undefined ? [] : changedChunks(sealed, version.chunkSize), async () => {
        await locked.change({ ...basedOn(version), sealed: undefined })
        locked.sealed = undefined
      })
      this.#noteCommitting(false)
      if (sealed !== undefined) await locked.discard(sealed)
    })
  }

  async reassign (version: VersionRef, signal: AbortSignal): Promise<void> {
    await this.#operations.run(async () => {
      const locked = await this.makeWritable()
      await this.#changeBase(version, signal, [], async () => {
        await locked.change(basedOn(version))
      })
    })
  }

  /** `record` makes the change durable; the file shows it when this returns. */
  async #changeBase (version: VersionRef, signal: AbortSignal, changed: Iterable<number>, record: () => Promise<void>): Promise<void> {
    const { tables } = this.#components
    const before = this.file.layers.table
    if (version.size < before.ref.size || version.size > this.file.size) throw new P2pvmError('ERR_INTERNAL', `a new base of ${version.size} bytes under a working copy of ${this.file.size}`)
    const table = tables.acquire(version)
    try {
      // What is known of the old base is asked of the new one while the daemon is there: it stays readable without it.
      await table.learnLike(before, changed, signal)
      await record()
    } catch (error) {
      await tables.release(table)
      throw error
    }
    await this.file.change({ table, sealed: this.#locked?.sealed })
    await tables.release(before)
  }

  async unseal (signal: AbortSignal): Promise<void> {
    await this.#operations.run(async () => {
      signal.throwIfAborted()
      if (this.#locked?.sealed !== undefined) await this.#fold(this.#locked)
      this.#noteCommitting(false)
    })
  }

  /** Workers write nothing meanwhile: they would set a page's bits after the fold has looked at them. */
  async #fold (locked: LockedCopy): Promise<void> {
    const { sealed } = locked
    if (sealed === undefined) return
    await this.file.change({ routeWrites: true })
    try {
      await foldUnder(locked.top, sealed, async () => { await afterIo() })
      await locked.change({ sealed: undefined })
      locked.sealed = undefined
    } finally {
      await this.file.change({ routeWrites: false, sealed: locked.sealed })
    }
    await locked.discard(sealed)
  }

  async revert (signal: AbortSignal): Promise<void> {
    await this.#operations.run(async () => {
      signal.throwIfAborted()
      if (this.openCount > 0) throw new P2pvmError('ERR_CONFLICT', `${this.inode.name} is open`, { name: this.inode.name })
      if (this.#locked === undefined) return
      const old = await this.#locked.revert()
      await this.file.change({ top: this.#locked.top, sealed: undefined })
      this.#noteCommitting(false)
      for (const overlay of old) await this.#locked.discard(overlay)
    })
  }

  /** What it holds survives a power cut, also without an fsync: nobody would write down its page map later. */
  async settle (): Promise<void> {
    try {
      await this.#locked?.sync()
    } catch (error) {
      this.#components.log.warn('cannot sync a working copy', { name: this.inode.name, error: String(error) })
    }
  }

  /** Only when workers have been told to forget the file. */
  async close (): Promise<void> {
    await this.#components.tables.release(this.file.layers.table)
    await this.settle()
    await this.#locked?.close()
  }
}

async function openLocked (inode: CopyInode, components: MountedCopyComponents): Promise<LockedCopy | undefined> {
  try {
    const locked = await LockedCopy.open(components.working, inode.name, components.random, components.owner)
    if (locked.state.ino === String(inode.ino)) return locked
    await locked.close()
  } catch (error) {
    if (!(error instanceof P2pvmError) || error.code !== 'ERR_NOT_FOUND') throw error
    if (inode.unborn) return undefined // nobody has written to it
  }
  throw new ErrnoError(ERRNO.ESTALE)
}

function * changedChunks (overlay: Overlay, chunkSize: number): Generator<number> {
  for (const { from, to } of overlay.dirtyRuns()) {
    for (let index = Math.floor(from / chunkSize); index * chunkSize < to; index++) yield index
  }
}
