/**
 * The chunks that a version holds, in order, by a walk over its segment tree that follows no hole: a terabyte with one chunk in it
 * costs the nodes above that chunk. Depth first, in batches of nodes, so that memory is bounded by the height of the tree.
 */
import { type ChunkId, chunkIdOfDigest } from '../protocols/cid.ts'
import type { Extent, Version } from './blobs.ts'
import type { InnerNode, LeafNode } from './node-codec.ts'
import type { TreeSource } from './node-store.ts'
import { chunkCount, nodeSpan, type NodeRef, rootLevelOf } from './tree-names.ts'
import { nodesOf, refTo, resolveSlots } from './tree-reader.ts'

export interface StoredChunk {
  readonly index: number
  readonly id: ChunkId
}

type Options = { readonly signal?: AbortSignal | undefined }

/** One batch of the record protocol for most trees; as leaves, some thousand chunks. */
const NODES_AT_ONCE = 64

/** Those that overlap the extent, ascending. Errors as NodeStore.get. */
export async function * storedChunks (version: Version, extent: Extent, source: TreeSource, options: Options = {}): AsyncGenerator<StoredChunk> {
  if (version.root === null || extent.size === 0) return
  const within: Range = {
    first: Math.floor(extent.offset / version.chunkSize),
    end: Math.min(Math.ceil((extent.offset + extent.size) / version.chunkSize), chunkCount(version.size, version))
  }
  const walk = new Walk(version, within, source, options)
  yield * walk.below([refTo(version.root, rootLevelOf(version.size, version), 0)])
}

/** Of chunks: [first, end). */
interface Range {
  readonly first: number
  readonly end: number
}

class Walk {
  readonly #version: Version
  readonly #within: Range
  readonly #source: TreeSource
  readonly #options: Options

  constructor (version: Version, within: Range, source: TreeSource, options: Options) {
    this.#version = version
    this.#within = within
    this.#source = source
    this.#options = options
  }

  /** `refs` are of one level, ascending. */
  async * below (refs: readonly NodeRef[]): AsyncGenerator<StoredChunk> {
    for (let at = 0; at < refs.length; at += NODES_AT_ONCE) {
      const batch = refs.slice(at, at + NODES_AT_ONCE)
      const nodes = await nodesOf(this.#version, batch, this.#source, this.#options)
      if (batch[0]!.level === 0) yield * this.#inLeaves(nodes as LeafNode[])
      else yield * this.below((nodes as InnerNode[]).flatMap((node) => this.#childrenOf(node)))
    }
  }

  async * #inLeaves (leaves: readonly LeafNode[]): AsyncGenerator<StoredChunk> {
    const digests = await resolveSlots(leaves, (leaf, slot) => this.#wants(this.#chunkAt(leaf, slot), 1), this.#source, this.#options)
    for (const [at, leaf] of leaves.entries()) {
      for (const [slot, digest] of digests[at]!.entries()) {
        if (digest !== null) yield { index: this.#chunkAt(leaf, slot), id: chunkIdOfDigest(digest) }
      }
    }
  }

  #childrenOf ({ level, index, children }: InnerNode): NodeRef[] {
    const span = nodeSpan(level - 1, this.#version)
    return children.flatMap((link, slot) => {
      const child = index * this.#version.fanOut + slot
      return link !== null && this.#wants(child * span, span) ? [refTo(link, level - 1, child)] : []
    })
  }

  #chunkAt (leaf: LeafNode, slot: number): number {
    return leaf.index * this.#version.fanOut + slot
  }

  #wants (begins: number, count: number): boolean {
    return begins < this.#within.end && begins + count > this.#within.first
  }
}
