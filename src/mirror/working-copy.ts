/**
 * Working copies on disk: a folder `<working>/<name>` with `state.json`, one or two overlays and a lock. Used by the mount
 * that has one open, and by the daemon for those that nobody has open.
 *
 *   state.json   {name, ino, blob, version, size, baseSize?, chunkSize, top, sealed?, origin?, holder?}, replaced as a whole
 *   overlay-*    see overlay.ts; `top` lies on `sealed`, which lies on the version
 *
 * A seal writes state.json *before* the cut: the new top overlay is empty until then, so both readings of the file have the
 * same bytes, and the cut itself needs no disk. An overlay that state.json does not name is left over, and swept.
 *
 * Not for: who reads and writes through the kernel (`mounted-file.ts`), or the order of a seal (`mounted-copy.ts`).
 */
import { mkdir, readdir, readFile, rename, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { errorCodeOf, P2pvmError } from '../protocols/errors.ts'
import type { Random } from '../protocols/seams.ts'
import { isNodeError, replaceFile, syncFolder } from './files.ts'
import { Mutex } from './mutex.ts'
import { dirtyBytesOf, Overlay, readPageMap } from './overlay.ts'
import { acquireLock, lockHolder, type LockOwner, ownProcessId, processIsAlive, type ProcessLock, releaseInherited } from './processes.ts'
import type { VersionRef } from './source.ts'

export interface WorkingCopyState {
  readonly name: string
  /** Decimal: 63 bits. Never used again by another working copy. */
  readonly ino: string
  readonly blob: string
  readonly version: number
  /** Of the file, bytes. */
  readonly size: number
  /** Of the version, when the file has grown since. */
  readonly baseSize?: number | undefined
  readonly chunkSize: number
  /** Folder names of the overlays. */
  readonly top: string
  readonly sealed?: string
  /** The `/<blob>/<version>` path that brought it into being. */
  readonly origin?: { readonly blob: string, readonly version: number }
  /** The mount that had it open last, and whose kernel may keep its pages: another one's are stale. */
  readonly holder?: string
}

/** What it lies on, but for the size, which is its own. */
export interface WorkingCopyInfo extends VersionRef {
  readonly name: string
  readonly dirtyBytes: number
}

const NAME = /^[a-z0-9][a-z0-9._-]{0,127}$/
const STATE = 'state.json'
const OVERLAY = 'overlay-'
/** Folders that are being made or removed. No name of a working copy begins with a dot. */
const ASIDE = /^\.(?:new|gone)\.(\d+)\.(\d+)\.[0-9a-f]+(?:\.([0-9a-f]{32}))?$/

/** The name, or ERR_USAGE. */
export function checkWorkingCopyName (name: string): string {
  if (!NAME.test(name)) {
    throw new P2pvmError('ERR_USAGE', `a working copy's name is 1 to 128 of a-z 0-9 . _ - and starts with a letter or digit, not ${JSON.stringify(name)}`)
  }
  return name
}

export function baseOf (state: WorkingCopyState): VersionRef {
  return { blob: state.blob, version: state.version, size: state.baseSize ?? state.size, chunkSize: state.chunkSize }
}

/** The fields that say what a working copy lies on. */
export function basedOn (version: VersionRef): Pick<WorkingCopyState, 'blob' | 'version' | 'baseSize'> {
  return { blob: version.blob, version: version.version, baseSize: version.size }
}

/** 63 random bits above what the kernel reserves. */
export function randomIno (random: Random): bigint {
  const bytes = Buffer.from(random.bytes(8))
  return (bytes.readBigUInt64LE(0) & (2n ** 63n - 1n)) | 2n ** 32n
}

export interface CreateInit {
  readonly origin?: { readonly blob: string, readonly version: number }
  readonly ino?: bigint
  readonly holder?: string
}

/** Makes a working copy, all or nothing. ERR_CONFLICT when the name is taken, ERR_USAGE when it is no name. */
export async function createWorkingCopy (working: string, name: string, base: VersionRef, random: Random, init: CreateInit = {}): Promise<WorkingCopyState> {
  checkWorkingCopyName(name)
  const top = OVERLAY + hex(random)
  const state: WorkingCopyState = {
    name,
    ino: String(init.ino ?? randomIno(random)),
    blob: base.blob,
    version: base.version,
    size: base.size,
    chunkSize: base.chunkSize,
    top,
    ...(init.origin === undefined ? {} : { origin: { blob: init.origin.blob, version: init.origin.version } }),
    ...(init.holder === undefined ? {} : { holder: init.holder })
  }
  const aside = await asidePath(working, 'new', random)
  await mkdir(aside, { recursive: true })
  try {
    await (await Overlay.open(join(aside, top), base.size)).close()
    await writeState(aside, state)
    await rename(aside, join(working, name))
  } catch (error) {
    await rm(aside, { recursive: true, force: true })
    if (isNodeError(error, 'ENOTEMPTY', 'EEXIST')) throw new P2pvmError('ERR_CONFLICT', `there is a working copy ${name} already`, { name }, error)
    throw error
  }
  await syncFolder(working)
  await syncFolder(dirname(working)) // it may be new itself
  return state
}

/** ERR_NOT_FOUND when there is none. */
export async function readWorkingCopy (working: string, name: string): Promise<WorkingCopyState> {
  checkWorkingCopyName(name)
  try {
    return JSON.parse(await readFile(join(working, name, STATE), 'utf8')) as WorkingCopyState
  } catch (error) {
    if (isNodeError(error, 'ENOENT', 'ENOTDIR')) throw new P2pvmError('ERR_NOT_FOUND', `there is no working copy ${name}`, { name }, error)
    throw error
  }
}

export async function workingCopyNames (working: string): Promise<string[]> {
  const names = await readdir(working).catch((error: unknown) => {
    if (isNodeError(error, 'ENOENT')) return []
    throw error
  })
  return names.filter((name) => NAME.test(name)).sort()
}

export async function workingCopyInfo (working: string, name: string): Promise<WorkingCopyInfo> {
  const state = await readWorkingCopy(working, name)
  const map = await readPageMap(join(working, name, state.top), state.size)
  if (state.sealed !== undefined) {
    const below = await readPageMap(join(working, name, state.sealed), state.size)
    for (const [page, mask] of below.entries()) map[page] = (map[page] ?? 0) | mask
  }
  return { name, ...baseOf(state), size: state.size, dirtyBytes: dirtyBytesOf(map, state.size) }
}

/** All of them, by name. One that goes away meanwhile is left out. */
export async function listWorkingCopies (working: string): Promise<WorkingCopyInfo[]> {
  const copies: WorkingCopyInfo[] = []
  for (const name of await workingCopyNames(working)) {
    try {
      copies.push(await workingCopyInfo(working, name))
    } catch (error) {
      if (errorCodeOf(error) !== 'ERR_NOT_FOUND') throw error
    }
  }
  return copies
}

/** ERR_CONFLICT while a process has it open. */
export async function removeWorkingCopy (working: string, name: string, random: Random): Promise<void> {
  await readWorkingCopy(working, name)
  const folder = join(working, name)
  const lock = await acquireLock(folder, hex(random))
  const gone = await asidePath(working, 'gone', random)
  try {
    await rename(folder, gone)
  } catch (error) {
    await lock.release()
    throw error
  }
  await syncFolder(working)
  await rm(gone, { recursive: true, force: true })
}

/** What a crash left of making and removing working copies. */
export async function sweepWorkingFolder (working: string): Promise<void> {
  for (const name of await readdir(working).catch(() => [])) {
    const [, pid, startTime = '', boot] = ASIDE.exec(name) ?? []
    if (pid === undefined || await processIsAlive({ pid: Number(pid), startTime, boot })) continue
    await rm(join(working, name), { recursive: true, force: true })
  }
}

/** What a FUSE server that was killed had open in the name of its keeper, and this one has not. */
export async function releaseInheritedLocks (working: string, owner: LockOwner): Promise<void> {
  for (const name of await workingCopyNames(working)) {
    await releaseInherited(join(working, name), owner).catch((error: unknown) => { if (!isNodeError(error, 'ENOENT', 'ENOTDIR')) throw error })
  }
}

/** The process that has it open. */
export async function workingCopyHolder (working: string, name: string): Promise<number | undefined> {
  await readWorkingCopy(working, name)
  return await lockHolder(join(working, name))
}

/** A working copy that this process has open: nobody else has. */
export class LockedCopy {
  readonly #folder: string
  readonly #random: Random
  readonly #lock: ProcessLock
  readonly #changes = new Mutex()
  #state: WorkingCopyState
  top: Overlay
  sealed: Overlay | undefined

  private constructor (folder: string, random: Random, lock: ProcessLock, state: WorkingCopyState, top: Overlay, sealed: Overlay | undefined) {
    this.#folder = folder
    this.#random = random
    this.#lock = lock
    this.#state = state
    this.top = top
    this.sealed = sealed
  }

  /** ERR_NOT_FOUND, or ERR_CONFLICT while another process has it. `owner`: as `acquireLock`. */
  static async open (working: string, name: string, random: Random, owner?: LockOwner): Promise<LockedCopy> {
    await readWorkingCopy(working, name)
    const folder = join(working, name)
    const lock = await acquireLock(folder, hex(random), owner)
    try {
      // A process that was killed may have replaced state.json without syncing the folder. What is done from here on counts on it.
      await syncFolder(folder)
      const state = await readWorkingCopy(working, name) // again: it may have changed until it was ours
      for (const entry of await readdir(folder)) {
        if (entry.startsWith(OVERLAY) && entry !== state.top && entry !== state.sealed) await rm(join(folder, entry), { recursive: true, force: true })
      }
      const top = await Overlay.open(join(folder, state.top), state.size)
      const sealed = state.sealed === undefined ? undefined : await Overlay.open(join(folder, state.sealed), state.size)
      return new LockedCopy(folder, random, lock, state, top, sealed)
    } catch (error) {
      await lock.release()
      throw error
    }
  }

  get state (): WorkingCopyState {
    return this.#state
  }

  /** Durable when it returns. `undefined` removes a field. */
  async change (changes: { [K in keyof WorkingCopyState]?: WorkingCopyState[K] | undefined }): Promise<void> {
    await this.#change(() => changes)
  }

  /** Larger on disk, and its base is not: durable when it returns. The top overlay is the caller's to grow. */
  async recordGrowth (size: number): Promise<void> {
    await this.#change((state) => ({ size, baseSize: baseOf(state).size }))
  }

  /** One after the other: a file may grow in the middle of a seal. */
  async #change (changesOf: (state: WorkingCopyState) => { [K in keyof WorkingCopyState]?: WorkingCopyState[K] | undefined }): Promise<void> {
    await this.#changes.run(async () => {
      const state = { ...this.#state, ...changesOf(this.#state) }
      await writeState(this.#folder, state as WorkingCopyState)
      this.#state = state as WorkingCopyState
    })
  }

  /** Makes the overlay for the next cut and says on disk that it is the top one: true already, since it is empty. */
  async prepareCut (): Promise<Overlay> {
    const name = OVERLAY + hex(this.#random)
    const next = await Overlay.open(join(this.#folder, name), this.#state.size)
    try {
      await syncFolder(this.#folder)
      await this.change({ top: name, sealed: this.#state.top })
    } catch (error) {
      await next.close()
      throw error
    }
    return next
  }

  /** What is written from now on goes to `next`. */
  cut (next: Overlay): void {
    if (next.size < this.top.size) next.grow(this.top.size) // it has grown since that one was made
    this.sealed = this.top
    this.top = next
  }

  /** The cut did not come: `next` is still empty. */
  async giveUpCut (next: Overlay): Promise<void> {
    await this.change({ top: this.#state.sealed ?? this.#state.top, sealed: undefined })
    await this.discard(next)
  }

  /** Closes an overlay that no worker can hold and state.json does not name, and removes it. */
  async discard (overlay: Overlay): Promise<void> {
    await overlay.close()
    await rm(overlay.folder, { recursive: true, force: true })
  }

  /** An empty overlay on the version, the old ones returned for the caller to discard. */
  async revert (): Promise<Overlay[]> {
    const old = [this.top, ...(this.sealed === undefined ? [] : [this.sealed])]
    const name = OVERLAY + hex(this.#random)
    const top = await Overlay.open(join(this.#folder, name), this.#state.size)
    await syncFolder(this.#folder)
    await this.change({ top: name, sealed: undefined, holder: undefined })
    this.top = top
    this.sealed = undefined
    return old
  }

  /** Everything that was answered survives a power cut when this returns. */
  async sync (): Promise<void> {
    // Both at once, as they are now: a cut that comes meanwhile makes the top one of today the sealed one.
    await Promise.all([this.sealed?.sync(), this.top.sync()])
  }

  async close (): Promise<void> {
    await this.top.close()
    await this.sealed?.close()
    await this.#lock.release()
  }
}

async function writeState (folder: string, state: WorkingCopyState): Promise<void> {
  await replaceFile(join(folder, STATE), `${JSON.stringify(state, undefined, 2)}\n`)
}

/** Names the process, so that a sweep knows whether it is still at work. */
async function asidePath (working: string, kind: 'new' | 'gone', random: Random): Promise<string> {
  const { pid, startTime, boot } = await ownProcessId()
  return join(working, `.${kind}.${pid}.${startTime}.${hex(random)}.${boot}`)
}

function hex (random: Random): string {
  return Buffer.from(random.bytes(8)).toString('hex')
}
