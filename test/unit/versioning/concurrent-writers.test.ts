/**
 * Up to three writers of one blob (the talk's white, gray and black), every interleaving of their steps: assign, write the
 * tree, complete. Checked after every step: what is published is a beginning of what was assigned, it is complete, and every published
 * version reads as if the writers had come one after the other.
 */
import { describe, expect, test } from 'vitest'
import { type ChunkId, chunkIdOf } from '../../../src/protocols/cid.ts'
import type { Version } from '../../../src/versioning/blobs.ts'
import { Attempts } from '../../../src/versioning/attempts.ts'
import { extentsOfChunks } from '../../../src/versioning/extents.ts'
import { NodeStore } from '../../../src/versioning/node-store.ts'
import { readChunkIds } from '../../../src/versioning/tree-reader.ts'
import { writeTree } from '../../../src/versioning/tree-writer.ts'
import type { AskedManager } from '../../harness/asked-manager.ts'
import { MemoryFabric } from '../../harness/memory-fabric.ts'

const CHUNK = 4096

type Step = 'assign' | 'tree' | 'complete'
const STEPS: readonly Step[][] = [['assign'], ['tree'], ['complete']]
/** What a writer writes follows from its assignment alone: it matters little when, so three writers try 90 orders and not 1,680. */
const STEPS_FEWER: readonly Step[][] = [['assign'], ['tree', 'complete']]

interface Write {
  /** Chunks written; the size afterwards reaches to the last one, or to `sizeChunks`. */
  readonly chunks: readonly number[]
  readonly sizeChunks?: number
  /** Extents that say more than is written. */
  readonly saysChunks?: readonly number[]
}

interface Scenario {
  readonly name: string
  /** Written and published before the others start. */
  readonly before?: Write
  readonly writers: readonly Write[]
}

const scenarios: readonly Scenario[] = [
  { name: 'one writer', writers: [{ chunks: [0, 3] }] },
  { name: 'white, then gray and black in the same leaf', before: { chunks: [0, 1, 2, 3] }, writers: [{ chunks: [1, 2] }, { chunks: [2, 3] }] },
  { name: 'white, gray and black at once', writers: [{ chunks: [0, 1, 2, 3] }, { chunks: [1] }, { chunks: [2] }] },
  { name: 'gray and black side by side', before: { chunks: [0, 1, 2, 3, 4, 5, 6, 7] }, writers: [{ chunks: [0, 1] }, { chunks: [6] }, { chunks: [1, 7] }] },
  { name: 'the growth trap of two', before: { chunks: [0] }, writers: [{ chunks: [700] }, { chunks: [5] }] },
  { name: 'the growth trap', writers: [{ chunks: [0] }, { chunks: [700] }, { chunks: [5] }] },
  { name: 'the growth trap on a published base', before: { chunks: [0] }, writers: [{ chunks: [700] }, { chunks: [300] }, { chunks: [9] }] },
  { name: 'growing thrice, by levels each time', writers: [{ chunks: [3] }, { chunks: [40] }, { chunks: [5000] }] },
  { name: 'growth without content, between writers', before: { chunks: [1] }, writers: [{ chunks: [], sizeChunks: 300 }, { chunks: [0] }, { chunks: [299] }] },
  { name: 'an empty write between writers', writers: [{ chunks: [2] }, { chunks: [] }, { chunks: [1] }] },
  {
    name: 'extents that say more than is written',
    before: { chunks: [0, 1, 2, 3, 4] },
    writers: [{ chunks: [0, 3], saysChunks: [0, 1, 2, 3] }, { chunks: [4], saysChunks: [2, 3, 4] }, { chunks: [1], saysChunks: [0, 1] }]
  }
]

/** All orders of these writers' steps, each writer's own in order. */
function interleavings (writers: number, steps: number): number[][] {
  const orders: number[][] = []
  const extend = (order: readonly number[], left: readonly number[]): void => {
    if (left.every((count) => count === 0)) orders.push([...order])
    for (const [writer, count] of left.entries()) {
      if (count > 0) extend([...order, writer], left.with(writer, count - 1))
    }
  }
  extend([], new Array<number>(writers).fill(steps))
  return orders
}

