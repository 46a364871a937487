/**
 * Where a chunk's file lies under a store's root: the layout that the chunk store writes and mounts open by path. Pure.
 */
import { join } from 'node:path'
import type { ChunkId } from '../protocols/cid.ts'
import { P2pvmError } from '../protocols/errors.ts'

/** CIDv1, raw, sha2-256 in base32: the only file names that a store makes. */
export const CHUNK_ID_PATTERN = /^bafkrei[a-z2-7]{52}$/

/**
 * A folder per next to last character of the id (the last one carries two bits only): 32. Few, because puts that end up in
 * one folder at the same time share its fsync, and because opening a store syncs them all; enough, because ext4 and xfs
 * index their folders, and 10,000 files in each are 80 GB of 256 KiB chunks.
 */
const SHARD_CHARACTER = -2
export const SHARDS: readonly string[] = [...'abcdefghijklmnopqrstuvwxyz234567']

/** ERR_USAGE when it is no chunk id: ids come from outside, and this one becomes a path. */
export function chunkPath (root: string, id: ChunkId): string {
  if (!CHUNK_ID_PATTERN.test(id)) throw new P2pvmError('ERR_USAGE', `not a chunk id: ${id}`)
  return join(shardPath(root, id.at(SHARD_CHARACTER) ?? ''), id)
}

export function shardPath (root: string, shard: string): string {
  return join(root, 'chunks', shard)
}
