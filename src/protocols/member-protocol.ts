/**
 * 'member/1': who is in the fabric.
 *
 *     describe {}                                → {row}      the peer's own
 *     exchange {from, to, beats, complete, pull} → {beats, rows, want, more, complete}
 *     push     {rows}                            → {}         what `want` asked for
 *
 * An exchange compares two member lists over one range of keys, both ways. `beats` says, in 18 bytes per member, which
 * incarnation of it has been heard of and how far its heartbeat had come: 2,048 members in 36 KiB. The answer has the beats
 * that are further on the other side, whole rows where an incarnation is new to us (`more`: not all fitted, ask again), and the
 * keys of those that are new to them (as many as one `push` may carry). Merging is in `dht/member-list.ts`.
 */
import { array, boolean, bytesUpTo, nullable, oneOf, record, string, tuple, uint, variant } from './decode.ts'
import type { Decoder } from './decode.ts'
import { P2pvmError } from './errors.ts'
import type { Message, PeerId, RequestContext, RequestOptions, Transport } from './transport.ts'

export const MEMBER_PROTOCOL = 'member/1'

const WIRE_ROLES = ['storage', 'versions', 'compute'] as const
export type WireRole = typeof WIRE_ROLES[number]

/** What there is to know of a member. */
export interface MemberRow {
  readonly id: PeerId
  readonly addresses: readonly string[]
  readonly roles: readonly WireRole[]
  readonly capacityBytes: number
  /** When it started, milliseconds since 1970, or later when somebody knew a higher one: every start has a new one. */
  readonly incarnation: number
  /** Counts up while it lives. */
  readonly heartbeat: number
  /** Whether the sender takes it to be down. */
  readonly down: boolean
}

/** How far a member's heartbeat has come. `key` is the first 8 bytes of its Kademlia id, in hex: lists are ordered by it. */
export interface Beat {
  readonly key: string
  readonly incarnation: number
  readonly heartbeat: number
}

export interface Exchange {
  /** The range of keys that is compared: from <= key < to; null is the end of all keys. */
  readonly from: string
  readonly to: string | null
  readonly beats: readonly Beat[]
  /** The asking side's list is complete. */
  readonly complete: boolean
  /** The asking side only wants to learn: it is no member itself. */
  readonly pull: boolean
}

export interface ExchangeAnswer {
  readonly beats: readonly Beat[]
  readonly rows: readonly MemberRow[]
  readonly want: readonly string[]
  readonly more: boolean
  readonly complete: boolean
}

export interface MemberHandlers {
  describe (): MemberRow
  exchange (exchange: Exchange, context: RequestContext): ExchangeAnswer
  push (rows: readonly MemberRow[], context: RequestContext): void
}

/** Keys in one exchange: an answer with all their beats, and as many rows as it may have, fits a body. */
export const EXCHANGE_KEYS_MAX = 2048
/** Rows in one message: of the usual 150 bytes each, or 600 with as many and as long addresses as there may be. */
export const ROWS_MAX = 128
export const ADDRESSES_MAX = 8
const ADDRESS_CHARACTERS_MAX = 64
const PEER_ID_CHARACTERS_MAX = 64

const KEY_BYTES = 8
const BEAT_BYTES = KEY_BYTES + 6 + 4
const HEARTBEAT_MAX = 2 ** 32 - 1
const INCARNATION_MAX = 2 ** 48 - 1

const key = string(2 * KEY_BYTES, /^[0-9a-f]{16}$/)
const keys = array(key, ROWS_MAX)

const decodeRow: Decoder<MemberRow> = (value, what) => {
  const [id, addresses, roles, capacityBytes, incarnation, heartbeat, down] = rowFields(value, what)
  return { id, addresses, roles, capacityBytes, incarnation, heartbeat, down }
}
const rowFields = tuple(
  string(PEER_ID_CHARACTERS_MAX, /^[A-Za-z0-9]+$/),
  array(string(ADDRESS_CHARACTERS_MAX, /^\/[\x21-\x7e]*$/), ADDRESSES_MAX),
  array(oneOf(...WIRE_ROLES), WIRE_ROLES.length),
  uint(),
  uint(INCARNATION_MAX),
  uint(HEARTBEAT_MAX),
  boolean
)
const rows = array(decodeRow, ROWS_MAX)

