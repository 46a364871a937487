/**
 * Writing a version's segment tree: all its nodes, from the root down, from its chunks and its assignment alone. The published
 * base's tree is read only where something of it stays, one batch per level; nodes in flight are linked to unseen.
 *
 * What lies in a place that this version does not write is, in this order:
 * 1. the newest version in flight, older than this one, that writes there: a link to its node, which may not exist yet
 *    (the talk's metadata forward reference); in a leaf, a link to its leaf, because its chunk ids are not known;
 * 2. what the published base has there: its link, or in a leaf the chunk's digest itself, so that chains of links stay as short as
 *    the number of writers in flight;
 * 3. nothing.
 *
 * The same version written again gives the same bytes: names are write-once, and a writer that crashed starts over.
 *
 * A version whose writer died is written by the version manager as a further attempt, with the same extents and without chunks: the same
 * places, which then show what the base has there.
 */
import assert from 'node:assert/strict'
import { type ChunkId, digestOf } from '../protocols/cid.ts'
import type { Assignment } from './assignment.ts'
import type { VersionId } from './blobs.ts'
import type { Credentials } from './certificates.ts'
import type { InnerNode, LeafNode, Slot, TreeNode } from './node-codec.ts'
import type { TreeSource } from './node-store.ts'
import { chunkCount, type Geometry, namesWrittenBy, nodeSpan, rootLevelOf, type WrittenNames } from './tree-names.ts'
import { refTo, resolveSlots } from './tree-reader.ts'

/** Nodes whose base is fetched, and which are built, together: bounds memory, and is one batch of the record protocol. */
const NODES_AT_ONCE = 512

/** The base's node in the same place. 'above': there is none, the base is less high; its root is the leftmost node further down. */
type BaseLink = VersionId | 'above' | null

interface Task {
  readonly index: number
  readonly base: BaseLink
}

export interface TreeWrite {
  readonly assignment: Assignment
  /** What this version says: chunks that are not named here stay what they were, also within its extents. */
  readonly chunks: ReadonlyMap<number, ChunkId | null>
  readonly credentials: Credentials
}

/** `source` is for the base. Returns when all nodes are durable. Errors as Records.put and NodeStore.get. */
export async function writeTree (write: TreeWrite, source: TreeSource, options: { signal?: AbortSignal | undefined } = {}): Promise<void> {
  const tree = new TreeWriter(write, source, options)
  await tree.write()
}

class TreeWriter {
  readonly #assignment: Assignment
  readonly #geometry: Geometry
  readonly #chunks: ReadonlyMap<number, ChunkId | null>
  readonly #chunkIndices: Float64Array // ascending
  readonly #chunkCount: number
  readonly #own: WrittenNames
  /** Newest first: the first one that writes a place is the one to link to. */
  readonly #inFlight: ReadonlyArray<{ readonly version: number, readonly names: WrittenNames }>
  readonly #credentials: Credentials
  readonly #source: TreeSource
  readonly #options: { signal?: AbortSignal | undefined }

