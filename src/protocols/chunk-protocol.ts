/**
 * 'chunk/1': chunks between peers. They travel as payloads, packed or not (`dht/packed-chunk.ts`), ids as bare digests. Hashes are not
 * checked here: who puts a chunk into a store or uses one that it got does that.
 *
 *     have  {ids}           → {present}   one byte per id, 1 when it is there; renews their leases before it answers
 *     put   {id} + payload  → {isNew}
 *     get   {id, priority}  → {found} + payload
 *     audit {ids}           → {conditions}    one byte per id, see CHUNK_CONDITIONS; reads each copy and checks its hash
 */
import { CHUNK_BYTES_MAX, chunkIdOfDigest, digestOf } from './cid.ts'
import type { ChunkId } from './cid.ts'
import { boolean, bytes, oneOf, record, variant } from './decode.ts'
import type { Decoder } from './decode.ts'
import { DIGEST_BYTES, digestList, encodeDigests } from './digest-list.ts'
import { P2pvmError } from './errors.ts'
import { splitBy } from './split.ts'
import type { Message, PeerId, RequestContext, RequestOptions, Transport } from './transport.ts'

export const CHUNK_PROTOCOL = 'chunk/1'

const CHUNK_CONDITIONS = ['good', 'missing', 'corrupt'] as const
export type ChunkCondition = typeof CHUNK_CONDITIONS[number]

const PRIORITIES = ['demand', 'commit', 'prefetch'] as const
/** As `Priority` of the dht. */
export type ChunkPriority = typeof PRIORITIES[number]

/** `have` syncs a lease per chunk that is there: so many that an answer takes tens of milliseconds, not seconds. */
export const HAVE_IDS_MAX = 1024
/** `audit` reads and hashes: at 1 GB/s, chunks of the default size, some 30 ms. */
export const AUDIT_IDS_MAX = 128

export interface ChunkHandlers {
  have (ids: readonly ChunkId[], context: RequestContext): Promise<boolean[]>
  /** True when it was not there before. */
  put (id: ChunkId, bytes: Uint8Array, context: RequestContext): Promise<boolean>
  /** undefined when it is not here. */
  get (id: ChunkId, priority: ChunkPriority, context: RequestContext): Promise<Uint8Array | undefined>
  audit (ids: readonly ChunkId[], context: RequestContext): Promise<ChunkCondition[]>
}

const chunkId: Decoder<ChunkId> = (value, what) => chunkIdOfDigest(bytes(DIGEST_BYTES)(value, what))

const decodeRequest = variant('kind', {
  have: record({ kind: oneOf('have'), ids: digestList(HAVE_IDS_MAX) }),
  put: record({ kind: oneOf('put'), id: chunkId }),
  get: record({ kind: oneOf('get'), id: chunkId, priority: oneOf(...PRIORITIES) }),
  audit: record({ kind: oneOf('audit'), ids: digestList(AUDIT_IDS_MAX) })
})
const decodePutAnswer = record({ isNew: boolean })
const decodeGetAnswer = record({ found: boolean })

export function serveChunks (transport: Transport, handlers: ChunkHandlers): void {
  transport.handle(CHUNK_PROTOCOL, async (message, context) => await answerChunkRequest(message, context, handlers))
}

async function answerChunkRequest (message: Message, context: RequestContext, handlers: ChunkHandlers): Promise<Message> {
  const request = decodeRequest(message.body)
  switch (request.kind) {
    case 'have':
      return { body: { present: Uint8Array.from(await handlers.have(request.ids, context), Number) } }
    case 'put':
      return { body: { isNew: await handlers.put(request.id, payloadOf(message), context) } }
    case 'get': {
      const chunk = await handlers.get(request.id, request.priority, context)
      return chunk === undefined ? { body: { found: false } } : { body: { found: true }, payload: chunk }
    }
    case 'audit': {
      const conditions = await handlers.audit(request.ids, context)
      return { body: { conditions: Uint8Array.from(conditions, (condition) => CHUNK_CONDITIONS.indexOf(condition)) } }
    }
  }
}

/** Any number of ids; asks for HAVE_IDS_MAX at a time, each with the deadline. */
export async function haveChunks (transport: Transport, peer: PeerId, ids: readonly ChunkId[], options: RequestOptions): Promise<boolean[]> {
  const present: boolean[] = []
  for (const part of splitBy(ids, HAVE_IDS_MAX)) {
    const { body } = await transport.request(peer, CHUNK_PROTOCOL, { body: { kind: 'have', ids: encodeDigests(part) } }, options)
    for (const one of record({ present: bytes(part.length) })(body).present) present.push(one === 1)
  }
  return present
}

/** True when the peer did not have it before. Its own errors cross: ERR_CORRUPT, ERR_DISK_FULL. */
export async function putChunk (transport: Transport, peer: PeerId, id: ChunkId, chunk: Uint8Array, options: RequestOptions): Promise<boolean> {
  const { body } = await transport.request(peer, CHUNK_PROTOCOL, { body: { kind: 'put', id: digestOf(id) }, payload: chunk }, options)
  return decodePutAnswer(body).isNew
}

/** Unverified bytes; undefined when the peer has it not; ERR_CORRUPT when its copy is bad. */
export async function getChunk (transport: Transport, peer: PeerId, id: ChunkId, options: RequestOptions & { priority?: ChunkPriority | undefined }): Promise<Uint8Array | undefined> {
  const { priority = 'demand' } = options
  const answer = await transport.request(peer, CHUNK_PROTOCOL, { body: { kind: 'get', id: digestOf(id), priority } }, options)
  return decodeGetAnswer(answer.body).found ? payloadOf(answer) : undefined
}

/** Any number of ids; asks for AUDIT_IDS_MAX at a time, each with the deadline. */
export async function auditChunks (transport: Transport, peer: PeerId, ids: readonly ChunkId[], options: RequestOptions): Promise<ChunkCondition[]> {
  const conditions: ChunkCondition[] = []
  for (const part of splitBy(ids, AUDIT_IDS_MAX)) {
    const { body } = await transport.request(peer, CHUNK_PROTOCOL, { body: { kind: 'audit', ids: encodeDigests(part) } }, options)
    for (const one of record({ conditions: bytes(part.length) })(body).conditions) {
      const condition = CHUNK_CONDITIONS[one]
      if (condition === undefined) throw new P2pvmError('ERR_PROTOCOL', `no condition of a chunk has the number ${one}`, { peer })
      conditions.push(condition)
    }
  }
  return conditions
}

function payloadOf (message: Message): Uint8Array {
  const { payload } = message
  if (payload === undefined || payload.length === 0 || payload.length > CHUNK_BYTES_MAX) {
    throw new P2pvmError('ERR_PROTOCOL', `a chunk of ${payload?.length ?? 'no'} bytes`)
  }
  return payload
}
