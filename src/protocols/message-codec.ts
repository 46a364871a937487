/**
 * What is inside the frames REQUEST, RESPONSE and ERROR of `channel.ts`: a body with the length of the payload that follows,
 * and an error with its code and the ids that a program may want. Pure.
 */
import { strict as assert } from 'node:assert'
import { encodeCbor } from './codec.ts'
import { array, nullable, string, tuple, uint } from './decode.ts'
import type { Decoder } from './decode.ts'
import { P2pvmError } from './errors.ts'
import { BODY_BYTES_MAX } from './frame.ts'
import { PAYLOAD_BYTES_MAX } from './transport.ts'
import type { Message } from './transport.ts'

const ERROR_FIELDS_MAX = 16
const FIELD_CHARACTERS_MAX = 128
const MESSAGE_CHARACTERS_MAX = 1000

/** Length of the payload (null: none) and the body, which each protocol validates. */
export const decodeMessage = tuple(nullable(uint(PAYLOAD_BYTES_MAX)), ((value: unknown) => value) satisfies Decoder<unknown>)
const fieldValue: Decoder<string | number> = (value, what) => typeof value === 'number' ? value : string(FIELD_CHARACTERS_MAX)(value, what)
export const decodeError = tuple(string(32), string(MESSAGE_CHARACTERS_MAX), array(tuple(string(FIELD_CHARACTERS_MAX), fieldValue), ERROR_FIELDS_MAX))

export function encodeMessage (message: Message): Uint8Array {
  assert((message.payload?.length ?? 0) <= PAYLOAD_BYTES_MAX, 'a payload larger than PAYLOAD_BYTES_MAX')
  const body = encodeCbor([message.payload?.length ?? null, message.body])
  assert(body.length <= BODY_BYTES_MAX, 'a body larger than BODY_BYTES_MAX')
  return body
}

export function encodeError (error: unknown): Uint8Array {
  // What is not one of ours may hold paths and stacks: only its being a failure crosses the wire.
  if (!(error instanceof P2pvmError)) return encodeCbor(['ERR_INTERNAL', 'the peer failed to answer', []])
  const fields = Object.entries(error.fields)
    .filter(([name, value]) => name.length <= FIELD_CHARACTERS_MAX && (typeof value === 'string' || Number.isFinite(value)))
    .slice(0, ERROR_FIELDS_MAX)
    .map(([name, value]) => [name, typeof value === 'string' ? value.slice(0, FIELD_CHARACTERS_MAX) : value])
  return encodeCbor([error.code, error.message.slice(0, MESSAGE_CHARACTERS_MAX), fields])
}
