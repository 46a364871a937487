/**
 * 'version/1': what writers and readers ask of the version manager. One row per operation: the validators of its request
 * and of its answer, and with them their types. Bodies only, no payload. Every operation may be repeated: those that change
 * something carry a request id, and the same id again gets the same answer.
 *
 * Not for reading a version: that takes only its publication record, from storage peers.
 */
import { CHUNK_BYTES_MAX, CHUNK_BYTES_MIN } from './cid.ts'
import { array, boolean, bytes, bytesUpTo, type Decoder, nullable, oneOf, optional, record, string, uint, variant } from './decode.ts'
import { P2pvmError } from './errors.ts'
import { PUBLIC_KEY_BYTES, SIGNATURE_BYTES } from './signatures.ts'
import type { PeerId, RequestContext, RequestOptions, Transport } from './transport.ts'

export const VERSION_PROTOCOL = 'version/1'

/** Longer ones are refused; a message is for people, and a page of the log must fit an answer. */
export const MESSAGE_CHARACTERS_MAX = 1000
/** Of a publication record: the longest message in the longest characters is 3 KB of it. */
export const HEADER_BYTES_MAX = 4096
/** Per write; see versioning/extents.ts. */
const EXTENTS_MAX = 4096
/**
 * Versions in flight of one blob, and extents of all of them: 147 KB and 20 KB at most, which with a header fits an answer's body (192 KiB).
 * Who comes when there are more waits until some are published.
 */
export const IN_FLIGHT_VERSIONS_MAX = 256
export const IN_FLIGHT_EXTENTS_MAX = 8192
/** Blobs that get a version each in one step, all or none. */
export const GROUP_MEMBERS_MAX = 16
/**
 * Of all members of a group together, so that the answer fits a body, too: 74 KB of extents, 64 KB of headers, and what is in flight, which
 * is 28 KB at most, and mostly nothing: aborted versions that are being written, and an expected base that is in flight itself.
 */
export const GROUP_EXTENTS_MAX = 4096
export const GROUP_IN_FLIGHT_VERSIONS_MAX = 128
export const GROUP_IN_FLIGHT_EXTENTS_MAX = 1024
/** Rows in one answer of `images` and `log`. */
export const PAGE_ROWS_MAX = 256
/**
 * An assignment is a lease. A writer that is not heard of for so long is taken for dead: the version manager writes its version in its
 * place, so that those after it can be published. Longer than the version manager's clients retry what it did not answer.
 */
export const LEASE_MS = 30_000
/** Two of three renewals may be lost. */
export const RENEW_MS = LEASE_MS / 3
/** The version manager holds a `wait` no longer than this before it answers "not yet". */
export const WAIT_MS_MAX = 10_000

const blobId = string(16, /^[a-z2-7]{16}$/)
const version = uint()
const size = uint()
const requestId = string(64, /^[A-Za-z0-9_-]{8,64}$/)
/** Those of the members are this one with `-0`, `-1` … behind it. */
const groupRequestId = string(61, /^[A-Za-z0-9_-]{8,61}$/)
/** Whether it is a good one is for the version manager to say, with ERR_USAGE. */
const imageName = string(200)
const message = string(MESSAGE_CHARACTERS_MAX)

function powerOfTwo (min: number, max: number): Decoder<number> {
  const all: number[] = []
  for (let value = min; value <= max; value *= 2) all.push(value)
  return oneOf(...all)
}
const chunkSize = powerOfTwo(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX)
const fanOut = powerOfTwo(2, 128)

const versionId = record({ blob: blobId, version })
interface Extent { readonly offset: number, readonly size: number }

/** `[offset, size, offset, size, …]`: half of what objects take, and thousands of them are common. */
const extents: Decoder<Extent[]> = (value, what = 'extents') => {
  const numbers = array(uint(), 2 * EXTENTS_MAX)(value, what)
  if (numbers.length % 2 !== 0) throw new P2pvmError('ERR_PROTOCOL', `${what}: expected pairs`)
  const decoded: Extent[] = []
  let end = 0
  for (let at = 0; at < numbers.length; at += 2) {
    const [offset, length] = [numbers[at]!, numbers[at + 1]!]
    if (offset < end || length === 0 || !Number.isSafeInteger(offset + length)) {
      throw new P2pvmError('ERR_PROTOCOL', `${what}: expected ascending extents that are not empty`)
    }
    end = offset + length
    decoded.push({ offset, size: length })
  }
  return decoded
}

