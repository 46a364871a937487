import { describe, expect, it } from 'vitest'
import { SLOT_HOLE } from '../../../src/mirror/file-view.ts'
import { ReadAhead } from '../../../src/mirror/read-ahead.ts'

const CHUNK = 256 * 1024
/** 4 MiB: the first one that anything is fetched behind is the last of them. */
const RUN = 16

function slots (count: number, known: Readonly<Record<number, number>> = {}): Int32Array {
  const all = new Int32Array(new SharedArrayBuffer(4 * count))
  for (const [index, value] of Object.entries(known)) all[Number(index)] = value
  return all
}

/** Reads chunks `[from, to)` one after the other; what was fetched besides, by the chunk that was missed. */
function missAll (ahead: ReadAhead, all: Int32Array, from: number, to: number): Map<number, number[]> {
  const found = new Map<number, number[]>()
  for (let index = from; index < to; index++) {
    const chunks = ahead.missed(index, index + 1, all)
    if (chunks.length > 0) found.set(index, chunks)
  }
  return found
}

describe('read-ahead', () => {
  it('begins after 4 MiB, and then is a quarter of what was read, up to 8 MiB', () => {
    const found = missAll(new ReadAhead(CHUNK), slots(1000), 0, 300)
    expect([...found.keys()][0]).toBe(RUN - 1)
    expect(found.get(RUN - 1)).toEqual([16, 17, 18, 19])
    const asked = [...found.values()].flat()
    expect(new Set(asked).size).toBe(asked.length)
    expect(Math.max(...asked)).toBe(299 + 32)
    for (const [index, chunks] of found) expect(Math.max(...chunks) - index).toBeLessThanOrEqual(Math.min(32, Math.ceil((index + 1) / 4)))
  })

  it('counts what a request covers, and goes on behind it', () => {
    const ahead = new ReadAhead(CHUNK)
    const all = slots(100)
    for (const first of [0, 4, 8]) expect(ahead.missed(first, first + 4, all)).toEqual([])
    expect(ahead.missed(12, 16, all)).toEqual([16, 17, 18, 19])
  })

  it('knows a reader again who has found everything up to the end of what was fetched for him', () => {
    const ahead = new ReadAhead(CHUNK)
    const all = slots(100)
    missAll(ahead, all, 0, RUN) // up to 19
    expect(ahead.missed(20, 21, all)).toEqual([21, 22, 23, 24, 25, 26])
  })

  it('fetches nothing for reads here and there, nor for one chunk that is read in pieces', () => {
    const ahead = new ReadAhead(CHUNK)
    const all = slots(10_000)
    for (let number = 0; number < 500; number++) {
      const index = number * 7919 % 10_000
      expect(ahead.missed(index, index + 1, all)).toEqual([])
      expect(ahead.missed(index, index + 1, all)).toEqual([])
    }
    for (let again = 0; again < 40; again++) expect(ahead.missed(7, 8, all)).toEqual([])
  })

  it('passes over holes, and leaves out what is at hand', () => {
    const all = slots(100, { 17: SLOT_HOLE, 18: SLOT_HOLE, 19: 17 })
    expect(missAll(new ReadAhead(CHUNK), all, 0, RUN).get(RUN - 1)).toEqual([16, 20, 21])
  })

  it('knows a reader again behind holes that nothing was fetched beyond', () => {
    const ahead = new ReadAhead(CHUNK)
    const all = slots(100, Object.fromEntries(Array.from({ length: 15 }, (_, at) => [20 + at, SLOT_HOLE])))
    missAll(ahead, all, 0, RUN)
    expect(ahead.missed(35, 36, all)).toEqual([36, 37, 38, 39, 40, 41, 42, 43, 44])
  })

  it('keeps several readers apart', () => {
    const ahead = new ReadAhead(CHUNK)
    const all = slots(1000)
    let found: number[][] = []
    for (let step = 0; step < RUN; step++) found = [0, 200, 400].map((start) => ahead.missed(start + step, start + step + 1, all))
    expect(found).toEqual([[16, 17, 18, 19], [216, 217, 218, 219], [416, 417, 418, 419]])
  })

  it('never goes beyond the end', () => {
    const ahead = new ReadAhead(CHUNK)
    const all = slots(RUN + 1)
    expect(missAll(ahead, all, 0, RUN).get(RUN - 1)).toEqual([16])
    expect(ahead.missed(16, 17, all)).toEqual([])
  })
})
