import { beforeEach, describe, expect, it } from 'vitest'
import { makeReadAheadRing, PIECE_BYTES, ReadAheadRing, type ReadAheadRingInit, RING_BYTES, SLOTS } from '../../../src/mirror/fuse/read-ahead-ring.ts'

const KIB = 1024
const TABLE = 7
const OTHER_TABLE = 8
const FD = 100
/** Where the memory lies, as far as the disk of this test is told. */
const ADDRESS = 0x10000

/** Chunk files whose byte at `offset` is that of `byteAt`, and a disk that reads when it is told to. */
class Disk {
  readonly #memory: Uint8Array
  readonly #queue: Array<{ readonly fd: number, readonly offset: number, readonly length: number, readonly at: number, readonly tag: number }> = []
  #done: Array<{ readonly tag: number, readonly result: number }> = []
  /** As `DirectReads.begin` says false. */
  refuses = false
  /** What the next reads end with; undefined: all that was asked for. */
  result: number | undefined
  waits = 0

  constructor (memory: Uint8Array) {
    this.#memory = memory
  }

  get underWay (): number {
    return this.#queue.length
  }

  begin (fd: number, offset: number, length: number, address: number, tag: number): boolean {
    if (this.refuses) return false
    this.#queue.push({ fd, offset, length, at: address - ADDRESS, tag })
    return true
  }

  /** The first `count` of those under way come to their end; who asks hears of it. */
  finish (count = this.#queue.length): void {
    for (const { fd, offset, length, at, tag } of this.#queue.splice(0, count)) {
      const result = this.result ?? length
      for (let byte = 0; byte < result; byte++) this.#memory[at + byte] = byteAt(fd, offset + byte)
      this.#done.push({ tag, result })
    }
  }

