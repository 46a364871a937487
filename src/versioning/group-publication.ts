/**
 * Versions of several blobs, all or none: assigned in one step, their trees written side by side, complete in one step, which is one
 * record of the version manager. From that on each of them will be published; before it, none is, whoever dies. State it owns: none.
 */
import { mapAtMost } from '../dht/semaphore.ts'
import { OVER } from '../protocols/abort.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { Signer } from '../protocols/signatures.ts'
import { GROUP_EXTENTS_MAX, GROUP_MEMBERS_MAX } from '../protocols/version-protocol.ts'
import { type Assigned, assignmentOf } from './assignment.ts'
import { FIRST_ATTEMPT } from './attempts.ts'
import type { Blobs, GroupRequest, Target, Version, VersionId } from './blobs.ts'
import { checkMemberCount, checkMembers, ofMember } from './group-members.ts'
import { checkGroupRequestId, memberRequestId } from './request-id.ts'
import type { VersionClient } from './version-client.ts'
import { changeOf, type VersionWriter, wireTarget } from './version-writer.ts'

export interface GroupPublicationComponents {
  readonly versions: VersionClient
  readonly writer: VersionWriter
  readonly signer: Signer
  readonly chunkSizeAt: (target: Target, signal: AbortSignal | undefined) => Promise<number>
}

/** Each has up to a megabyte of nodes in memory. */
const TREES_AT_ONCE = 4

type Signal = AbortSignal | undefined

export class GroupPublication {
  readonly #components: GroupPublicationComponents

  constructor (components: GroupPublicationComponents) {
    this.#components = components
  }

  async publish (request: Required<GroupRequest>, signal: Signal): Promise<Version[]> {
    const { versions, writer } = this.#components
    const { requestId, members, message } = request
    const group = await this.#assign(request, signal)
    const leases = group.map((assigned, at) => ({ requestId: memberRequestId(requestId, at), assigned }))
    return await writer.whileRenewing(leases, signal, async (signal) => {
      await mapAtMost(TREES_AT_ONCE, group, async (assigned, at) => { await writer.writeTree(assigned, members[at]!.chunks, signal) })
      const ids = group.map(({ assignment: { blob, version } }) => ({ blob, version }))
      const completed = ids.map((id, at) => ({ ...id, bytesChanged: members[at]!.bytesChanged }))
      const { published } = await versions.ask({ op: 'completeGroup', requestId, message, members: completed }, { signal })
      checkAnswered(published, members)
      return await Promise.all(ids.map(async (id, at) => await writer.published(id, published[at]!, signal)))
    })
  }

  /** What became of each is what became of all of them: a member that was aborted was never complete. */
  async outcome ({ requestId, count }: Parameters<Blobs['groupOutcome']>[0], signal: Signal): Promise<Version[] | 'aborted' | undefined> {
    const { versions } = this.#components
    checkGroupRequestId(requestId)
    checkMemberCount(count)
    const assignedOf = async (member: number) => (await versions.ask({ op: 'outcome', requestId: memberRequestId(requestId, member) }, { signal })).assigned
    const ids: VersionId[] = []
    for (let member = 0; member < count; member++) {
      const assigned = await assignedOf(member)
      if (assigned === null && member === 0) return undefined
      if (assigned === null) throw new P2pvmError('ERR_USAGE', `request ${requestId} was of ${member} members, not ${count}`, { requestId })
      // Assigned in one step: where this one is, the one behind the last would be.
      if (member === 0 && count < GROUP_MEMBERS_MAX && await assignedOf(count) !== null) {
        throw new P2pvmError('ERR_USAGE', `request ${requestId} was of more than ${count} members`, { requestId })
      }
      if (assigned.aborted) return 'aborted'
      ids.push(assigned)
    }
    return await this.#published(ids, signal)
  }

  /** The first that is aborted tells of all: the others need not be waited for. */
  async #published (ids: readonly VersionId[], signal: Signal): Promise<Version[] | 'aborted'> {
    const over = new AbortController()
    const known = signal === undefined ? over.signal : AbortSignal.any([signal, over.signal])
    let aborted = false
    try {
      return await Promise.all(ids.map(async (id) => {
        const version = await this.#components.writer.published(id, null, known)
        if (version.attempt === FIRST_ATTEMPT) return version
        aborted = true
        throw OVER
      }))
    } catch (error) {
      if (aborted) return 'aborted'
      throw error
    } finally {
      over.abort(OVER)
    }
  }

  async #assign ({ requestId, members }: GroupRequest, signal: Signal): Promise<Assigned[]> {
    const { versions, signer, chunkSizeAt } = this.#components
    checkGroupRequestId(requestId)
    checkMembers(members.map(({ target }) => target))
    const targets = members.map(({ target }, at) => ofMember(target, at, () => wireTarget(target)))
    const extentsMax = Math.floor(GROUP_EXTENTS_MAX / members.length)
    const changes = await Promise.all(members.map(async (member, at) => {
      const chunkSize = await chunkSizeAt(member.target, signal)
      return ofMember(member.target, at, () => changeOf(member, chunkSize, extentsMax))
    }))
    const assigning = targets.map((target, at) => ({ target, change: changes[at]! }))
    const answer = await versions.ask({ op: 'assignGroup', requestId, members: assigning, writerKey: signer.publicKey }, { signal })
    checkAnswered(answer.members, members)
    return answer.members.map((one) => assignmentOf(one, signer))
  }
}

function checkAnswered (answers: readonly unknown[], members: readonly unknown[]): void {
  if (answers.length !== members.length) throw new P2pvmError('ERR_PROTOCOL', `the version manager answered to ${answers.length} members, not ${members.length}`)
}