  constructor ({ assignment, chunks, credentials }: TreeWrite, source: TreeSource, options: { signal?: AbortSignal | undefined }) {
    this.#assignment = assignment
    this.#geometry = assignment.base
    this.#chunks = chunks
    this.#chunkIndices = Float64Array.from(chunks.keys()).sort()
    this.#chunkCount = chunkCount(assignment.sizeAfter, this.#geometry)
    this.#own = namesWrittenBy(assignment, this.#geometry)
    this.#inFlight = assignment.inFlight.map((one) => ({ version: one.version, names: namesWrittenBy(one, this.#geometry) })).reverse()
    this.#credentials = credentials
    this.#source = source
    this.#options = options
    assert(this.#chunkIndices.every((index) => this.#own.writesChunk(index)), 'every chunk lies within the extents')
  }

  async write (): Promise<void> {
    const writer = this.#source.nodes.writer(this.#credentials, this.#options)
    try {
      let tasks: Task[] = [{ index: 0, base: this.#baseLinkOfRoot(this.#own.rootLevel) }]
      for (let level = this.#own.rootLevel; level >= 0; level -= 1) {
        const below: Task[] = []
        for (let at = 0; at < tasks.length; at += NODES_AT_ONCE) {
          const built = level === 0
            ? await this.#leaves(tasks.slice(at, at + NODES_AT_ONCE))
            : await this.#innerNodes(level, tasks.slice(at, at + NODES_AT_ONCE), below)
          for (const node of built) await writer.add(node)
        }
        tasks = below
      }
      await writer.flush()
    } finally {
      await writer.abandon()
    }
  }

  async #innerNodes (level: number, tasks: readonly Task[], below: Task[]): Promise<InnerNode[]> {
    const bases = await this.#baseNodes<InnerNode>(level, tasks)
    return tasks.map((task, at) => {
      const children: Array<VersionId | null> = []
      for (let slot = 0; slot < this.#geometry.fanOut; slot += 1) {
        const index = task.index * this.#geometry.fanOut + slot
        const base = this.#baseLinkOfChild(level, task, bases[at], slot)
        if (this.#own.writes(level - 1, index)) {
          below.push({ index, base })
          children.push(this.#self)
        } else {
          children.push(this.#linkTo(level - 1, index, base))
        }
      }
      return { ...refTo(this.#self, level, task.index), kind: 'inner', children }
    })
  }

  async #leaves (tasks: readonly Task[]): Promise<LeafNode[]> {
    const bases = await this.#baseNodes<LeafNode>(0, tasks)
    const present = bases.filter((base) => base !== undefined)
    const resolved = await resolveSlots(present, (leaf, slot) => this.#comesFromBase(leaf.index * this.#geometry.fanOut + slot), this.#source, this.#options)
    const slotsOf = new Map(present.map((leaf, at) => [leaf.index, resolved[at]!]))
    return tasks.map(({ index }) => {
      const slots: Slot[] = []
      for (let slot = 0; slot < this.#geometry.fanOut; slot += 1) {
        const chunk = index * this.#geometry.fanOut + slot
        const own = this.#chunks.get(chunk)
        if (own !== undefined) slots.push(own === null ? null : digestOf(own))
        else slots.push(this.#writerInFlightOfChunk(chunk) ?? slotsOf.get(index)?.[slot] ?? null)
      }
      return { ...refTo(this.#self, 0, index), kind: 'leaf', slots }
    })
  }

  get #self (): VersionId {
    return this.#assignment
  }

  /** The published base's nodes in the places of these tasks, where something of them stays. */
  async #baseNodes<Node extends TreeNode> (level: number, tasks: readonly Task[]): Promise<Array<Node | undefined>> {
    const bases = new Array<Node | undefined>(tasks.length)
    const needed = [...tasks.entries()].flatMap(([at, { index, base }]) =>
      base === null || base === 'above' || this.#replaces(level, index) ? [] : [{ at, ref: refTo(base, level, index) }])
    const found = await this.#source.nodes.get(needed.map(({ ref }) => ref), this.#source.attempts, this.#options)
    for (const [index, { at }] of needed.entries()) bases[at] = found[index] as Node
    return bases
  }

  #baseLinkOfRoot (level: number): BaseLink {
    const { base } = this.#assignment
    if (base.root === null) return null
    const baseLevel = rootLevelOf(base.size, this.#geometry)
    assert(level >= baseLevel, 'blobs never shrink')
    return level === baseLevel ? base.root : 'above'
  }

  #baseLinkOfChild (level: number, task: Task, base: InnerNode | undefined, slot: number): BaseLink {
    if (task.base !== 'above') return base?.children[slot] ?? null
    return slot === 0 ? this.#baseLinkOfRoot(level - 1) : null
  }

  #linkTo (level: number, index: number, base: BaseLink): VersionId | null {
    const writer = this.#inFlight.find(({ names }) => names.writes(level, index))
    if (writer !== undefined) return { blob: this.#self.blob, version: writer.version }
    // Above the base's root there is a node only if whoever grew the blob so far wrote it, and that writer is in flight or this one.
    assert(base !== 'above', 'the left spine has no gap')
    return base
  }

  #writerInFlightOfChunk (chunk: number): number | undefined {
    return this.#inFlight.find(({ names }) => names.writesChunk(chunk))?.version
  }

  #comesFromBase (chunk: number): boolean {
    return !this.#chunks.has(chunk) && this.#writerInFlightOfChunk(chunk) === undefined
  }

  /** Every chunk below this node is named by this version: nothing of the base stays. */
  #replaces (level: number, index: number): boolean {
    const span = nodeSpan(level, this.#geometry)
    const first = index * span
    const end = Math.min(first + span, this.#chunkCount)
    return this.#chunksBelow(end) - this.#chunksBelow(first) === end - first
  }

  /** How many of this version's chunks have an index below `end`. */
  #chunksBelow (end: number): number {
    let low = 0
    let high = this.#chunkIndices.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#chunkIndices[middle]! < end) low = middle + 1
      else high = middle
    }
    return low
  }
}
