/** A thread of `kernel/direct-reads.test.ts`: begins and reads chunks at random, and looks at what it gets. Posts how often it got something. */
import { openSync } from 'node:fs'
import { parentPort, workerData } from 'node:worker_threads'
import { DirectReads } from '../../src/mirror/direct-reads.ts'
import { ReadAheadRing, type ReadAheadRingInit } from '../../src/mirror/fuse/read-ahead-ring.ts'
import { Chance } from './seed.ts'

export interface RingReaderInit {
  readonly ring: ReadAheadRingInit
  readonly queue: number
  /** All bytes of chunk `index` are that number. */
  readonly paths: readonly string[]
  readonly chunkSize: number
  readonly operations: number
  readonly seed: string
}

const { ring: init, queue, paths, chunkSize, operations, seed } = workerData as RingReaderInit
const ring = new ReadAheadRing(init, new DirectReads(queue))
const fds = paths.map((path) => openSync(path, 'r'))
const chance = new Chance(seed)
const bytes = Buffer.alloc(chunkSize / 2)
let hits = 0
for (let operation = 0; operation < operations; operation++) {
  const index = chance.below(paths.length)
  if (chance.unit() < 0.4) ring.begin(1, index, chunkSize, fds[index]!)
  else if (ring.read(1, index, chunkSize, chance.below(2) * bytes.length, bytes, 0, bytes.length)) {
    hits++
    const wrong = bytes.findIndex((byte) => byte !== index)
    if (wrong >= 0) throw new Error(`operation ${operation} of ${seed}: byte ${wrong} of chunk ${index} is ${bytes[wrong]}`)
  }
}
parentPort?.postMessage(hits)
