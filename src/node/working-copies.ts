/**
 * Working copies as the daemon offers them: on its own disk, whether a mount has them open or not. A mount that has one open
 * is asked over its socket; else the files are used directly.
 */
import { join } from 'node:path'
import type { Committer } from '../mirror/commit.ts'
import { foldBack } from '../mirror/seal-together.ts'
import type { Sealable, Sealed } from '../mirror/sealable.ts'
import type { MirrorFolders } from '../mirror/source.ts'
import { unmountedSealable } from '../mirror/unmounted-copy.ts'
import {
  createWorkingCopy, listWorkingCopies, readWorkingCopy, removeWorkingCopy, workingCopyHolder, workingCopyInfo, type WorkingCopyInfo,
  workingCopyNames
} from '../mirror/working-copy.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { Clock, Random } from '../protocols/seams.ts'
import type { Blobs } from '../versioning/blobs.ts'
import type { CloneRequest, CloneResult, CommitRequest, CommitResult, GroupCommitRequest, WorkingCopyRow } from './control-api.ts'
import { LastingRequests } from './lasting-requests.ts'
import { listMounts, locate, type MountEntry, mountedSealable, sealTogether, workingCopyAt } from './mounts.ts'

export interface WorkingCopiesComponents {
  readonly folders: MirrorFolders
  readonly blobs: Blobs
  readonly committer: Committer
  readonly clock: Clock
  readonly random: Random
}

/** How a working copy is driven, and by which mount, if one has it open. */
interface Driven {
  readonly mount: MountEntry | undefined
  readonly sealable: Sealable
}

type Which = Pick<CommitRequest, 'path' | 'workingCopy'>

export class WorkingCopies {
  readonly #components: WorkingCopiesComponents
  readonly #lasting: LastingRequests

  constructor (components: WorkingCopiesComponents) {
    this.#components = components
    this.#lasting = new LastingRequests(components.clock)
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
    await committer.revert({ folder: join(folders.working, name), sealable: (await this.#driven(name)).sealable }, signal)
    return await this.#row(name)
  }

  async commit ({ message, id, ...which }: CommitRequest, signal: AbortSignal): Promise<CommitResult> {
    return await this.#lasting.run(id, signal, async (own) => (await this.#commit({ members: [which], message }, id, own))[0]!)
  }

  /** ERR_USAGE when they are not all of one mount, but for those that no mount has open. */
  async commitGroup (request: GroupCommitRequest, signal: AbortSignal): Promise<CommitResult[]> {
    return await this.#commit(request, undefined, signal)
  }

  async #commit ({ members, message }: GroupCommitRequest, id: string | undefined, signal: AbortSignal): Promise<CommitResult[]> {
    if (members.length === 0) throw new P2pvmError('ERR_USAGE', 'no working copy to commit')
    const { committer, folders, clock } = this.#components
    const copies = await Promise.all(members.map(async (member) => {
      const name = await this.#nameOf(member)
      return { name, ...await this.#driven(name), folder: join(folders.working, name), as: member.as }
    }))
    const committed = await committer.commit({ members: copies, seal: async (signal) => await sealAll(copies, clock, signal), message, id, signal })
    return await Promise.all(committed.map(async ({ version: { blob, version }, chunks, bytes, freezeMs }, at) => {
      const { name, as } = copies[at]!
      return { blob, version, name: as ?? null, chunks, bytes, freezeMs, path: await this.#pathOf(name, members[at]!) }
    }))
  }

  /** The working copy belongs to the new blob from now on. */
  async clone (request: Omit<CloneRequest, 'ref'>, signal: AbortSignal): Promise<CloneResult> {
    return await this.#lasting.run(request.id, signal, async (own) => await this.#clone(request, own))
  }

  async #clone (request: Omit<CloneRequest, 'ref'>, signal: AbortSignal): Promise<CloneResult> {
    const name = await this.#nameOf(request)
    const { committer, folders } = this.#components
    const version = await committer.clone(
      async () => await readWorkingCopy(folders.working, name),
      { member: { folder: join(folders.working, name), sealable: (await this.#driven(name)).sealable }, name: request.name, signal })
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

  async #driven (name: string): Promise<Driven> {
    const { folders, random } = this.#components
    const pid = await workingCopyHolder(folders.working, name)
    const mount = pid === undefined ? undefined : (await listMounts(folders.mounts)).find((entry) => entry.pid === pid)
    return { mount, sealable: mount === undefined ? unmountedSealable(folders.working, name, random) : mountedSealable(mount, name) }
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

/** Those that no mount has open first: from then on nobody can open them, so that the others' moment is theirs as well. */
async function sealAll (copies: ReadonlyArray<Driven & { readonly name: string }>, clock: Clock, signal: AbortSignal): Promise<Sealed[]> {
  const open = copies.filter(({ mount }) => mount !== undefined)
  const mount = open[0]?.mount
  const other = open.find((copy) => copy.mount?.id !== mount?.id)
  if (other !== undefined) {
    throw new P2pvmError('ERR_USAGE', `${open[0]!.name} and ${other.name} are open in different mounts: only working copies of one mount can be cut at one moment`)
  }
  const sealed = new Map<Driven, Sealed>()
  try {
    for (const copy of copies) if (copy.mount === undefined) sealed.set(copy, await copy.sealable.seal(signal))
    const together = mount === undefined ? [] : await sealTogether(mount, open.map(({ name }) => name), signal)
    for (const [at, one] of together.entries()) sealed.set(open[at]!, one)
  } catch (error) {
    await foldBack([...sealed.keys()].map(({ sealable }) => sealable), clock)
    throw error
  }
  return copies.map((copy) => sealed.get(copy)!)
}

function rowOf ({ name, blob, version, size, dirtyBytes }: WorkingCopyInfo, mountpoint: string | undefined): WorkingCopyRow {
  return { name, blob, version, size, dirtyBytes, path: mountpoint === undefined ? null : join(mountpoint, 'working', name) }
}
