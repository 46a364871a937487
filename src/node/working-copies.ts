/**
 * Working copies as the daemon offers them: on its own disk, whether a mount has them open or not. A mount that has one open
 * is asked over its socket; else the files are used directly.
 */
import { join } from 'node:path'
import type { Committer } from '../mirror/commit.ts'
import type { Sealable } from '../mirror/sealable.ts'
import type { MirrorFolders } from '../mirror/source.ts'
import { unmountedSealable } from '../mirror/unmounted-copy.ts'
import {
  createWorkingCopy, listWorkingCopies, readWorkingCopy, removeWorkingCopy, workingCopyHolder, workingCopyInfo, type WorkingCopyInfo,
  workingCopyNames
} from '../mirror/working-copy.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { Random } from '../protocols/seams.ts'
import type { Blobs } from '../versioning/blobs.ts'
import type { CloneResult, CommitRequest, CommitResult, WorkingCopyRow } from './control-api.ts'
import { listMounts, locate, mountedSealable, workingCopyAt } from './mounts.ts'

export interface WorkingCopiesComponents {
  readonly folders: MirrorFolders
  readonly blobs: Blobs
  readonly committer: Committer
  readonly random: Random
}

type Which = Pick<CommitRequest, 'path' | 'workingCopy'>

export class WorkingCopies {
  readonly #components: WorkingCopiesComponents

  constructor (components: WorkingCopiesComponents) {
    this.#components = components
  }

  async list (): Promise<WorkingCopyRow[]> {
    const mountpoint = await this.#mountpoint()
    return (await listWorkingCopies(this.#components.folders.working)).map((info) => rowOf(info, mountpoint))
  }

  async create (name: string, ref: string, signal: AbortSignal): Promise<WorkingCopyRow> {
    const { folders, blobs, random } = this.#components
    await createWorkingCopy(folders.working, name, await blobs.resolve(ref, { signal }), random)
    return await this.#row(name)
  }

  async remove (name: string): Promise<void> {
    const { folders, random } = this.#components
    await removeWorkingCopy(folders.working, name, random)
  }

  async revert (name: string, signal: AbortSignal): Promise<WorkingCopyRow> {
    const { committer, folders } = this.#components
    await committer.revert({ folder: join(folders.working, name), sealable: await this.#sealable(name), signal })
    return await this.#row(name)
  }

  async commit (request: CommitRequest, signal: AbortSignal): Promise<CommitResult> {
    const name = await this.#nameOf(request)
    const { version, chunks, bytes, freezeMs } = await this.#components.committer.commit({
      folder: join(this.#components.folders.working, name),
      sealable: await this.#sealable(name),
      as: request.as,
      message: request.message,
      signal
    })
    return { blob: version.blob, version: version.version, name: request.as ?? null, chunks, bytes, freezeMs, path: await this.#pathOf(name, request) }
  }

  /** The working copy belongs to the new blob from now on. */
  async clone (request: Which & { readonly name?: string | undefined }, signal: AbortSignal): Promise<CloneResult> {
    const name = await this.#nameOf(request)
    const { committer, folders } = this.#components
    const version = await committer.clone(
      async () => await readWorkingCopy(folders.working, name),
      { folder: join(folders.working, name), sealable: await this.#sealable(name), name: request.name, signal })
    return { blob: version.blob, version: version.version, name: request.name ?? null, path: await this.#pathOf(name, request) }
  }

  async #nameOf ({ path, workingCopy }: Which): Promise<string> {
    if (workingCopy !== undefined) return (await readWorkingCopy(this.#components.folders.working, workingCopy)).name
    if (path === undefined) throw new P2pvmError('ERR_USAGE', 'a path or the name of a working copy is needed')
    const { mount, inside } = await locate(this.#components.folders.mounts, path)
    const [first, second] = inside
    if (second === undefined || inside.length !== 2) throw new P2pvmError('ERR_NOT_FOUND', `${path} is not a working copy's file`, { path })
    if (first === 'by-name') throw new P2pvmError('ERR_NOT_ALLOWED', `${path} is immutable; make a working copy of it`, { path })
    // By its own name, one that nobody has written to is brought into being as by the other: an alias may be a link to it.
    const exists = first === 'working' && (await workingCopyNames(this.#components.folders.working)).includes(second)
    return exists ? second : await workingCopyAt(mount, inside)
  }

  async #sealable (name: string): Promise<Sealable> {
    const { folders, random } = this.#components
    const pid = await workingCopyHolder(folders.working, name)
    const mount = pid === undefined ? undefined : (await listMounts(folders.mounts)).find((entry) => entry.pid === pid)
    return mount === undefined ? unmountedSealable(folders.working, name, random) : mountedSealable(mount, name)
  }

  async #pathOf (name: string, { path }: Which): Promise<string> {
    const { working } = this.#components.folders
    const mountpoint = await this.#mountpoint()
    return path ?? (mountpoint === undefined ? join(working, name) : join(mountpoint, 'working', name))
  }

  async #row (name: string): Promise<WorkingCopyRow> {
    return rowOf(await workingCopyInfo(this.#components.folders.working, name), await this.#mountpoint())
  }

  async #mountpoint (): Promise<string | undefined> {
    return (await listMounts(this.#components.folders.mounts))[0]?.mountpoint
  }
}

function rowOf ({ name, blob, version, size, dirtyBytes }: WorkingCopyInfo, mountpoint: string | undefined): WorkingCopyRow {
  return { name, blob, version, size, dirtyBytes, path: mountpoint === undefined ? null : join(mountpoint, 'working', name) }
}
