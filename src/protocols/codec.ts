/**
 * CBOR, one way only: what we send is deterministic (sorted keys, shortest forms), what we accept is strict (no indefinite
 * lengths, no duplicate keys, no NaN, integers within Number.MAX_SAFE_INTEGER). Shapes are checked afterwards by `decode.ts`.
 */
import { decode as decodeStrict, encode as encodeDeterministic } from 'cborg'
import { P2pvmError } from './errors.ts'

const DECODE_OPTIONS = {
  strict: true,
  allowIndefinite: false,
  allowUndefined: false,
  allowInfinity: false,
  allowNaN: false,
  allowBigInt: false,
  rejectDuplicateMapKeys: true
}

/** Properties that are undefined are left out, which is how `optional` in decode.ts reads them back. */
export function encodeCbor (value: unknown): Uint8Array {
  return encodeDeterministic(value, { ignoreUndefinedProperties: true })
}

/** ERR_PROTOCOL when the bytes are not exactly one value. Byte strings in the result are copies. */
export function decodeCbor (bytes: Uint8Array): unknown {
  try {
    return decodeStrict(bytes, DECODE_OPTIONS)
  } catch (error) {
    // Too deeply nested input ends in a RangeError of the recursive decoder: hostile like the rest.
    throw new P2pvmError('ERR_PROTOCOL', 'not valid CBOR', {}, error)
  }
}
