import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { Extent } from '../../../src/versioning/blobs.ts'
import { coalesce, extentsOfChunks } from '../../../src/versioning/extents.ts'
import { BLOB_BYTES_MAX, type Geometry, namesWrittenBy, rootLevelOf, type WriteShape } from '../../../src/versioning/tree-names.ts'

const CHUNK = 4096

/** The definition of design.md, word for word, by trying every node of a small tree. */
function bruteForce ({ extents, sizeBefore, sizeAfter }: WriteShape, { chunkSize, fanOut }: Geometry): Set<string> {
  const span = (level: number): number => fanOut ** (level + 1)
  const rootLevel = (size: number): number => {
    for (let level = 0; ; level++) if (span(level) * chunkSize >= size) return level
  }
  const touched = new Set<number>()
  for (const { offset, size } of extents) {
    for (let byte = offset; byte < offset + size; byte++) touched.add(Math.floor(byte / chunkSize))
  }
  const names = new Set<string>()
  for (let level = 0; level <= rootLevel(sizeAfter); level++) {
    for (const chunk of touched) names.add(`${level}/${Math.floor(chunk / span(level))}`)
    if (level > rootLevel(sizeBefore)) names.add(`${level}/0`)
  }
  names.add(`${rootLevel(sizeAfter)}/0`)
  return names
}

const geometries = fc.constantFrom(2, 4, 8, 64, 128).map((fanOut) => ({ chunkSize: 4, fanOut }))

/** Small, of some hundred bytes, so that the definition can be tried byte by byte. */
const writes: fc.Arbitrary<WriteShape> = fc.record({
  sizeBefore: fc.nat(800),
  growth: fc.nat(800),
  parts: fc.array(fc.record({ at: fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true }), size: fc.integer({ min: 1, max: 90 }) }), { maxLength: 6 })
}).map(({ sizeBefore, growth, parts }) => {
  const sizeAfter = sizeBefore + growth
  const extents = sizeAfter === 0
    ? []
    : parts.map(({ at, size }) => {
      const offset = Math.floor(at * sizeAfter)
      return { offset, size: Math.min(size, sizeAfter - offset) }
    })
  return { extents: coalesce(extents), sizeBefore, sizeAfter }
})