function flat (extents: readonly Extent[]): number[] {
  return extents.flatMap(({ offset, size }) => [offset, size])
}

/** The signed header of its publication record, as versioning/publication-codec.ts has it. */
const publishedVersion = bytesUpTo(HEADER_BYTES_MAX)

const target = variant('kind', {
  blob: record({ kind: oneOf('blob'), blob: blobId, expectedBase: optional(version) }),
  new: record({ kind: oneOf('new'), chunkSize, fanOut, name: optional(imageName) }),
  clone: record({ kind: oneOf('clone'), source: versionId, name: optional(imageName) })
})

/** WRITE says where, and how large the blob is at least afterwards; APPEND only how much. */
const change = variant('kind', {
  write: record({ kind: oneOf('write'), extents, size }),
  append: record({ kind: oneOf('append'), size })
})

const memberChanges = array(record({ target, change }), GROUP_MEMBERS_MAX)
const groupChanges: typeof memberChanges = (value, what = 'members') => {
  const members = memberChanges(value, what)
  const count = members.reduce((sum, { change }) => sum + (change.kind === 'write' ? change.extents.length : 1), 0)
  if (count > GROUP_EXTENTS_MAX) throw new P2pvmError('ERR_PROTOCOL', `${what}: expected at most ${GROUP_EXTENTS_MAX} extents together`)
  return members
}

const requests = {
  /** A blob without content, or a clone: version 0, published. */
  create: record({
    op: oneOf('create'),
    requestId,
    of: variant('kind', {
      new: record({ kind: oneOf('new'), chunkSize, fanOut }),
      clone: record({ kind: oneOf('clone'), source: versionId })
    }),
    name: optional(imageName)
  }),
  /** Whoever has the key may write the version's nodes; a repeated request with another one is a conflict. */
  assign: record({ op: oneOf('assign'), requestId, target, change, writerKey: bytes(PUBLIC_KEY_BYTES) }),
  /** As many `assign`, all or none. Each member has a request id of its own, and is renewed, waited for and asked after with that. */
  assignGroup: record({ op: oneOf('assignGroup'), requestId: groupRequestId, members: groupChanges, writerKey: bytes(PUBLIC_KEY_BYTES) }),
  /** A writer's sign of life, from assigning until `complete`. ERR_CONFLICT when it comes too late. */
  renew: record({ op: oneOf('renew'), requestId, blob: blobId, version }),
  /** Of a version that `requestId` was assigned. Durable when answered; published, too, when its turn has come. ERR_CONFLICT as `renew`. */
  complete: record({ op: oneOf('complete'), requestId, blob: blobId, version, message, bytesChanged: uint() }),
  /** All members of what `assignGroup` assigned, in that order: all or none. ERR_CONFLICT when one of them is too late. */
  completeGroup: record({
    op: oneOf('completeGroup'),
    requestId: groupRequestId,
    message,
    members: array(record({ blob: blobId, version, bytesChanged: uint() }), GROUP_MEMBERS_MAX)
  }),
  /** Until it is published, at most `waitMs`. */
  wait: record({ op: oneOf('wait'), blob: blobId, version, waitMs: uint(WAIT_MS_MAX) }),
  recent: record({ op: oneOf('recent'), blob: blobId }),
  /** The left side of a REF, and its number; without one the latest. */
  resolve: record({ op: oneOf('resolve'), ref: string(200), version: optional(version) }),
  /** Names after `after`, in order. */
  images: record({ op: oneOf('images'), after: string(200) }),
  log: record({ op: oneOf('log'), blob: blobId, from: version }),
  outcome: record({ op: oneOf('outcome'), requestId })
}

const inFlight = record({ version, extents, sizeBefore: size, sizeAfter: size })
const assigned = record({
  blob: blobId,
  version,
  /** The latest published version when this one was assigned. */
  base: publishedVersion,
  extents,
  sizeBefore: size,
  sizeAfter: size,
  /** Assigned before this one, not published then; ascending, base + 1 … version - 1. */
  inFlight: array(inFlight, IN_FLIGHT_VERSIONS_MAX),
  /** The fabric's signature under it that the version was assigned to the writer's key: versioning/certificates.ts. */
  certificate: bytes(SIGNATURE_BYTES)
})

