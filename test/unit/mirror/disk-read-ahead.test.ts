import { beforeEach, describe, expect, it } from 'vitest'
import { FileView, SLOT_HOLE } from '../../../src/mirror/file-view.ts'
import { DiskReadAhead, makeReaders } from '../../../src/mirror/fuse/disk-read-ahead.ts'
import { PAGE_BYTES, PageMap } from '../../../src/mirror/page-map.ts'

const KIB = 1024
const MIB = KIB * KIB
const CHUNK = 256 * KIB
const CHUNKS = 200
/** What the kernel asks for at once of a reader who has gone on for a while. */
const REQUEST = 512 * KIB
/** Chunk `index` is in the file of this descriptor. */
const FD = 1000

let slots: Int32Array
/** Chunks whose files were begun, in order. */
let begun: number[]
/** Of all workers. */
let readers: SharedArrayBuffer

beforeEach(() => {
  readers = makeReaders()
  slots = new Int32Array(new SharedArrayBuffer(4 * CHUNKS)).map((_, index) => FD + index + 1)
  begun = []
})

class Worker {
  readonly #ahead = new DiskReadAhead(readers)

  answered (view: FileView, from: number, to: number): void {
    this.#ahead.answered(view, from, to, (_, index, fd) => {
      expect(fd).toBe(FD + index)
      begun.push(index)
    })
  }
}

const worker = (): Worker => new Worker()

function viewOf (options: { fh?: number, chunkSize?: number, top?: PageMap, sealed?: PageMap } = {}): FileView {
  const { fh = 3, chunkSize = CHUNK } = options
  const shared = new SharedArrayBuffer(slots.byteLength)
  new Int32Array(shared).set(slots)
  const overlay = (map: PageMap | undefined): { pagesFd: number, mapFd: number, map: PageMap['shared'] } | undefined =>
    map === undefined ? undefined : { pagesFd: 7, mapFd: 8, map: map.shared }
  return new FileView({
    fh, size: CHUNKS * chunkSize, routeWrites: true, top: overlay(options.top), sealed: overlay(options.sealed),
    base: { id: 1, files: new SharedArrayBuffer(4), chunkSize, slots: shared, used: new SharedArrayBuffer(CHUNKS) }
  })
}

/** Requests of one reader, each answered by the next one of the workers. */
function readOn (workers: readonly Worker[], view: FileView, from: number, to: number, size = REQUEST): void {
  for (let at = from, turn = 0; at < to; at += size, turn++) workers[turn % workers.length]!.answered(view, at, at + size)
}

describe('reading ahead from the disk', () => {
  it('keeps ahead by half of what was read, up to 4 MiB, and begins each chunk once', () => {
    const [one, view] = [worker(), viewOf()]
    for (let at = 0; at < 32 * MIB; at += REQUEST) {
      one.answered(view, at, at + REQUEST)
      if (at === 0) expect(begun).toEqual([])
      else expect(begun.at(-1)).toBe(Math.ceil((at + REQUEST + Math.min(4 * MIB, (at + REQUEST) / 2)) / CHUNK) - 1)
    }
    expect(begun).toEqual(Array.from(begun, (_, at) => begun[0]! + at))
    expect(begun.at(-1)).toBe((32 + 4) * MIB / CHUNK - 1)
  })

  it('is shared by workers, whichever of them gets a request: each chunk is begun once', () => {
    const [one, two, view] = [worker(), worker(), viewOf()]
    readOn([one, two], view, 0, 2 * MIB)
    readOn([one], view, 2 * MIB, 12 * MIB)
    readOn([two, one], view, 12 * MIB, 32 * MIB)
    expect(begun).toEqual(Array.from(begun, (_, at) => begun[0]! + at))
    expect(begun.at(-1)).toBe((32 + 4) * MIB / CHUNK - 1)
  })

  it('does so when they answer a little out of order', () => {
    const [one, two, view] = [worker(), worker(), viewOf()]
    for (let at = 0; at < 32 * MIB; at += 4 * REQUEST) {
      for (const next of at === 0 ? [0, 1, 2, 3] : [1, 3, 0, 2]) (next % 2 === 0 ? one : two).answered(view, at + next * REQUEST, at + (next + 1) * REQUEST)
    }
    expect(begun.toSorted((a, b) => a - b)).toEqual(Array.from(begun, (_, at) => begun[0]! + at))
  })

  it('does nothing for small requests, a single large one, random ones, and one who goes backwards', () => {
    const [one, view] = [worker(), viewOf()]
    readOn([one], view, 0, 8 * MIB, 64 * KIB)
    one.answered(view, 40 * MIB, 41 * MIB)
    for (const at of [10, 30, 5, 20]) one.answered(view, at * MIB, at * MIB + REQUEST)
    for (let at = 48 * MIB; at > 44 * MIB; at -= REQUEST) one.answered(view, at - REQUEST, at)
    expect(begun).toEqual([])
  })

  it('takes readers of other files, and of other places, for others', () => {
    const [one, first, second] = [worker(), viewOf({ fh: 3 }), viewOf({ fh: 4 })]
    one.answered(first, 20 * MIB, 21 * MIB)
    one.answered(second, 21 * MIB, 22 * MIB)
    expect(begun).toEqual([])
    for (let at = 0; at < 4 * MIB; at += 2 * REQUEST) {
      one.answered(first, at, at + REQUEST)
      one.answered(second, at + REQUEST, at + 2 * REQUEST)
      one.answered(first, 32 * MIB + at, 32 * MIB + at + REQUEST)
    }
    expect(Math.max(...begun.filter((index) => index < 100))).toBeLessThanOrEqual(6 * MIB / CHUNK)
    expect(Math.min(...begun.filter((index) => index > 100))).toBeGreaterThan(32 * MIB / CHUNK)
    expect(begun.filter((index) => index > 100).length).toBeGreaterThan(0)
  })

  it('remembers eight readers', () => {
    const [one, view] = [worker(), viewOf()]
    const starts = Array.from({ length: 9 }, (_, at) => at * 4 * MIB)
    for (const at of starts) one.answered(view, at, at + MIB)
    one.answered(view, MIB, 2 * MIB)
    expect(begun).toEqual([])
    one.answered(view, starts[8]! + MIB, starts[8]! + 2 * MIB)
    expect(begun).not.toEqual([])
  })

  it('leaves alone what is not at hand, holes, what lies past the end, and what has been written over', () => {
    const map = (index: number): PageMap => {
      const written = PageMap.forSize(CHUNKS * CHUNK)
      written.bytes[index * CHUNK / PAGE_BYTES] = 1
      return written
    }
    slots[20] = 0
    slots[21] = SLOT_HOLE
    readOn([worker()], viewOf({ top: map(22), sealed: map(23) }), 0, CHUNKS * CHUNK)
    expect(Math.min(...begun)).toBeGreaterThanOrEqual(0)
    for (const index of [20, 21, 22, 23, CHUNKS]) expect(begun).not.toContain(index)
    for (const index of [19, 24, CHUNKS - 1]) expect(begun).toContain(index)
  })

  it('counts in chunks of any size', () => {
    readOn([worker()], viewOf({ chunkSize: 4 * MIB }), 0, 64 * MIB)
    expect(begun).toEqual(Array.from({ length: 16 }, (_, at) => at + 1))
  })
})
