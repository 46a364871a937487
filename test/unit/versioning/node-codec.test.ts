import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { decodeCbor, encodeCbor } from '../../../src/protocols/codec.ts'
import { RECORD_BYTES_MAX, RECORD_NAME_BYTES_MAX } from '../../../src/dht/records.ts'
import { EXCEPTIONS_MAX } from '../../../src/versioning/attempts.ts'
import { bytesOfBlobId } from '../../../src/versioning/blob-id.ts'
import { decodeNode, decodePublication, encodeNode, encodePublication } from '../../../src/versioning/node-codec.ts'
import { nodeName } from '../../../src/versioning/tree-names.ts'
import { anyInner, anyLeaf, anyPublication } from '../../harness/versioning-arbitraries.ts'

const blob = 'abcdefghijklmn23'
const other = 'zzzzzzzzzzzzzzzz'
const bytes = bytesOfBlobId(blob)
const digest = new Uint8Array(32).fill(7)

describe('tree nodes', () => {
  test('come back as they were, the same bytes each time', () => {
    fc.assert(fc.property(fc.oneof(anyLeaf, anyInner), fc.integer({ min: 1, max: 9 }), (node, attempt) => {
      const encoded = encodeNode(node, attempt)
      expect(decodeNode(encoded, node, attempt)).toEqual(node)
      expect(encodeNode(decodeNode(encoded, node, attempt), attempt)).toEqual(encoded)
      expect(nodeName(node, attempt).length).toBeLessThanOrEqual(RECORD_NAME_BYTES_MAX)
    }))
  })

  test('are compact', () => {
    const place = { blob, version: 1000, level: 0, index: 500 }
    expect(encodeNode({ ...place, kind: 'leaf', slots: new Array(64).fill(digest) }, 1).length).toBeLessThan(64 * 34 + 30)
    expect(encodeNode({ ...place, level: 1, kind: 'inner', children: new Array(64).fill({ blob, version: 1000 }) }, 1).length).toBeLessThan(64 * 3 + 30)
    expect(encodeNode({ ...place, kind: 'leaf', slots: new Array(64).fill(null) }, 1).length).toBeLessThan(30)
  })

  test('of another name are refused', () => {
    const node = { blob, version: 5, level: 1, index: 3, kind: 'inner' as const, children: [{ blob, version: 5 }] }
    for (const wrong of [{ blob: other }, { version: 6 }, { index: 4 }, { level: 2 }, { level: 0 }]) {
      expect(() => decodeNode(encodeNode(node, 1), { ...node, ...wrong }, 1)).toThrow(expect.objectContaining({ code: 'ERR_PROTOCOL' }))
    }
  })

  test('of another attempt have another name, and are refused under this one', () => {
    const node = { blob, version: 5, level: 1, index: 3, kind: 'inner' as const, children: [{ blob, version: 5 }] }
    expect([1, 2].map((attempt) => nodeName(node, attempt))).toEqual([`node/${blob}/5/1/3`, `node/${blob}/5.2/1/3`])
    for (const [written, wanted] of [[1, 2], [2, 1], [2, 3]] as const) {
      expect(() => decodeNode(encodeNode(node, written), node, wanted)).toThrow(expect.objectContaining({ code: 'ERR_PROTOCOL' }))
    }
  })

  test.each([
    ['a leaf that links to itself', 0, [5]],
    ['a leaf that links forward', 0, [6]],
    ['a leaf that links to another blob', 0, [[bytes, 1]]],
    ['a leaf with a short digest', 0, [new Uint8Array(31)]],
    ['a node that links forward', 1, [6]],
    ['a node that links forward in so many words', 1, [[bytes, 6]]],
    ['a node with a digest', 1, [digest]],
    ['a node with nothing at its end', 1, [5, null]],
    ['a node that is too wide', 1, new Array(129).fill(5)],
    ['a fraction', 1, [1.5]],
    ['a negative number', 1, [-1]]
  ])('%s is refused', (_, level, entries) => {
    expect(() => decodeNode(encodeCbor([1, bytes, 5, level, 0, entries]), { blob, version: 5, level, index: 0 }, 1))
      .toThrow(expect.objectContaining({ code: 'ERR_PROTOCOL' }))
  })
})

describe('publication records', () => {
  test('come back as they were', () => {
    fc.assert(fc.property(anyPublication, (publication) => {
      expect(decodePublication(encodePublication(publication), publication.version)).toEqual(publication)
    }))
  })

  test('with the most extents, the most exceptions and the longest message fit a record', () => {
    const [one] = fc.sample(anyPublication, 1)
    const extents = Array.from({ length: 4096 }, (_, at) => ({ offset: 2 ** 50 + at * 2 ** 34, size: 2 ** 33 }))
    const exceptions = Array.from({ length: EXCEPTIONS_MAX }, (_, at) => ({ blob: at % 2 === 0 ? blob : other, version: 2 ** 50 + at, attempt: 2 }))
    const version = { ...one!.version, message: '€'.repeat(1000), writer: '€'.repeat(128), attempt: 2, exceptions: exceptions.length }
    const record = { version, extents, exceptions, sizeBefore: 0 }
    expect(encodePublication(record).length).toBeLessThan(RECORD_BYTES_MAX)
    expect(decodePublication(encodePublication(record), version)).toEqual(record)
    const tooMany = Array.from({ length: EXCEPTIONS_MAX + 1 }, () => exceptions[0]!)
    expect(() => encodePublication({ ...record, version: { ...version, exceptions: tooMany.length }, exceptions: tooMany })).toThrow()
  })

  test('without exceptions are what they were before there were any', () => {
    const [one] = fc.sample(anyPublication, 1)
    const version = { ...one!.version, attempt: 1, exceptions: 0 }
    expect(decodeCbor(encodePublication({ ...one!, version, exceptions: [] }))).toMatchObject({ 0: 1, length: 14 })
    expect(decodeCbor(encodePublication({ ...one!, version: { ...version, attempt: 2 }, exceptions: [] }))).toMatchObject({ 0: 2, length: 16 })
  })

  test('of another name, or with a geometry that cannot be, are refused', () => {
    const [one] = fc.sample(anyPublication, 1)
    const { version } = one!
    const refused = (change: Partial<typeof version>, expected = version): void => {
      expect(() => decodePublication(encodePublication({ ...one!, version: { ...version, ...change } }), expected)).toThrow(expect.objectContaining({ code: 'ERR_PROTOCOL' }))
    }
    refused({}, { ...version, version: version.version + 1 })
    refused({}, { ...version, blob: other })
    refused({ chunkSize: 5000 })
    refused({ chunkSize: 2048 })
    refused({ fanOut: 1 })
    refused({ size: Number.MAX_SAFE_INTEGER })
  })
})
