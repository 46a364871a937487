import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { keyOfChunk, keyOfRecord, placementOrder, type Candidate } from '../../../src/dht/placement.ts'
import { chunkIdOf } from '../../../src/protocols/cid.ts'

const GIB = 2 ** 30
const key = (index: number): Uint8Array => keyOfRecord(`key ${index}`)
const peers = fc.uniqueArray(fc.record({ id: fc.string({ minLength: 4, maxLength: 12 }), capacityBytes: fc.integer({ min: 0, max: 2 ** 40 }) }), { minLength: 1, maxLength: 20, selector: ({ id }) => id })
const keys = fc.uint8Array({ minLength: 34, maxLength: 34 })

describe('placement', () => {
  it('names every candidate once, whatever order they come in', () => {
    fc.assert(fc.property(keys, peers, fc.infiniteStream(fc.nat()), (one, candidates, chance) => {
      const order = placementOrder(one, candidates)
      const shuffled = candidates.map((candidate) => ({ candidate, at: chance.next().value as number })).sort((a, b) => a.at - b.at).map(({ candidate }) => candidate)
      expect(new Set(order)).toEqual(new Set(candidates.map(({ id }) => id)))
      expect(order).toHaveLength(candidates.length)
      expect(placementOrder(one, shuffled)).toEqual(order)
    }))
  })

  it('moves nobody else when one joins or leaves', () => {
    fc.assert(fc.property(keys, peers, (one, candidates) => {
      const order = placementOrder(one, candidates)
      for (const gone of candidates) {
        expect(placementOrder(one, candidates.filter((candidate) => candidate !== gone))).toEqual(order.filter((id) => id !== gone.id))
      }
    }))
  })

  it('moves only towards a peer whose capacity grows', () => {
    fc.assert(fc.property(keys, peers, fc.nat(), (one, candidates, index) => {
      const grown = candidates[index % candidates.length] as Candidate
      const before = placementOrder(one, candidates)
      const after = placementOrder(one, candidates.map((candidate) => candidate === grown ? { ...grown, capacityBytes: grown.capacityBytes * 2 + 1 } : candidate))
      expect(after.indexOf(grown.id)).toBeLessThanOrEqual(before.indexOf(grown.id))
      expect(after.filter((id) => id !== grown.id)).toEqual(before.filter((id) => id !== grown.id))
    }))
  })

  it('gives each peer a share in proportion to its capacity', () => {
    const capacities = [100, 200, 300, 400].map((gib) => gib * GIB)
    const candidates = capacities.map((capacityBytes, index) => ({ id: `peer${index}`, capacityBytes }))
    const total = capacities.reduce((sum, one) => sum + one, 0)
    const count = 20_000
    const firsts = new Map<string, number>()
    for (let index = 0; index < count; index++) {
      const [first] = placementOrder(key(index), candidates)
      firsts.set(first ?? '', (firsts.get(first ?? '') ?? 0) + 1)
    }
    for (const { id, capacityBytes } of candidates) {
      const expected = count * capacityBytes / total
      // Four standard deviations of a binomial draw, and the keys are always the same.
      expect(Math.abs((firsts.get(id) ?? 0) - expected)).toBeLessThan(4 * Math.sqrt(expected * (1 - capacityBytes / total)))
    }
  })

  it('takes peers without capacity last', () => {
    const candidates = [{ id: 'none', capacityBytes: 0 }, { id: 'little', capacityBytes: 1 }, { id: 'much', capacityBytes: GIB }]
    for (let index = 0; index < 100; index++) expect(placementOrder(key(index), candidates).at(-1)).toBe('none')
  })

  it('spreads keys also when nobody has told its capacity', () => {
    const candidates = Array.from({ length: 4 }, (_, index) => ({ id: `peer${index}`, capacityBytes: 0 }))
    const firsts = new Set(Array.from({ length: 50 }, (_, index) => placementOrder(key(index), candidates)[0]))
    expect(firsts.size).toBe(4)
  })

  it('stays as it is: what was placed is looked for where it was put', () => {
    const candidates = ['a', 'b', 'c', 'd', 'e'].map((id, index) => ({ id, capacityBytes: (index + 1) * GIB }))
    expect([0, 1, 2].map((index) => placementOrder(key(index), candidates).join(''))).toMatchInlineSnapshot(`
      [
        "cdeab",
        "becda",
        "ecbda",
      ]
    `)
  })
})

describe('keys', () => {
  it('are multihashes of sha2-256', () => {
    for (const one of [keyOfChunk(chunkIdOf(Buffer.from('x'))), keyOfRecord('x')]) expect(Buffer.from(one).toString('hex')).toMatch(/^1220[0-9a-f]{64}$/)
    expect(keyOfRecord('x')).toEqual(keyOfChunk(chunkIdOf(Buffer.from('x'))))
  })
})
