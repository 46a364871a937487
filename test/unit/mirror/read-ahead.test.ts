import { describe, expect, it } from 'vitest'
import { SLOT_HOLE } from '../../../src/mirror/file-view.ts'
import { ReadAhead } from '../../../src/mirror/read-ahead.ts'

const CHUNK = 256 * 1024

function slots (count: number, known: Readonly<Record<number, number>> = {}): Int32Array {
  const all = new Int32Array(new SharedArrayBuffer(4 * count))
  for (const [index, value] of Object.entries(known)) all[Number(index)] = value
  return all
}

describe('read-ahead', () => {
  it('begins when one chunk has followed another twice, and then fetches more with each step, up to 8 MiB', () => {
    const ahead = new ReadAhead(CHUNK)
    const all = slots(1000)
    const lengths: number[] = []
    const asked = new Set<number>()
    for (let index = 0; index < 60; index++) {
      const chunks = ahead.missed(index, index + 1, all)
      lengths.push(chunks.length)
      for (const chunk of chunks) {
        expect(asked.has(chunk)).toBe(false)
        expect(chunk).toBeGreaterThan(index)
        asked.add(chunk)
      }
    }
    expect(lengths.slice(0, 4)).toEqual([0, 0, 1, 2])
    expect(Math.max(...asked)).toBe(59 + 32)
    expect(asked.size).toBe(59 + 32 - 2)
  })

  it('counts a request of several chunks as one step, and goes as far ahead', () => {
    const ahead = new ReadAhead(CHUNK)
    const all = slots(100)
    expect(ahead.missed(0, 4, all)).toEqual([])
    expect(ahead.missed(4, 8, all)).toEqual([])
    expect(ahead.missed(8, 12, all)).toEqual([12, 13, 14, 15])
  })

  it('knows a reader again who has found everything up to the end of what was fetched for him', () => {
    const ahead = new ReadAhead(CHUNK)
    const all = slots(100)
    for (let index = 0; index < 6; index++) ahead.missed(index, index + 1, all) // 2 ** 3 ahead of 5: up to 13
    expect(ahead.missed(14, 15, all)).toHaveLength(16)
  })

  it('fetches nothing for reads here and there, nor for one chunk that is read in pieces', () => {
    const ahead = new ReadAhead(CHUNK)
    const all = slots(10_000)
    for (let number = 0; number < 500; number++) {
      const index = number * 7919 % 10_000
      expect(ahead.missed(index, index + 1, all)).toEqual([])
      expect(ahead.missed(index, index + 1, all)).toEqual([])
    }
  })

  it('passes over holes, and leaves out what is at hand', () => {
    const ahead = new ReadAhead(CHUNK)
    const all = slots(100, { 5: SLOT_HOLE, 6: SLOT_HOLE, 7: SLOT_HOLE, 9: 17 })
    for (const index of [0, 1, 2, 3]) ahead.missed(index, index + 1, all)
    // 4 was fetched ahead; the next that is missed lies behind the holes.
    expect(ahead.missed(8, 9, all)).toEqual([10, 11, 12])
  })

  it('knows a reader again behind holes that nothing was fetched beyond', () => {
    const ahead = new ReadAhead(CHUNK)
    const all = slots(100, Object.fromEntries(Array.from({ length: 15 }, (_, at) => [6 + at, SLOT_HOLE])))
    for (const index of [0, 1, 2]) ahead.missed(index, index + 1, all)
    expect(ahead.missed(3, 4, all)).toEqual([4, 5])
    expect(ahead.missed(21, 22, all)).toEqual([22, 23, 24, 25])
  })

  it('keeps several readers apart', () => {
    const ahead = new ReadAhead(CHUNK)
    const all = slots(1000)
    const found: number[][] = []
    for (let step = 0; step < 4; step++) for (const start of [0, 200, 400]) found.push(ahead.missed(start + step, start + step + 1, all))
    expect(found.slice(6)).toEqual([[3], [203], [403], [4, 5], [204, 205], [404, 405]])
  })

  it('never goes beyond the end', () => {
    const ahead = new ReadAhead(CHUNK)
    const all = slots(5)
    for (const index of [0, 1, 2]) ahead.missed(index, index + 1, all)
    expect(ahead.missed(3, 4, all)).toEqual([4])
    expect(ahead.missed(4, 5, all)).toEqual([])
  })
})
