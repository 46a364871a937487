import { describe, expect, it } from 'vitest'
import { type Access, type Disk, pageMapCost, talkCost } from '../../../bench/lib/policies.ts'

const KIB = 1024
const CHUNK = 64 * KIB
/** Two chunks of data, a hole, and a last chunk that is not whole. */
const DISK: Disk = { size: 3 * CHUNK + 8 * KIB, isZero: (from, to) => from >= 2 * CHUNK && to <= 3 * CHUNK }

const read = (offset: number, size: number): Access => ({ kind: 'read', offset, size })
const write = (offset: number, size: number): Access => ({ kind: 'write', offset, size })
const talk = (...accesses: Access[]): ReturnType<typeof talkCost> => talkCost(accesses, DISK, CHUNK)
const direct = (...accesses: Access[]): ReturnType<typeof pageMapCost> => pageMapCost(accesses, DISK, CHUNK, 'direct')
const buffered = (...accesses: Access[]): ReturnType<typeof pageMapCost> => pageMapCost(accesses, DISK, CHUNK, 'buffered')

const cost = (fetchedBytes: number, operations: number, readsWaited: number, writesWaited: number): object => ({ fetchedBytes, operations, readsWaited, writesWaited })

describe('the talk’s rule', () => {
  it('fetches a chunk whole on its first read, and not again', () => {
    expect(talk(read(4 * KIB, 4 * KIB), read(60 * KIB, 4 * KIB))).toEqual(cost(CHUNK, 1, 1, 0))
  })

  it('fetches the gap before a write, which waits, and the rest when it is read', () => {
    expect(talk(write(16 * KIB, 4 * KIB))).toEqual(cost(16 * KIB, 1, 0, 1))
    expect(talk(write(16 * KIB, 4 * KIB), read(0, 20 * KIB))).toEqual(cost(16 * KIB, 1, 0, 1))
    expect(talk(write(16 * KIB, 4 * KIB), read(16 * KIB, 8 * KIB))).toEqual(cost(CHUNK - 4 * KIB, 2, 1, 1))
  })

  it('fetches nothing for writes that follow one another from the start of a chunk', () => {
    expect(talk(write(0, 4 * KIB), write(4 * KIB, 4 * KIB), write(0, 4 * KIB), read(0, 8 * KIB))).toEqual(cost(0, 0, 0, 0))
  })

  it('asks for each chunk of an access by itself, and lets it wait once', () => {
    expect(talk(read(CHUNK - 4 * KIB, 8 * KIB))).toEqual(cost(2 * CHUNK, 2, 1, 0))
    expect(talk(write(CHUNK - 4 * KIB, 8 * KIB))).toEqual(cost(CHUNK - 4 * KIB, 1, 0, 1))
  })

  it('fetches no hole, and of the last chunk only what there is', () => {
    expect(talk(read(2 * CHUNK, 4 * KIB), write(2 * CHUNK + 32 * KIB, 4 * KIB))).toEqual(cost(0, 0, 0, 0))
    expect(talk(read(3 * CHUNK, 512))).toEqual(cost(8 * KIB, 1, 1, 0))
  })
})

describe('whole chunks and a page map', () => {
  it('fetches a chunk whole on its first read, and not again', () => {
    expect(direct(read(4 * KIB, 4 * KIB), read(60 * KIB, 4 * KIB))).toEqual(cost(CHUNK, 1, 1, 0))
  })

  it('fetches nothing for a write, wherever it is, nor to read it back', () => {
    expect(direct(write(16 * KIB, 4 * KIB), write(48 * KIB, 512), read(16 * KIB, 4 * KIB), read(48 * KIB, 512))).toEqual(cost(0, 0, 0, 0))
  })

  it('fetches the chunk for a read of which a sector was not written', () => {
    expect(direct(write(16 * KIB, 4 * KIB), read(16 * KIB, 4 * KIB + 512))).toEqual(cost(CHUNK, 1, 1, 0))
  })

  it('lets a read of several chunks wait once', () => {
    expect(direct(read(CHUNK - 4 * KIB, 8 * KIB))).toEqual(cost(2 * CHUNK, 2, 1, 0))
  })

  it('fetches no hole, and of the last chunk only what there is', () => {
    expect(direct(read(2 * CHUNK, 4 * KIB), read(3 * CHUNK, 512))).toEqual(cost(8 * KIB, 1, 1, 0))
  })

  it('lets a buffered write of part of a page wait for it, once', () => {
    expect(buffered(write(512, 512), write(1024, 512))).toEqual(cost(CHUNK, 1, 0, 1))
    expect(direct(write(512, 512), write(1024, 512))).toEqual(cost(0, 0, 0, 0))
  })

  it('lets no buffered write wait for a page that it covers, that was read or written before, or that is a hole', () => {
    expect(buffered(write(4 * KIB, 8 * KIB), write(4 * KIB, 512))).toEqual(cost(0, 0, 0, 0))
    expect(buffered(read(0, 4 * KIB), write(512, 512))).toEqual(cost(CHUNK, 1, 1, 0))
    expect(buffered(write(2 * CHUNK + 512, 512))).toEqual(cost(0, 0, 0, 0))
  })

  it('lets a buffered write of parts of two pages wait once, for each of them', () => {
    expect(buffered(write(CHUNK - 512, 1024))).toEqual(cost(2 * CHUNK, 2, 0, 1))
  })
})