const answers = {
  create: record({ version: publishedVersion }),
  assign: assigned,
  assignGroup: record({ members: array(assigned, GROUP_MEMBERS_MAX) }),
  /** How long the lease is now. */
  renew: record({ leaseMs: uint() }),
  /** null: complete, and not published before those in front of it are. */
  complete: record({ published: nullable(publishedVersion) }),
  /** Of each member what `complete` says of one. */
  completeGroup: record({ published: array(nullable(publishedVersion), GROUP_MEMBERS_MAX) }),
  /** null: not yet. */
  wait: record({ published: nullable(publishedVersion) }),
  recent: record({ version: publishedVersion }),
  resolve: record({ version: publishedVersion }),
  /** Empty: that was all. */
  images: record({ images: array(record({ name: imageName, latest: publishedVersion }), PAGE_ROWS_MAX) }),
  log: record({ versions: array(publishedVersion, PAGE_ROWS_MAX) }),
  /** null: never assigned, or not durably so. */
  outcome: record({ assigned: nullable(record({ blob: blobId, version, complete: boolean, aborted: boolean })) })
}

export type VersionOperation = keyof typeof requests
export type VersionRequest<Op extends VersionOperation> = ReturnType<typeof requests[Op]>
export type VersionAnswer<Op extends VersionOperation> = ReturnType<typeof answers[Op]>
export type AnyVersionRequest = { [Op in VersionOperation]: VersionRequest<Op> }[VersionOperation]

/** The version manager, as the protocol sees it. */
export type VersionService = {
  [Op in VersionOperation]: (request: VersionRequest<Op>, context: RequestContext) => Promise<VersionAnswer<Op>>
}

const decodeAny = variant('op', requests)

/** ERR_PROTOCOL. */
export function decodeVersionRequest (body: unknown): AnyVersionRequest {
  return decodeAny(body)
}

/** ERR_PROTOCOL. */
export function decodeVersionAnswer<Op extends VersionOperation> (op: Op, body: unknown): VersionAnswer<Op> {
  return answers[op](body) as VersionAnswer<Op>
}

export function serveVersions (transport: Pick<Transport, 'handle'>, service: VersionService): void {
  transport.handle(VERSION_PROTOCOL, async ({ body }, context) => {
    const request = decodeVersionRequest(body)
    const answer = await (service[request.op] as (request: AnyVersionRequest, context: RequestContext) => Promise<unknown>)(request, context)
    return { body: flatAnswer(request.op, answer) }
  })
}

/** Errors as Transport.request, and those of the version manager. */
export async function askVersions<Op extends VersionOperation> (
  transport: Pick<Transport, 'request'>, peer: PeerId, request: VersionRequest<Op> & { op: Op }, options: RequestOptions
): Promise<VersionAnswer<Op>> {
  const { body } = await transport.request(peer, VERSION_PROTOCOL, { body: flatRequest(request) }, options)
  return decodeVersionAnswer(request.op, body)
}

/** Extents become rows of numbers. */
function flatRequest (request: AnyVersionRequest): unknown {
  if (request.op === 'assign') return flatChange(request)
  if (request.op === 'assignGroup') return { ...request, members: request.members.map(flatChange) }
  return request
}

function flatChange<T extends { readonly change: ReturnType<typeof change> }> (one: T): unknown {
  return one.change.kind === 'write' ? { ...one, change: { ...one.change, extents: flat(one.change.extents) } } : one
}

function flatAnswer (op: VersionOperation, answer: unknown): unknown {
  if (op === 'assign') return flatAssigned(answer as VersionAnswer<'assign'>)
  if (op === 'assignGroup') return { members: (answer as VersionAnswer<'assignGroup'>).members.map(flatAssigned) }
  return answer
}

function flatAssigned (assignment: VersionAnswer<'assign'>): unknown {
  return { ...assignment, extents: flat(assignment.extents), inFlight: assignment.inFlight.map((one) => ({ ...one, extents: flat(one.extents) })) }
}