/** The form in which rows travel and are kept on disk. */
export function encodeRow (row: MemberRow): unknown {
  const addresses = row.addresses.filter((address) => address.length <= ADDRESS_CHARACTERS_MAX).slice(0, ADDRESSES_MAX)
  return [row.id, addresses, [...row.roles], row.capacityBytes, row.incarnation, row.heartbeat, row.down]
}

/** Rows that were kept on disk: any number. ERR_PROTOCOL. */
export const decodeStoredRows = array(decodeRow, Number.MAX_SAFE_INTEGER)

function encodeBeats (beats: readonly Beat[]): Uint8Array {
  const packed = Buffer.allocUnsafe(beats.length * BEAT_BYTES)
  let at = 0
  for (const beat of beats) {
    packed.write(beat.key, at, 'hex')
    packed.writeUIntBE(beat.incarnation, at + KEY_BYTES, 6)
    packed.writeUInt32BE(beat.heartbeat, at + KEY_BYTES + 6)
    at += BEAT_BYTES
  }
  return packed
}

const beats: Decoder<Beat[]> = (value, what = 'beats') => {
  const packed = bytesUpTo(EXCHANGE_KEYS_MAX * BEAT_BYTES)(value, what)
  if (packed.length % BEAT_BYTES !== 0) throw new P2pvmError('ERR_PROTOCOL', `${what}: expected whole beats`)
  const view = Buffer.from(packed.buffer, packed.byteOffset, packed.length)
  return Array.from({ length: packed.length / BEAT_BYTES }, (_, index) => {
    const at = index * BEAT_BYTES
    return { key: view.toString('hex', at, at + KEY_BYTES), incarnation: view.readUIntBE(at + KEY_BYTES, 6), heartbeat: view.readUInt32BE(at + KEY_BYTES + 6) }
  })
}

const decodeRequest = variant('kind', {
  describe: record({ kind: oneOf('describe') }),
  exchange: record({ kind: oneOf('exchange'), from: key, to: nullable(key), beats, complete: boolean, pull: boolean }),
  push: record({ kind: oneOf('push'), rows })
})
const decodeDescription = record({ row: decodeRow })
const decodeExchangeAnswer = record({ beats, rows, want: keys, more: boolean, complete: boolean })

export function serveMembers (transport: Transport, handlers: MemberHandlers): void {
  transport.handle(MEMBER_PROTOCOL, async (message, context): Promise<Message> => {
    const request = decodeRequest(message.body)
    switch (request.kind) {
      case 'describe':
        return { body: { row: encodeRow(handlers.describe()) } }
      case 'exchange': {
        const answer = handlers.exchange(request, context)
        return { body: { ...answer, beats: encodeBeats(answer.beats), rows: answer.rows.map(encodeRow) } }
      }
      case 'push':
        handlers.push(request.rows, context)
        return { body: {} }
    }
  })
}

/** ERR_PROTOCOL when the peer describes somebody else. */
export async function describeMember (transport: Transport, peer: PeerId, options: RequestOptions): Promise<MemberRow> {
  const { body } = await transport.request(peer, MEMBER_PROTOCOL, { body: { kind: 'describe' } }, options)
  const { row } = decodeDescription(body)
  if (row.id !== peer) throw new P2pvmError('ERR_PROTOCOL', `${peer} describes itself as ${row.id}`, { peer })
  return row
}

export async function exchangeMembers (transport: Transport, peer: PeerId, exchange: Exchange, options: RequestOptions): Promise<ExchangeAnswer> {
  const body = { kind: 'exchange', ...exchange, beats: encodeBeats(exchange.beats) }
  const answer = await transport.request(peer, MEMBER_PROTOCOL, { body }, options)
  return decodeExchangeAnswer(answer.body)
}

/** At most ROWS_MAX rows. */
export async function pushMembers (transport: Transport, peer: PeerId, pushed: readonly MemberRow[], options: RequestOptions): Promise<void> {
  await transport.request(peer, MEMBER_PROTOCOL, { body: { kind: 'push', rows: pushed.map(encodeRow) } }, options)
}
