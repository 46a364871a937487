import { encode } from 'cborg'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { writeCbor } from '../../../src/protocols/cbor-writer.ts'
import { encodeCbor } from '../../../src/protocols/codec.ts'

const reference = (value: unknown): Buffer => Buffer.from(encode(value, { ignoreUndefinedProperties: true }))
const written = (value: unknown): Buffer | undefined => {
  const bytes = writeCbor(value)
  return bytes === undefined ? undefined : Buffer.from(bytes)
}

const text = fc.oneof(fc.string(), fc.string({ unit: 'binary' }), fc.string({ minLength: 20, maxLength: 300 }))
const integer = fc.oneof(fc.integer(), fc.maxSafeInteger(), fc.constantFrom(0, 23, 24, 255, 256, 65535, 65536, 2 ** 32 - 1, 2 ** 32, -1, -24, -25, -256, -257))
const { value } = fc.letrec((tie) => ({
  value: fc.oneof({ maxDepth: 4 }, text, integer, fc.boolean(), fc.constant(null), fc.uint8Array({ maxLength: 300 }), tie('array'), tie('object')),
  array: fc.array(tie('value'), { maxLength: 30 }),
  object: fc.dictionary(text.filter((key) => key !== '__proto__'), fc.oneof(tie('value'), fc.constant(undefined)), { maxKeys: 60 })
}))

describe('CBOR writer', () => {
  it('writes what the library writes, or leaves it to the library', () => {
    fc.assert(fc.property(value, (one) => {
      const bytes = written(one)
      if (bytes !== undefined) expect(bytes.equals(reference(one))).toBe(true)
      expect(Buffer.from(encodeCbor(one)).equals(reference(one))).toBe(true)
    }), { numRuns: 1000 })
  })

  it('writes messages itself', () => {
    const body = {
      op: 'assign', requestId: 'a'.repeat(32), target: { kind: 'blob', blob: 'abcdefghijklmnop', expectedBase: undefined },
      change: { kind: 'write', extents: [0, 4096, 2 ** 40, 1], size: 2 ** 41 }, message: 'größer', digest: Buffer.alloc(32, 7), none: null, yes: true, no: false
    }
    expect(written([null, body])).toEqual(reference([null, body]))
    expect(written({ bb: 1, a: 2, ab: 3, aaa: 4, b: 5 })).toEqual(reference({ bb: 1, a: 2, ab: 3, aaa: 4, b: 5 }))
  })

  it.each([
    ['a fraction', 1.5], ['minus zero', -0], ['an integer that is not safe', 2 ** 60], ['undefined', [undefined]], ['a map', new Map([['a', 1]])],
    ['a key that is not ASCII', { é: 1, zz: 2 }], ['many bytes', new Uint8Array(40_000)], ['long text', 'x'.repeat(40_000)], ['a long array', Array.from({ length: 40_000 }, () => null)],
    ['what does not fit at its end', [new Uint8Array(32 * 1024 - 8), 'x', 2 ** 40, true]]
  ])('leaves %s to the library', (_name, one) => {
    expect(writeCbor(one)).toBeUndefined()
    expect(Buffer.from(encodeCbor(one)).equals(reference(one))).toBe(true)
  })

  it('hands out bytes that the next message does not overwrite', () => {
    const first = writeCbor({ a: 'first' })!
    const before = Buffer.from(first)
    writeCbor({ b: 'second' })
    expect(before.equals(first)).toBe(true)
  })
})