describe('names that a version writes', () => {
  test('are those of the definition, in names() and in writes()', () => {
    fc.assert(fc.property(writes, geometries, (write, geometry) => {
      const expected = bruteForce(write, geometry)
      const names = namesWrittenBy(write, geometry)
      const listed = Array.from(names.names(), ({ level, index }) => `${level}/${index}`)
      expect(new Set(listed)).toEqual(expected)
      expect(listed.length).toBe(expected.size)
      for (let level = 0; level <= names.rootLevel + 1; level++) {
        for (let index = 0; index < 500 / geometry.fanOut ** level; index++) {
          expect(names.writes(level, index)).toBe(expected.has(`${level}/${index}`))
        }
      }
    }), { numRuns: 300 })
  })

  test('have a parent that is written too, up to the root', () => {
    fc.assert(fc.property(writes, geometries, (write, geometry) => {
      const names = namesWrittenBy(write, geometry)
      for (const { level, index } of names.names()) {
        if (level < names.rootLevel) expect(names.writes(level + 1, Math.floor(index / geometry.fanOut))).toBe(true)
      }
    }))
  })

  test('a write far beyond the end includes the left spine above the old root', () => {
    const geometry = { chunkSize: CHUNK, fanOut: 2 }
    const names = namesWrittenBy({ extents: [{ offset: 12 * CHUNK, size: CHUNK }], sizeBefore: CHUNK, sizeAfter: 13 * CHUNK }, geometry)
    expect(Array.from(names.names(), ({ level, index }) => `${level}/${index}`)).toEqual(['3/0', '2/0', '2/1', '1/0', '1/3', '0/6'])
  })

  test('an empty write, and growth without content, write the root', () => {
    const geometry = { chunkSize: CHUNK, fanOut: 4 }
    const list = (write: WriteShape): string[] => Array.from(namesWrittenBy(write, geometry).names(), ({ level, index }) => `${level}/${index}`)
    expect(list({ extents: [], sizeBefore: 0, sizeAfter: 0 })).toEqual(['0/0'])
    expect(list({ extents: [], sizeBefore: 5 * CHUNK, sizeAfter: 5 * CHUNK })).toEqual(['1/0'])
    expect(list({ extents: [], sizeBefore: CHUNK, sizeAfter: 17 * CHUNK })).toEqual(['2/0', '1/0'])
  })

  test('the largest blob has exact numbers', () => {
    const geometry = { chunkSize: CHUNK, fanOut: 2 }
    const extents = [{ offset: BLOB_BYTES_MAX - 1, size: 1 }]
    const names = namesWrittenBy({ extents, sizeBefore: BLOB_BYTES_MAX, sizeAfter: BLOB_BYTES_MAX }, geometry)
    expect(names.rootLevel).toBe(40)
    const list = Array.from(names.names())
    expect(list.length).toBe(41)
    expect(list.at(-1)).toEqual({ level: 0, index: Math.floor((BLOB_BYTES_MAX - 1) / CHUNK / 2) })
  })

  test('root levels at the edges', () => {
    const geometry = { chunkSize: CHUNK, fanOut: 64 }
    expect([0, 1, 64 * CHUNK, 64 * CHUNK + 1, 4096 * CHUNK, 4096 * CHUNK + 1].map((size) => rootLevelOf(size, geometry))).toEqual([0, 0, 0, 1, 1, 2])
  })

  test('extents out of order or beyond the size are our own mistake', () => {
    const geometry = { chunkSize: CHUNK, fanOut: 2 }
    const twice = [{ offset: CHUNK, size: 1 }, { offset: 0, size: 1 }]
    expect(() => namesWrittenBy({ extents: twice, sizeBefore: 0, sizeAfter: 2 * CHUNK }, geometry)).toThrow(/sorted/)
    expect(() => namesWrittenBy({ extents: [{ offset: 0, size: CHUNK + 1 }], sizeBefore: 0, sizeAfter: CHUNK }, geometry)).toThrow(/within/)
  })
})

describe('extents', () => {
  const anyExtents = fc.array(fc.record({ offset: fc.nat(300), size: fc.nat(20) }), { maxLength: 30 })
  const bytesOf = (extents: readonly Extent[]): Set<number> =>
    new Set(extents.flatMap(({ offset, size }) => Array.from({ length: size }, (_, at) => offset + at)))

  test('coalesced say the same, sorted, disjoint and not adjacent', () => {
    fc.assert(fc.property(anyExtents, (extents) => {
      const runs = coalesce(extents)
      expect(bytesOf(runs)).toEqual(bytesOf(extents))
      for (const [at, run] of runs.entries()) {
        expect(run.size).toBeGreaterThan(0)
        if (at > 0) expect(run.offset).toBeGreaterThan(runs[at - 1]!.offset + runs[at - 1]!.size)
      }
    }))
  })

  test('coalesced to a bound say no less, and only the closest are taken together', () => {
    fc.assert(fc.property(anyExtents, fc.integer({ min: 1, max: 10 }), (extents, countMax) => {
      const exact = coalesce(extents)
      const few = coalesce(extents, countMax)
      expect(few.length).toBe(Math.min(exact.length, countMax))
      const said = bytesOf(few)
      for (const byte of bytesOf(extents)) expect(said.has(byte)).toBe(true)
    }))
    expect(coalesce([{ offset: 0, size: 1 }, { offset: 10, size: 1 }, { offset: 12, size: 1 }, { offset: 30, size: 1 }], 3))
      .toEqual([{ offset: 0, size: 1 }, { offset: 10, size: 3 }, { offset: 30, size: 1 }])
  })

  test('of chunks, in any order', () => {
    expect(extentsOfChunks([5, 1, 2], 10)).toEqual([{ offset: 10, size: 20 }, { offset: 50, size: 10 }])
  })
})
