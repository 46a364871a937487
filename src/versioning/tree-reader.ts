/**
 * Reading a version's segment tree: level by level from the root, one batch of nodes per level. Pure over NodeStore.
 * Links name versions; the attempts that count are added when a node is fetched.
 */
import type { ChunkId } from '../protocols/cid.ts'
import { chunkIdOfDigest } from '../protocols/cid.ts'
import { P2pvmError } from '../protocols/errors.ts'
import { IN_FLIGHT_VERSIONS_MAX } from '../protocols/version-protocol.ts'
import type { Version, VersionId } from './blobs.ts'
import type { InnerNode, LeafNode, TreeNode } from './node-codec.ts'
import type { TreeSource } from './node-store.ts'
import { chunkCount, nodeSpan, type NodeRef, rootLevelOf } from './tree-names.ts'

type Options = { readonly signal?: AbortSignal | undefined }

/** Ids of chunks [first, first + count); null for holes, and past the end. */
export async function readChunkIds (
  version: Version, first: number, count: number, source: TreeSource, { signal }: Options = {}
): Promise<Array<ChunkId | null>> {
  const ids = new Array<ChunkId | null>(count).fill(null)
  const end = Math.min(first + count, chunkCount(version.size, version))
  if (version.root === null || first >= end) return ids

  let refs: NodeRef[] = [refTo(version.root, rootLevelOf(version.size, version), 0)]
  for (let level = refs[0]!.level; level > 0; level -= 1) {
    const inner = await nodesOf(version, refs, source, { signal }) as InnerNode[]
    refs = inner.flatMap((node) => childrenWithin(node, first, end, version))
  }
  const leaves = await nodesOf(version, refs, source, { signal }) as LeafNode[]
  const isWanted = (chunk: number): boolean => chunk >= first && chunk < end
  const digests = await resolveSlots(leaves, (leaf, slot) => isWanted(leaf.index * version.fanOut + slot), source, { signal })
  for (const [at, leaf] of leaves.entries()) {
    for (const [slot, digest] of digests[at]!.entries()) {
      const chunk = leaf.index * version.fanOut + slot
      if (digest !== null && isWanted(chunk)) ids[chunk - first] = chunkIdOfDigest(digest)
    }
  }
  return ids
}

/**
 * Nodes of a tree. Errors as NodeStore.get; ERR_PROTOCOL when one has more entries than the tree's fan-out, which would lie in the range of
 * its neighbour. That its writer has signed, so no other replica has another; and storage peers, which take any tree's, do not know better.
 */
export async function nodesOf (
  { fanOut }: Pick<Version, 'fanOut'>, refs: readonly NodeRef[], { nodes, attempts }: TreeSource, options: Options
): Promise<TreeNode[]> {
  const found = await nodes.get(refs, attempts, options)
  for (const node of found) {
    const entries = node.kind === 'leaf' ? node.slots.length : node.children.length
    if (entries <= fanOut) continue
    const { blob, version, level, index } = node
    throw new P2pvmError('ERR_PROTOCOL', `a tree node of ${blob}@${version} has ${entries} entries, of at most ${fanOut}`, { blob, version, level, index })
  }
  return found
}

export function refTo ({ blob, version }: VersionId, level: number, index: number): NodeRef {
  return { blob, version, level, index }
}

function childrenWithin (node: InnerNode, first: number, end: number, version: Version): NodeRef[] {
  const childSpan = nodeSpan(node.level - 1, version)
  const childFirst = node.index * version.fanOut
  return node.children.flatMap((link, at) => {
    const begins = (childFirst + at) * childSpan
    const overlaps = begins < end && begins + childSpan > first
    return link !== null && overlaps ? [refTo(link, node.level - 1, childFirst + at)] : []
  })
}

/**
 * The slots of these leaves that are wanted, links followed: a link says that the slot is found in the leaf of the same place of an
 * earlier version of the same blob, which was in flight when this leaf was written. All leaves' links together take one batch per hop.
 */
export async function resolveSlots (
  leaves: readonly LeafNode[], wanted: (leaf: LeafNode, slot: number) => boolean, { nodes, attempts }: TreeSource, { signal }: Options = {}
): Promise<Array<Array<Uint8Array | null>>> {
  const resolved = leaves.map((leaf) => new Array<Uint8Array | null>(leaf.slots.length).fill(null))
  let open = leaves.flatMap((leaf, at) => leaf.slots.map((_, slot) => ({ leaf, at, slot })))
    .filter(({ leaf, slot }) => wanted(leaf, slot))
  for (let hops = 0; open.length > 0; hops += 1) {
    // Each hop leads to an older version that was in flight with the one before; no writer was told of more.
    if (hops > IN_FLIGHT_VERSIONS_MAX) throw new P2pvmError('ERR_CORRUPT', 'a chain of leaf links is longer than any writer makes')
    const linked: typeof open = []
    const targets: NodeRef[] = []
    for (const entry of open) {
      const value = entry.leaf.slots[entry.slot] ?? null
      if (typeof value !== 'number') {
        resolved[entry.at]![entry.slot] = value
        continue
      }
      linked.push(entry)
      targets.push(refTo({ blob: entry.leaf.blob, version: value }, 0, entry.leaf.index))
    }
    const next = targets.length === 0 ? [] : await nodes.get(targets, attempts, { signal }) as LeafNode[]
    open = linked.map((entry, index) => ({ ...entry, leaf: next[index]! }))
  }
  return resolved
}
