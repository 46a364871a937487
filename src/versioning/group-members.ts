/** What may be in one group, and how it is said which member is in the way. The client and the version manager both ask here. */
import { P2pvmError } from '../protocols/errors.ts'
import { GROUP_MEMBERS_MAX } from '../protocols/version-protocol.ts'
import type { Target } from './blobs.ts'

/** ERR_USAGE. */
export function checkMemberCount (count: number): void {
  if (Number.isInteger(count) && count >= 1 && count <= GROUP_MEMBERS_MAX) return
  throw new P2pvmError('ERR_USAGE', `a group has 1 to ${GROUP_MEMBERS_MAX} members, not ${count}`)
}

/** ERR_USAGE: too many, none, a blob or a name twice, a blob without an expected base. */
export function checkMembers (targets: readonly Target[]): void {
  checkMemberCount(targets.length)
  const [blobs, names] = [new Set<string>(), new Set<string>()]
  for (const [member, target] of targets.entries()) {
    ofMember(target, member, () => {
      if (target.kind !== 'blob') {
        if (target.name !== undefined) takeOnce(names, target.name, 'name')
        return
      }
      takeOnce(blobs, target.blob, 'blob')
      // Who knows what he writes upon finds little in flight: it has to fit an answer with that of all the others.
      if (target.expectedBase === undefined) throw new P2pvmError('ERR_USAGE', 'a blob in a group needs the version that it is expected to be at')
    })
  }
}

/** `check` of one member: its errors say of which. */
export function ofMember<T> (target: Target, member: number, check: () => T): T {
  try {
    return check()
  } catch (error) {
    if (!(error instanceof P2pvmError)) throw error
    throw new P2pvmError(error.code, `${nounOf(target)}, of a group: ${error.message}`, { ...fieldsOf(target), ...error.fields, member }, error)
  }
}

function takeOnce (taken: Set<string>, one: string, noun: string): void {
  if (taken.has(one)) throw new P2pvmError('ERR_USAGE', `the same ${noun} twice in one group`)
  taken.add(one)
}

function fieldsOf (target: Target): Record<string, string> {
  if (target.kind === 'blob') return { blob: target.blob }
  return target.name === undefined ? {} : { name: target.name }
}

function nounOf (target: Target): string {
  if (target.kind === 'blob') return target.blob
  return target.name ?? (target.kind === 'new' ? 'a new blob' : `a clone of ${target.source.blob}@${target.source.version}`)
}
