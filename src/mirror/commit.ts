/**
 * COMMIT and CLONE of working copies, the daemon's half (the talk, "Putting everything together (2)"). The mount cuts
 * (`Sealable`), this uploads what changed from the sealed overlays while the machine writes on, and publishes one version of each:
 * of all that are committed together, or of none.
 *
 * State it owns: `<working>/<name>/commit.json`, the publication that was asked for and not yet confirmed. It is on disk
 * before the version manager is asked, and is finished first when the next commit comes, so that a crash on either side
 * publishes a commit once or not at all; and `committed.json`, what became of one that was asked for under an id, for whoever has
 * not heard the answer and asks again. Not for: the cut itself (`mounted-copy.ts`), the upload (`commit-upload.ts`), the tree
 * (`versioning/`).
 */
import { withDeadline } from '../protocols/abort.ts'
import { errorCodeOf, P2pvmError } from '../protocols/errors.ts'
import type { Clock, Random } from '../protocols/seams.ts'
import { GROUP_MEMBERS_MAX, type GroupRequest, type Target, type Version, type VersionId } from '../versioning/blobs.ts'
import { checkImageName } from '../versioning/image-name.ts'
import { clearCommitIntent, readCommitIntent, readCommitOutcome, writeCommitIntent, writeCommitOutcome } from './commit-intent.ts'
import { settleAll, type Uploaded, type UploadComponents, uploadSealed } from './commit-upload.ts'
import { FOLD_DEADLINE_MS, type Sealable, type Sealed } from './sealable.ts'

export interface CommitComponents extends UploadComponents {
  readonly clock: Clock
  readonly random: Random
}

/** A working copy that is committed or cloned. */
export interface CommitMember {
  /** `<working>/<name>`, where the intent is kept. */
  readonly folder: string
  readonly sealable: Sealable
  /** Commit as a new image of this name. */
  readonly as?: string | undefined
}

export interface CommitInit {
  /** One, or a group: GROUP_MEMBERS_MAX at most, of different blobs but for those with `as`. */
  readonly members: readonly CommitMember[]
  /** Cuts all of them at one moment, in their order. When it fails none is sealed. */
  readonly seal: (signal: AbortSignal) => Promise<Sealed[]>
  readonly message?: string | undefined
  /** The same again is the same commit. */
  readonly id?: string | undefined
  readonly signal?: AbortSignal | undefined
}

export interface CloneInit {
  readonly member: Omit<CommitMember, 'as'>
  readonly name?: string | undefined
  readonly signal?: AbortSignal | undefined
}

export interface Committed {
  readonly version: Version
  readonly chunks: number // that changed
  readonly bytes: number // uploaded or already there, before replication
  readonly freezeMs: number
}

/** Who is taken for dead so often will not get through. */
const PUBLISH_ATTEMPTS_MAX = 3

export class Committer {
  readonly #components: CommitComponents
  readonly #running = new Set<string>()

  constructor (components: CommitComponents) {
    this.#components = components
  }

  /**
   * One new version of each working copy's blob, or with `as` of a new blob of that name; all or none. ERR_CONFLICT when a blob has
   * moved on, a name is taken, or a commit of one of them is under way; then nothing is lost and it can be tried again.
   */
  async commit (init: CommitInit): Promise<Committed[]> {
    const { members, id, signal } = init
    if (members.length > GROUP_MEMBERS_MAX) throw new P2pvmError('ERR_USAGE', `at most ${GROUP_MEMBERS_MAX} working copies are committed together`)
    for (const { as } of members) if (as !== undefined) checkImageName(as)
    return await this.#alone(members, async () => {
      for (const member of members) await this.#finishEarlier(member, signal)
      const before = await Promise.all(members.map(async (member) => await this.#outcomeOf(member, id, signal)))
      if (before.every((one) => one !== undefined)) return before
      const sealed = await init.seal(signalOf(init))
      const committed = await this.#publishSealed(sealed, init)
      await settleAll(members.map(async ({ folder, sealable }, at) => {
        await this.#unhurried(async (signal) => { await sealable.rebase(committed[at]!.version, signal) })
        await this.#end(folder, id, committed[at]!)
      }))
      return committed
    })
  }