  reap (waitMs: number, ended: (tag: number, result: number) => void): void {
    if (waitMs > 0) {
      this.waits++
      if (this.#done.length === 0) this.finish(1)
    }
    const done = this.#done
    this.#done = []
    for (const { tag, result } of done) ended(tag, result)
  }
}

function byteAt (fd: number, offset: number): number {
  return (fd * 31 + offset + (offset >> 8)) & 0xff
}

let init: ReadAheadRingInit
let disk: Disk
let ring: ReadAheadRing

beforeEach(() => {
  const bytes = new SharedArrayBuffer(RING_BYTES + 64)
  init = makeReadAheadRing({ bytes, start: 64, address: ADDRESS })
  disk = new Disk(new Uint8Array(bytes, 64))
  ring = new ReadAheadRing(init, disk)
})

/** Chunk `index` is in the file FD + index. */
function begin (index: number, { table = TABLE, chunkSize = PIECE_BYTES, by = ring } = {}): boolean {
  return by.begin(table, index, chunkSize, FD + index)
}

/** Whether the bytes were there; that they are the right ones is looked at here. */
function reads (index: number, options: { table?: number, chunkSize?: number, within?: number, length?: number, by?: ReadAheadRing } = {}): boolean {
  const { table = TABLE, chunkSize = PIECE_BYTES, within = 0, by = ring } = options
  const { length = chunkSize - within } = options
  const to = Buffer.alloc(length + 2, 0xee)
  if (!by.read(table, index, chunkSize, within, to, 1, length)) return false
  const right = Buffer.from([0xee, ...Array.from({ length }, (_, at) => byteAt(FD + index, within + at)), 0xee])
  expect(to.equals(right)).toBe(true)
  return true
}

describe('chunks read before a reader', () => {
  it('are there once, and then make room', () => {
    expect(begin(3)).toBe(true)
    disk.finish()
    expect(reads(3)).toBe(true)
    expect(disk.underWay).toBe(0)
    expect(reads(3)).toBe(false)
  })

  it('are there until each byte has been read, in whatever order', () => {
    begin(3)
    disk.finish()
    const quarter = PIECE_BYTES / 4
    for (const at of [2, 0, 3]) expect(reads(3, { within: at * quarter, length: quarter })).toBe(true)
    expect(reads(3, { within: quarter, length: quarter })).toBe(true)
    expect(reads(3, { within: quarter, length: quarter })).toBe(false)
  })

  it('are waited for when they are on their way, and not otherwise', () => {
    begin(3)
    begin(4)
    expect(reads(4)).toBe(true)
    expect(disk.waits).toBe(2)
    expect(reads(3)).toBe(true)
    expect(disk.waits).toBe(2)
    expect(reads(5)).toBe(false)
    expect(disk.waits).toBe(2)
  })

  it('are for all workers, whoever began them or has heard of their end', () => {
    const other = new ReadAheadRing(init, disk)
    begin(3)
    begin(4)
    begin(5, { by: other })
    expect(reads(3, { by: other })).toBe(true)
    expect(reads(5)).toBe(true)
    expect(reads(4, { by: other })).toBe(true)
  })

  it('belong to one version', () => {
    begin(3)
    disk.finish()
    expect(reads(3, { table: OTHER_TABLE })).toBe(false)
    expect(reads(3)).toBe(true)
  })

  it('are begun once', () => {
    begin(3)
    expect(begin(3)).toBe(true)
    expect(disk.underWay).toBe(1)
  })

  it('are read from their files where the disk failed, or has less than was asked for', () => {
    begin(3)
    disk.result = -5
    expect(reads(3)).toBe(false)
    disk.result = 4096
    begin(4)
    expect(reads(4, { within: 4096, length: 1 })).toBe(false)
    expect(reads(4, { length: 4097 })).toBe(false)
    expect(reads(4, { length: 4096 })).toBe(true)
    disk.result = undefined
    for (let index = 10; index < 10 + SLOTS; index++) expect(begin(index)).toBe(true)
  })

  it('leave their place when the disk failed, whoever comes for them', () => {
    disk.result = -5
    for (let index = 0; index < SLOTS; index++) begin(index)
    disk.finish()
    for (let index = 10; index < 10 + SLOTS; index++) expect(begin(index)).toBe(true)
  })

  it('stay where they are while somebody copies them', () => {
    const other = new ReadAheadRing(init, disk)
    const half = PIECE_BYTES / 2
    begin(3)
    disk.finish()
    const slow = new class extends Uint8Array {
      override set (array: ArrayLike<number>, offset?: number): void {
        // The last one to read, and everybody who wants the place.
        expect(reads(3, { within: half, by: other })).toBe(true)
        expect(reads(3, { within: 0, length: half, by: other })).toBe(true)
        for (let turn = 0; turn < 20 * SLOTS; turn++) begin(1000 + turn, { by: other })
        disk.finish()
        other.begin(TABLE, 999, PIECE_BYTES, FD) // hears of their ends
        super.set(array, offset)
      }
    }(half)
    expect(ring.read(TABLE, 3, PIECE_BYTES, 0, slow, 0, half)).toBe(true)
    expect(slow.every((byte, at) => byte === byteAt(FD + 3, at))).toBe(true)
  })

  it('are not begun where their files cannot be read so', () => {
    disk.refuses = true
    expect(begin(3)).toBe(false)
    expect(reads(3)).toBe(false)
    disk.refuses = false
    for (let index = 10; index < 10 + SLOTS; index++) expect(begin(index)).toBe(true)
  })

  it('of any size lie there in pieces', () => {
    for (const chunkSize of [64 * KIB, 1024 * KIB, 4096 * KIB]) {
      expect(begin(2, { chunkSize })).toBe(true)
      disk.finish()
      expect(reads(2, { chunkSize, within: chunkSize / 2 - 100, length: 200 })).toBe(true)
      expect(reads(2, { chunkSize, within: 0, length: chunkSize / 2 - 100 })).toBe(true)
      expect(reads(2, { chunkSize, within: chunkSize / 2 + 100 })).toBe(true)
      expect(reads(2, { chunkSize, within: 0, length: 1 })).toBe(false)
    }
  })
})

it('leaves small chunks to the page cache', () => {
  expect(begin(3, { chunkSize: 32 * KIB })).toBe(false)
})

describe('a ring that is full', () => {
  beforeEach(() => {
    for (let index = 100; index < 100 + SLOTS; index++) begin(index, { table: OTHER_TABLE })
  })

  it('takes nothing more, whether its chunks are on their way or here', () => {
    expect(begin(0)).toBe(false)
    disk.finish()
    expect(begin(1)).toBe(false)
    for (let index = 100; index < 100 + SLOTS; index++) expect(reads(index, { table: OTHER_TABLE })).toBe(true)
    expect(begin(2)).toBe(true)
  })

  it('takes others when nobody has come for its chunks in eight turns', () => {
    disk.finish()
    for (let turn = 0; turn < 8 * SLOTS; turn++) expect(begin(turn)).toBe(false)
    expect(begin(1000)).toBe(true)
    expect(reads(100, { table: OTHER_TABLE })).toBe(false)
    expect(reads(101, { table: OTHER_TABLE })).toBe(true)
    expect(reads(1000)).toBe(true)
  })

  it('takes the next ones of a reader who has gone by sooner', () => {
    disk.finish()
    for (let index = 100 + 2 * SLOTS; index < 100 + 3 * SLOTS; index++) expect(begin(index, { table: OTHER_TABLE })).toBe(false)
    expect(begin(300, { table: OTHER_TABLE })).toBe(true)
    // Nor those of another one, who comes up to him.
    expect(begin(50, { table: OTHER_TABLE })).toBe(false)
  })

  it('never takes a place that the disk is reading to', () => {
    for (let turn = 0; turn < 20 * SLOTS; turn++) expect(begin(turn)).toBe(false)
    disk.finish()
    expect(reads(131, { table: OTHER_TABLE })).toBe(true)
  })
})
