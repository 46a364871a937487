import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { RECORD_BYTES_MAX } from '../../../src/dht/records.ts'
import { decodeCbor, encodeCbor } from '../../../src/protocols/codec.ts'
import { HEADER_BYTES_MAX } from '../../../src/protocols/version-protocol.ts'
import { EXCEPTIONS_MAX } from '../../../src/versioning/attempts.ts'
import { decodeHeader, decodePublication, hashOfSigned, type Publication, sealPublication } from '../../../src/versioning/publication-codec.ts'
import { skipOf, wayDown } from '../../../src/versioning/skip-chain.ts'
import { fabricSigner, namedSigner } from '../../harness/signers.ts'
import { anyPublication, linksOf } from '../../harness/versioning-arbitraries.ts'

const blob = 'abcdefghijklmn23'
const other = 'zzzzzzzzzzzzzzzz'
const fabricKey = fabricSigner.publicKey
const refused = expect.objectContaining({ code: 'ERR_PROTOCOL' }) as unknown
const [one] = fc.sample(anyPublication, 1) as [Publication]
const sealed = (publication: Publication): ReturnType<typeof sealPublication> => sealPublication(publication, linksOf(publication), fabricSigner)

describe('publication records', () => {
  test('come back as they were, the same bytes each time', () => {
    fc.assert(fc.property(anyPublication, (publication) => {
      const { header, value } = sealed(publication)
      const { extents, exceptions, version, sizeBefore } = publication
      expect(decodePublication(value, version, fabricKey)).toEqual({ header, extents, exceptions })
      expect(decodeHeader(header.signed)).toEqual(header)
      expect(header).toMatchObject({ version: { ...version, hash: hashOfSigned(header.signed) }, sizeBefore, links: linksOf(publication) })
      expect(sealed(publication).value).toEqual(value)
    }))
  })

  test('with the most extents, the most exceptions and the longest message fit a record, and their header an answer', () => {
    const extents = Array.from({ length: 4096 }, (_, at) => ({ offset: 2 ** 50 + at * 2 ** 34, size: 2 ** 33 }))
    const exceptions = Array.from({ length: EXCEPTIONS_MAX }, (_, at) => ({ blob: at % 2 === 0 ? blob : other, version: 2 ** 50 + at, attempt: 2 }))
    const version = { ...one.version, message: '€'.repeat(1000), writer: '€'.repeat(128), attempt: 2, exceptions: exceptions.length }
    const { value, header } = sealed({ version, extents, exceptions, sizeBefore: 0 })
    expect(value.length).toBeLessThan(RECORD_BYTES_MAX)
    expect(header.signed.length).toBeLessThan(HEADER_BYTES_MAX)
    expect(decodePublication(value, version, fabricKey)).toMatchObject({ extents, exceptions })
    const tooMany = Array.from({ length: EXCEPTIONS_MAX + 1 }, () => exceptions[0]!)
    expect(() => sealed({ version: { ...version, exceptions: tooMany.length }, extents, exceptions: tooMany, sizeBefore: 0 })).toThrow()
  })

  test('of another name, or with a geometry that cannot be, are refused', () => {
    const { version } = one
    const isRefused = (change: Partial<typeof version>, expected = version): void => {
      expect(() => decodePublication(sealed({ ...one, version: { ...version, ...change } }).value, expected, fabricKey)).toThrow(refused)
    }
    isRefused({}, { ...version, version: version.version + 1 })
    isRefused({}, { ...version, blob: other })
    isRefused({ chunkSize: 5000 })
    isRefused({ chunkSize: 2048 })
    isRefused({ fanOut: 1 })
    isRefused({ size: Number.MAX_SAFE_INTEGER })
  })

  test('that another key signed, or with another record\'s body, are refused', () => {
    const forged = sealPublication(one, linksOf(one), namedSigner('a storage peer')).value
    expect(() => decodePublication(forged, one.version, fabricKey)).toThrow(refused)
    const [signed] = decodeCbor(sealed(one).value) as [Uint8Array, Uint8Array]
    const [, body] = decodeCbor(sealed({ ...one, extents: [{ offset: 7, size: 9 }] }).value) as [Uint8Array, Uint8Array]
    expect(() => decodePublication(encodeCbor([signed, body]), one.version, fabricKey)).toThrow(refused)
  })

  test('are refused with any bit of them changed', () => {
    const { value } = sealed(one)
    for (const [at, byte] of value.entries()) expect(() => decodePublication(value.with(at, byte ^ 1), one.version, fabricKey)).toThrow(refused)
  })

  test('without the links that they must have are refused', () => {
    const publication = { ...one, version: { ...one.version, version: 6, parent: { blob, version: 5 } } }
    const links = linksOf(publication)
    expect(decodeHeader(sealPublication(publication, links, fabricSigner).header.signed).links).toEqual(links)
    for (const wrong of [{ ...links, previous: null }, { ...links, skip: null }]) {
      expect(() => decodeHeader(sealPublication(publication, wrong, fabricSigner).header.signed)).toThrow(refused)
    }
    const odd = { ...publication, version: { ...publication.version, version: 7 } }
    expect(() => decodeHeader(sealPublication(odd, links, fabricSigner).header.signed)).toThrow(refused)
  })
})

describe('the links between records', () => {
  test('skip to the number without its lowest bit', () => {
    expect([0, 1, 2, 3, 4, 6, 7, 12, 2 ** 40 + 2 ** 35].map(skipOf)).toEqual([undefined, undefined, 0, undefined, 0, 4, undefined, 8, 2 ** 40])
  })

  test('lead from any version to any older one, in few steps', () => {
    fc.assert(fc.property(fc.nat(2 ** 40), fc.nat(2 ** 40), (a, b) => {
      const [to, from] = [Math.min(a, b), Math.max(a, b)]
      const way = wayDown(from, to)
      expect([way[0], way.at(-1)]).toEqual([from, to])
      for (const [at, version] of way.slice(1).entries()) expect([way[at]! - 1, skipOf(way[at]!)]).toContain(version)
      expect(way.length).toBeLessThanOrEqual(1 + 41 * 42 / 2)
    }))
    expect(wayDown(10_000, 1).length).toBeLessThan(100)
    expect(wayDown(7, 7)).toEqual([7])
    expect(wayDown(2 ** 20, 0)).toEqual([2 ** 20, 0])
  })
})