  /** Of this very commit, if it was made before. */
  async #outcomeOf ({ folder }: CommitMember, id: string | undefined, signal: AbortSignal | undefined): Promise<Committed | undefined> {
    const outcome = id === undefined ? undefined : await readCommitOutcome(folder)
    if (outcome === undefined || outcome.id !== id) return undefined
    const { blob, version, chunks, bytes, freezeMs } = outcome
    return { version: await this.#components.blobs.version({ blob, version }, { signal }), chunks, bytes, freezeMs }
  }

  async #end (folder: string, id: string | undefined, { version: { blob, version }, chunks, bytes, freezeMs }: Committed): Promise<void> {
    if (id !== undefined) await writeCommitOutcome(folder, { id, blob, version, chunks, bytes, freezeMs })
    await clearCommitIntent(folder)
  }

  async #publishSealed (sealed: readonly Sealed[], init: CommitInit): Promise<Committed[]> {
    try {
      const uploads: Uploaded[] = []
      for (const one of sealed) uploads.push(await uploadSealed(one, this.#components, init.signal))
      const members = sealed.map((one, at) => {
        const { changed, dirtyBytes } = uploads[at]!
        return { target: targetOf(one, init.members[at]!), chunks: changed, size: one.size, bytesChanged: dirtyBytes }
      })
      const versions = await this.#publishAnew({ members, message: init.message ?? '' }, init)
      return versions.map((version, at) => {
        const { changed, uploadedBytes } = uploads[at]!
        return { version, chunks: changed.size, bytes: uploadedBytes, freezeMs: sealed[at]!.freezeMs }
      })
    } catch (error) {
      // Also a commit that was given up must fold back what it sealed.
      await settleAll(init.members.map(async ({ sealable }) => { await this.#unhurried(async (signal) => { await sealable.unseal(signal) }) }))
      throw error
    }
  }

  /** A new blob that shares everything; the working copy belongs to it from now on, overlay and path unchanged. */
  async clone (base: () => Promise<VersionId>, { member, name, signal }: CloneInit): Promise<Version> {
    if (name !== undefined) checkImageName(name)
    return await this.#alone([member], async () => {
      await this.#finishEarlier(member, signal)
      const { blob, version: number } = await base() // after an earlier commit has been finished, which may change it
      const version = await this.#components.blobs.clone({ blob, version: number }, name === undefined ? {} : { name }, { signal })
      await member.sealable.reassign(version, signalOf({ signal }))
      return version
    })
  }

  /**
   * Throws away what was written since the version that the working copy lies on. Of a commit whose end nobody saw that is the
   * version that it made, if it did: finished later, it would bring back what has been thrown away. ERR_CONFLICT while the file
   * is open, or a commit is under way.
   */
  async revert (member: Omit<CommitMember, 'as'>, signal?: AbortSignal): Promise<void> {
    const { folder, sealable } = member
    await this.#alone([member], async () => {
      const intent = await readCommitIntent(folder)
      if (intent !== undefined) {
        const { requestId, members } = intent.request
        const outcome = await this.#components.blobs.groupOutcome({ requestId, count: members.length }, { signal })
        if (outcome !== undefined && outcome !== 'aborted') await sealable.reassign(outcome[intent.member]!, signalOf({ signal }))
        await clearCommitIntent(folder)
      }
      await sealable.revert(signalOf({ signal }))
    })
  }

  async #alone<T> (members: ReadonlyArray<Pick<CommitMember, 'folder'>>, work: () => Promise<T>): Promise<T> {
    const folders = members.map(({ folder }) => folder)
    if (new Set(folders).size < folders.length) throw new P2pvmError('ERR_USAGE', 'a working copy is named twice')
    if (folders.some((folder) => this.#running.has(folder))) throw new P2pvmError('ERR_CONFLICT', 'a commit or clone of this working copy is under way')
    for (const folder of folders) this.#running.add(folder)
    try {
      return await work()
    } finally {
      for (const folder of folders) this.#running.delete(folder)
    }
  }

  /**
   * A commit whose end nobody saw: the same request again has the same outcome. Its pages are still in the overlay (they
   * were folded back, or are now), so basing the working copy on the published version changes no byte of it. Those that were committed with it
   * keep their own intents, and are finished when their own next commit comes.
   */
  async #finishEarlier ({ folder, sealable }: Omit<CommitMember, 'as'>, signal: AbortSignal | undefined): Promise<void> {
    const intent = await readCommitIntent(folder)
    if (intent === undefined) return
    const { request, member, id } = intent
    let version
    try {
      version = (await this.#components.blobs.publishGroup(request, { signal }))[member]!
      await sealable.reassign(version, signalOf({ signal }))
      if (id !== undefined) await sealable.unseal(signalOf({ signal })) // nobody else ends it
    } catch (error) {
      if (!isRefusal(error)) throw error
      await clearCommitIntent(folder)
      return
    }
    await this.#end(folder, id, { version, chunks: request.members[member]!.chunks.size, bytes: 0, freezeMs: 0 })
  }

  /**
   * With a request id of its own. The version manager may take us for dead (this machine slept, or could not reach it for long): then it
   * has aborted the versions, which changed nothing, and the same is asked for again as a new request.
   */
  async #publishAnew (what: Omit<GroupRequest, 'requestId'>, { members, id, signal }: CommitInit): Promise<Version[]> {
    for (let attempt = 1; ; attempt += 1) {
      const request = { ...what, requestId: Buffer.from(this.#components.random.bytes(16)).toString('hex') }
      for (const [member, { folder }] of members.entries()) await writeCommitIntent(folder, id === undefined ? { request, member } : { request, member, id })
      try {
        return await this.#components.blobs.publishGroup(request, { signal })
      } catch (error) {
        // Refused for good: there is nothing to finish later.
        if (isRefusal(error)) await settleAll(members.map(async ({ folder }) => { await clearCommitIntent(folder) }))
        if (attempt === PUBLISH_ATTEMPTS_MAX || !await this.#wasAborted(request, error, signal)) throw error
      }
    }
  }

  /** A conflict may also be that a blob has moved on. */
  async #wasAborted ({ requestId, members }: GroupRequest, error: unknown, signal: AbortSignal | undefined): Promise<boolean> {
    if (errorCodeOf(error) !== 'ERR_CONFLICT') return false
    return await this.#components.blobs.groupOutcome({ requestId, count: members.length }, { signal }) === 'aborted'
  }

  /** What must be done also when the caller has given up. */
  async #unhurried (work: (signal: AbortSignal) => Promise<void>): Promise<void> {
    await withDeadline(this.#components.clock, FOLD_DEADLINE_MS, [], work)
  }
}

function targetOf (sealed: Sealed, { as }: CommitMember): Target {
  if (as !== undefined) return { kind: 'clone', source: sealed.base, name: as }
  return { kind: 'blob', blob: sealed.base.blob, expectedBase: sealed.base.version }
}

/** The version manager has answered, and the answer is no: asking again would not change it. */
function isRefusal (error: unknown): boolean {
  return error instanceof P2pvmError && ['ERR_CONFLICT', 'ERR_NOT_FOUND', 'ERR_NOT_ALLOWED', 'ERR_USAGE'].includes(error.code)
}

function signalOf (init: { signal?: AbortSignal | undefined }): AbortSignal {
  return init.signal ?? new AbortController().signal
}
