import { describe, expect, expectTypeOf, it } from 'vitest'
import { decodeCbor, encodeCbor } from '../../../src/protocols/codec.ts'
import { array, bytes, bytesUpTo, nullable, oneOf, optional, record, string, tuple, uint, variant } from '../../../src/protocols/decode.ts'
import { errorCodeOf } from '../../../src/protocols/errors.ts'

const codeOf = (run: () => unknown): string => {
  try {
    run()
  } catch (error) {
    return errorCodeOf(error)
  }
  return 'none'
}

describe('decode', () => {
  const decoder = record({ id: bytes(2), kind: oneOf('a', 'b'), size: uint(10), note: optional(string(3)), list: array(uint(), 2), base: nullable(uint()) })
  const good = { id: new Uint8Array(2), kind: 'a', size: 10, list: [1, 2], base: null }

  it('passes what fits and drops what it does not know', () => {
    const decoded = decoder({ ...good, other: 1 })
    expect(decoded).toEqual(good)
    expectTypeOf(decoded).toEqualTypeOf<{ id: Uint8Array, kind: 'a' | 'b', size: number, note?: string, list: number[], base: number | null }>()
  })

  it.each([
    [{ id: new Uint8Array(3) }], [{ id: 'xx' }], [{ kind: 'c' }], [{ size: 11 }], [{ size: -1 }], [{ size: 1.5 }], [{ size: '1' }],
    [{ note: 'four' }], [{ note: null }], [{ list: [1, 2, 3] }], [{ list: ['1'] }], [{ base: 'x' }], [{ list: undefined }]
  ])('rejects %j as a protocol error', (change) => {
    expect(codeOf(() => decoder({ ...good, ...change }))).toBe('ERR_PROTOCOL')
  })

  it.each([[null], [1], [[]], [new Uint8Array(1)], [undefined]])('rejects %j in place of a record', (value) => {
    expect(codeOf(() => decoder(value))).toBe('ERR_PROTOCOL')
  })

  it('does not find fields on the prototype', () => {
    expect(codeOf(() => record({ constructor: (value: unknown) => value ?? codeOf(() => { throw new Error() }) })({}))).toBe('none')
    expect(record({ toString: optional(string(5)) })({})).toEqual({})
  })

  it('decodes tuples and variants', () => {
    expect(tuple(uint(), string(3))([1, 'x'])).toEqual([1, 'x'])
    expect(codeOf(() => tuple(uint(), string(3))([1]))).toBe('ERR_PROTOCOL')
    const either = variant('kind', { a: record({ kind: oneOf('a'), n: uint() }), b: record({ kind: oneOf('b'), s: bytesUpTo(1) }) })
    expect(either({ kind: 'a', n: 1 })).toEqual({ kind: 'a', n: 1 })
    expect(codeOf(() => either({ kind: 'b', s: new Uint8Array(2) }))).toBe('ERR_PROTOCOL')
    expect(codeOf(() => either({ kind: 'constructor' }))).toBe('ERR_PROTOCOL')
  })
})

describe('codec', () => {
  it('is deterministic and leaves out undefined', () => {
    const first = encodeCbor({ b: 1, a: [Buffer.from('x'), null, true, 2 ** 53 - 1], c: undefined })
    expect(first).toEqual(encodeCbor({ a: [new Uint8Array([120]), null, true, 2 ** 53 - 1], b: 1 }))
    expect(decodeCbor(first)).toEqual({ a: [new Uint8Array([120]), null, true, 2 ** 53 - 1], b: 1 })
  })

  it.each([
    ['nothing', ''], ['two values', '0101'], ['undefined', 'f7'], ['NaN', 'f97e00'], ['infinity', 'f97c00'], ['an indefinite array', '9f01ff'],
    ['a long form of 1', '1801'], ['a bigint', '1bffffffffffffffff'], ['duplicate keys', 'a2616101616102'], ['a cut string', '6261'],
    ['a tag', 'c001'], ['a huge array without items', '9affffffff']
  ])('rejects %s', (_name, hex) => {
    expect(codeOf(() => decodeCbor(Buffer.from(hex, 'hex')))).toBe('ERR_PROTOCOL')
  })

  it('rejects nesting that would overflow the stack', () => {
    expect(codeOf(() => decodeCbor(new Uint8Array(192 * 1024).fill(0x81)))).toBe('ERR_PROTOCOL')
  })

  it('does not let __proto__ through as a prototype', () => {
    const decoded = decodeCbor(Buffer.from('a1695f5f70726f746f5f5fa1616101', 'hex')) as { a?: unknown }
    expect(decoded.a).toBeUndefined()
  })
})
