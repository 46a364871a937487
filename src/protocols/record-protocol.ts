/**
 * 'record/1': named records between peers. Names and sizes are in the body, the values follow one another in the payload,
 * so that a batch may be larger than a body and comes under the credit window like chunks do.
 *
 *     put {names, sizes} + payload  → {outcomes}          one byte per record, see RECORD_OUTCOMES
 *     get {names}                   → {sizes} + payload   null: not here. Perhaps fewer than were asked (at least one): the
 *                                                         rest did not fit, and is asked for again
 */
import { array, bytes, nullable, oneOf, record, string, uint, variant } from './decode.ts'
import { P2pvmError } from './errors.ts'
import { splitBySize } from './split.ts'
import { PAYLOAD_BYTES_MAX } from './transport.ts'
import type { Message, PeerId, RequestContext, RequestOptions, Transport } from './transport.ts'

export const RECORD_PROTOCOL = 'record/1'

const RECORD_OUTCOMES = ['stored', 'there', 'conflict', 'refused'] as const
/** `there`: it had this value before. `refused`: it is not what may be under that name. As `RecordOutcome` of the dht. */
export type RecordPutOutcome = typeof RECORD_OUTCOMES[number]

/** As `NamedRecord` of the dht. */
export interface WireRecord {
  readonly name: string
  readonly value: Uint8Array
}

export interface RecordHandlers {
  /** Durable when it returns. */
  put (records: readonly WireRecord[], context: RequestContext): Promise<RecordPutOutcome[]>
  get (names: readonly string[], context: RequestContext): Promise<Array<Uint8Array | undefined>>
}

/** 512 of the longest names are 100 KiB: within a body. */
export const RECORDS_MAX = 512
/** What one answer or batch carries. A fraction of the largest payload, so that a batch is soon through. */
export const RECORD_BATCH_BYTES = 1024 * 1024
/** RECORD_NAME_BYTES_MAX and RECORD_BYTES_MAX of the dht, which checks them again. */
const NAME_CHARACTERS_MAX = 200
const VALUE_BYTES_MAX = 128 * 1024

const names = array(string(NAME_CHARACTERS_MAX, /^[\x21-\x7e]+$/), RECORDS_MAX)
const decodeRequest = variant('kind', {
  put: record({ kind: oneOf('put'), names, sizes: array(uint(VALUE_BYTES_MAX), RECORDS_MAX) }),
  get: record({ kind: oneOf('get'), names })
})

export function serveRecords (transport: Transport, handlers: RecordHandlers): void {
  transport.handle(RECORD_PROTOCOL, async (message, context) => {
    const request = decodeRequest(message.body)
    if (request.kind === 'get') return packValues(await handlers.get(request.names, context))
    const values = unpack(request.sizes, message.payload)
    if (values.length !== request.names.length) throw new P2pvmError('ERR_PROTOCOL', 'as many names as values')
    const records = request.names.map((name, index) => ({ name, value: values[index]! }))
    const outcomes = await handlers.put(records, context)
    return { body: { outcomes: Uint8Array.from(outcomes, (outcome) => RECORD_OUTCOMES.indexOf(outcome)) } }
  })
}

/** Any number of records, in batches one after the other, each with the deadline. Outcomes in their order. */
export async function putRecords (transport: Transport, peer: PeerId, records: readonly WireRecord[], options: RequestOptions): Promise<RecordPutOutcome[]> {
  const all: RecordPutOutcome[] = []
  for (const batch of splitBySize(records, ({ value }) => value.length, RECORDS_MAX, RECORD_BATCH_BYTES)) {
    const values = batch.map(({ value }) => value)
    const body = { kind: 'put', names: batch.map(({ name }) => name), sizes: values.map((value) => value.length) }
    const answer = await transport.request(peer, RECORD_PROTOCOL, { body, payload: Buffer.concat(values) }, options)
    for (const one of record({ outcomes: bytes(batch.length) })(answer.body).outcomes) {
      const outcome = RECORD_OUTCOMES[one]
      if (outcome === undefined) throw new P2pvmError('ERR_PROTOCOL', `no record outcome has the number ${one}`, { peer })
      all.push(outcome)
    }
  }
  return all
}

/** Any number of names, in batches one after the other, each with the deadline. Values in their order. */
export async function getRecords (transport: Transport, peer: PeerId, wanted: readonly string[], options: RequestOptions): Promise<Array<Uint8Array | undefined>> {
  const values: Array<Uint8Array | undefined> = []
  while (values.length < wanted.length) {
    const batch = wanted.slice(values.length, values.length + RECORDS_MAX)
    const answer = await transport.request(peer, RECORD_PROTOCOL, { body: { kind: 'get', names: batch } }, options)
    const { sizes } = record({ sizes: array(nullable(uint(VALUE_BYTES_MAX)), batch.length) })(answer.body)
    if (sizes.length === 0) throw new P2pvmError('ERR_PROTOCOL', 'an answer without a single record', { peer })
    values.push(...unpack(sizes, answer.payload))
  }
  return values
}

/** As many of the values, from the first on, as fit one answer. */
function packValues (values: ReadonlyArray<Uint8Array | undefined>): Message {
  const [fitting = []] = splitBySize(values, (value) => value?.length ?? 0, RECORDS_MAX, RECORD_BATCH_BYTES)
  return {
    body: { sizes: fitting.map((value) => value?.length ?? null) },
    payload: Buffer.concat(fitting.filter((value) => value !== undefined))
  }
}

/** Copies (`slice` of a Buffer is none), so that one value that is kept does not keep the whole batch. */
function unpack<S extends number | null> (sizes: readonly S[], payload: Uint8Array | undefined): Array<S extends number ? Uint8Array : Uint8Array | undefined>
function unpack (sizes: ReadonlyArray<number | null>, payload: Uint8Array = new Uint8Array(0)): Array<Uint8Array | undefined> {
  const total = sizes.reduce<number>((sum, size) => sum + (size ?? 0), 0)
  if (total !== payload.length || total > PAYLOAD_BYTES_MAX) throw new P2pvmError('ERR_PROTOCOL', 'values do not fill the payload')
  let at = 0
  return sizes.map((size) => {
    if (size === null) return undefined
    at += size
    return new Uint8Array(payload.subarray(at - size, at))
  })
}
