/** Request ids: whoever asks for a change chooses one, and the same id again gets the same answer. */
import { P2pvmError } from '../protocols/errors.ts'
import type { Random } from '../protocols/seams.ts'

const REQUEST_ID_BYTES = 16
const REQUEST_ID = /^[A-Za-z0-9_-]{8,64}$/
/** There must be room behind it for the number of a member. */
const GROUP_REQUEST_ID = /^[A-Za-z0-9_-]{8,61}$/

export function newRequestId (random: Random): string {
  return Buffer.from(random.bytes(REQUEST_ID_BYTES)).toString('hex')
}

/** ERR_USAGE. */
export function checkRequestId (requestId: string): string {
  if (!REQUEST_ID.test(requestId)) throw new P2pvmError('ERR_USAGE', `a request id is 8 to 64 of A-Z a-z 0-9 _ -, not ${JSON.stringify(requestId)}`)
  return requestId
}

/** ERR_USAGE. */
export function checkGroupRequestId (requestId: string): string {
  if (!GROUP_REQUEST_ID.test(requestId)) throw new P2pvmError('ERR_USAGE', `the request id of a group is 8 to 61 of A-Z a-z 0-9 _ -, not ${JSON.stringify(requestId)}`)
  return requestId
}

/** A member of a group is a request of its own. */
export function memberRequestId (requestId: string, member: number): string {
  return `${requestId}-${member}`
}