/** A chunk id of its own for every writer and chunk. */
const idOf = (writer: string, chunk: number): ChunkId => chunkIdOf(Buffer.from(`${writer} wrote ${chunk}`))

class Run {
  readonly #fabric = new MemoryFabric()
  readonly #context = { peer: 'writer', signal: new AbortController().signal }
  readonly #assignments = new Map<string, Awaited<ReturnType<AskedManager['assign']>>>()
  /** What each version must read as, by version. */
  readonly #expected: Array<Array<ChunkId | null>> = [[]]
  readonly #complete = new Set<number>([0])
  #blob = ''

  async begin (fanOut: number): Promise<void> {
    const of = { kind: 'new' as const, chunkSize: CHUNK, fanOut }
    const { version } = await this.#fabric.manager.create({ op: 'create', requestId: 'create-it', of }, this.#context)
    this.#blob = version.blob
  }

  async step (name: string, write: Write, step: Step): Promise<void> {
    if (step === 'assign') await this.#assign(name, write)
    const assignment = this.#assignments.get(name)!
    if (step === 'tree') {
      // Every writer with caches of its own.
      const chunks = new Map(write.chunks.map((chunk) => [chunk, idOf(name, chunk)]))
      await writeTree({ assignment, chunks, credentials: assignment.credentials }, { nodes: new NodeStore(this.#fabric), attempts: Attempts.first })
    }
    if (step === 'complete') {
      const { blob, version } = assignment
      await this.#fabric.manager.complete({ op: 'complete', requestId: `write-${name}`, blob, version, message: '', bytesChanged: 0 }, this.#context)
      this.#complete.add(version)
    }
  }

  async #assign (name: string, write: Write): Promise<void> {
    const size = (write.sizeChunks ?? Math.max(-1, ...write.chunks) + 1) * CHUNK
    const assignment = await this.#fabric.manager.assign({
      op: 'assign', requestId: `write-${name}`, target: { kind: 'blob', blob: this.#blob },
      change: { kind: 'write', extents: extentsOfChunks(write.saysChunks ?? write.chunks, CHUNK), size }
    }, this.#context)
    this.#assignments.set(name, assignment)
    const content = [...this.#expected.at(-1)!]
    while (content.length < assignment.sizeAfter / CHUNK) content.push(null)
    for (const chunk of write.chunks) content[chunk] = idOf(name, chunk)
    this.#expected.push(content)
  }

  /** Published is the longest beginning that is complete, and it reads right. */
  async check (from: number): Promise<number> {
    const { versions } = await this.#fabric.manager.log({ op: 'log', blob: this.#blob, from: 0 })
    let complete = 0
    while (this.#complete.has(complete)) complete += 1
    expect(versions.length).toBe(complete)
    for (const version of versions.slice(from)) await this.#checkContent(version)
    return versions.length
  }

  async #checkContent (version: Version): Promise<void> {
    const expected = this.#expected[version.version]!
    expect(version.size).toBe(expected.length * CHUNK)
    expect(await readChunkIds(version, 0, expected.length, { nodes: new NodeStore(this.#fabric), attempts: Attempts.first })).toEqual(expected)
  }
}

describe.each([2, 4, 64])('fan-out %i', (fanOut) => {
  test.each(scenarios)('$name', async ({ before, writers }) => {
    const steps = writers.length < 3 ? STEPS : STEPS_FEWER
    for (const order of interleavings(writers.length, steps.length)) {
      const run = new Run()
      await run.begin(fanOut)
      if (before !== undefined) for (const step of STEPS.flat()) await run.step('before', before, step)
      let checked = await run.check(0)
      const done = writers.map(() => 0)
      for (const writer of order) {
        for (const step of steps[done[writer]!]!) await run.step(`writer-${writer}`, writers[writer]!, step)
        done[writer]! += 1
        checked = await run.check(checked)
      }
      expect(checked).toBe(writers.length + 1 + (before === undefined ? 0 : 1))
    }
  })
})
