/** Reads past the page cache, on files of this disk: alone, and as a ring that several threads fill and empty at once. */
import { closeSync, fsyncSync, mkdtempSync, openSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { allocateReadMemory, DirectReads, type ReadMemory } from '../../src/mirror/direct-reads.ts'
import { makeReadAheadRing, RING_BYTES, SLOTS } from '../../src/mirror/fuse/read-ahead-ring.ts'
import { describeWith } from '../harness/capabilities.ts'
import { forgetPages } from '../harness/page-cache.ts'
import type { RingReaderInit } from '../harness/ring-reader.ts'
import { Chance, testSeed } from '../harness/seed.ts'

const CHUNK = 64 * 1024
const BLOCK = 4096
/** Of 64 KiB each; a byte names one. */
const CHUNKS = 100
const THREADS = 4
const OPERATIONS = 5000
const WAIT_MS = 10_000

const chance = new Chance(testSeed())

describeWith(['direct-reads', 'python3'], 'reads past the page cache', () => {
  let folder: string
  let paths: string[]
  let queue: number
  let memory: ReadMemory
  let fds: number[]

  beforeEach(async () => {
    folder = mkdtempSync(join(tmpdir(), 'p2pvm-direct-'))
    paths = Array.from({ length: CHUNKS }, (_, index) => join(folder, `chunk-${index}`))
    paths.forEach((path, index) => { writeFileSync(path, Buffer.alloc(CHUNK, index)) })
    await forgetPages(paths)
    queue = DirectReads.openQueue(SLOTS)!
    memory = allocateReadMemory(RING_BYTES)!
    fds = []
  })

  afterEach(() => {
    for (const fd of fds) closeSync(fd)
    rmSync(folder, { recursive: true })
  })

  const opened = (index: number): number => {
    const fd = openSync(paths[index]!, 'r')
    fds.push(fd)
    return fd
  }

  const endsOf = (reads: DirectReads, count: number): Map<number, number> => {
    const ends = new Map<number, number>()
    while (ends.size < count) {
      const before = ends.size
      reads.reap(WAIT_MS, (tag, result) => { ends.set(tag, result) })
      expect(ends.size).toBeGreaterThan(before)
    }
    return ends
  }

  it('bring the bytes, and tell of their ends in any thread', () => {
    const [one, two] = [new DirectReads(queue), new DirectReads(queue)]
    expect(one.begin(opened(7), 0, CHUNK, memory.address, 70)).toBe(true)
    expect(one.begin(opened(8), BLOCK, CHUNK - BLOCK, memory.address + CHUNK, 80)).toBe(true)
    expect(endsOf(two, 2)).toEqual(new Map([[70, CHUNK], [80, CHUNK - BLOCK]]))
    const bytes = Buffer.from(memory.bytes, memory.start, 2 * CHUNK)
    expect(bytes.equals(Buffer.concat([Buffer.alloc(CHUNK, 7), Buffer.alloc(CHUNK - BLOCK, 8), Buffer.alloc(BLOCK)]))).toBe(true)
    let told = 0
    one.reap(0, () => { told++ })
    expect(told).toBe(0)
  })

  it('go on when their file has been closed or removed', () => {
    const reads = new DirectReads(queue)
    const fd = openSync(paths[7]!, 'r')
    rmSync(paths[7]!)
    expect(reads.begin(fd, 0, CHUNK, memory.address, 1)).toBe(true)
    closeSync(fd)
    expect(endsOf(reads, 1)).toEqual(new Map([[1, CHUNK]]))
    expect(new Uint8Array(memory.bytes, memory.start, CHUNK).every((byte) => byte === 7)).toBe(true)
  })

  it('end where their file does', async () => {
    truncateSync(paths[7]!, BLOCK + 100)
    await forgetPages([paths[7]!])
    const reads = new DirectReads(queue)
    expect(reads.begin(opened(7), 0, CHUNK, memory.address, 1)).toBe(true)
    expect(endsOf(reads, 1)).toEqual(new Map([[1, BLOCK + 100]]))
  })

  it('are not begun for what the page cache has, for what cannot be read, and when too many are under way', () => {
    const reads = new DirectReads(queue)
    readFileSync(paths[7]!)
    expect(reads.begin(opened(7), 0, CHUNK, memory.address, 1)).toBe(false)
    const written = openSync(join(folder, 'written'), 'w+')
    fds.push(written)
    writeFileSync(written, Buffer.alloc(CHUNK, 1))
    expect(reads.begin(written, 0, CHUNK, memory.address, 1)).toBe(false)
    fsyncSync(written)
    expect(reads.begin(1_000_000, 0, CHUNK, memory.address, 1)).toBe(false)
    const all = Array.from({ length: CHUNKS }, (_, index) => index).filter((index) => index !== 7)
    const begun = all.filter((index) => reads.begin(opened(index), 0, CHUNK, memory.address + index % SLOTS * CHUNK, index))
    expect(begun.length).toBeGreaterThanOrEqual(SLOTS)
    expect([...endsOf(reads, begun.length).keys()].sort((a, b) => a - b)).toEqual(begun)
  })

  it(`fill and empty a ring by ${THREADS} threads at once, and each byte is the right one (seed ${chance.seed})`, async () => {
    const ring = makeReadAheadRing(memory)
    const threads = Array.from({ length: THREADS }, (_, thread) => {
      const workerData: RingReaderInit = { ring, queue, paths, chunkSize: CHUNK, operations: OPERATIONS, seed: `${chance.seed}/${thread}` }
      return new Worker(new URL('../harness/ring-reader.ts', import.meta.url), { workerData })
    })
    const hits = await Promise.all(threads.map(async (thread) => await new Promise<number>((resolve, reject) => { thread.once('message', resolve).once('error', reject) })))
    for (const count of hits) expect(count).toBeGreaterThan(0)
  })
})
