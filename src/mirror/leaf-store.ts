/**
 * Chunk ids that this machine has seen, on disk: what is local stays readable while the daemon is gone. One sparse file per
 * version, a slot per leaf (LEAF_CHUNKS consecutive chunks). A published version never changes, so a slot is right for ever
 * once it is whole; a checksum tells whether it is, so nothing needs to be synced and several mounts may write the same.
 *
 *   slot   LEAF_CHUNKS × (kind: 1 hole, 2 chunk; 32 bytes of digest) | first 16 bytes of the sha256 of that, the version and the leaf
 *
 * Not for: which of the chunks are in the cache.
 */
import { createHash } from 'node:crypto'
import { closeSync, constants, mkdirSync, openSync, readSync } from 'node:fs'
import { join } from 'node:path'
import { type ChunkId, chunkIdOfDigest, digestOf } from '../protocols/cid.ts'
import { writeFully } from './files.ts'
import type { VersionRef } from './source.ts'

/** As many as a node of the segment tree holds unless told otherwise: one question to the daemon. */
export const LEAF_CHUNKS = 64

const ENTRY_BYTES = 33
const KIND_HOLE = 1
const KIND_CHUNK = 2
const CHECKSUM_BYTES = 16
const SLOT_BYTES = LEAF_CHUNKS * ENTRY_BYTES + CHECKSUM_BYTES

/** Chunk ids of one leaf; the last leaf of a version is shorter. */
export type Leaf = ReadonlyArray<ChunkId | null>

export class LeafStore {
  readonly #id: string
  readonly #fd: number

  constructor (folder: string, version: Pick<VersionRef, 'blob' | 'version'>) {
    mkdirSync(folder, { recursive: true })
    this.#id = `${version.blob}@${version.version}`
    this.#fd = openSync(join(folder, this.#id), constants.O_RDWR | constants.O_CREAT, 0o600)
  }

  read (leaf: number, count: number): Leaf | undefined {
    const slot = Buffer.alloc(SLOT_BYTES)
    if (readSync(this.#fd, slot, 0, SLOT_BYTES, leaf * SLOT_BYTES) !== SLOT_BYTES) return undefined
    const entries = slot.subarray(0, SLOT_BYTES - CHECKSUM_BYTES)
    if (!slot.subarray(SLOT_BYTES - CHECKSUM_BYTES).equals(this.#checksum(leaf, entries))) return undefined
    const ids: Array<ChunkId | null> = []
    for (let index = 0; index < count; index++) {
      const entry = entries.subarray(index * ENTRY_BYTES, (index + 1) * ENTRY_BYTES)
      if (entry[0] === KIND_HOLE) ids.push(null)
      else if (entry[0] === KIND_CHUNK) ids.push(chunkIdOfDigest(entry.subarray(1)))
      else return undefined
    }
    return ids
  }

  write (leaf: number, ids: Leaf): void {
    const slot = Buffer.alloc(SLOT_BYTES)
    for (const [index, id] of ids.entries()) {
      slot[index * ENTRY_BYTES] = id === null ? KIND_HOLE : KIND_CHUNK
      if (id !== null) slot.set(digestOf(id), index * ENTRY_BYTES + 1)
    }
    this.#checksum(leaf, slot.subarray(0, SLOT_BYTES - CHECKSUM_BYTES)).copy(slot, SLOT_BYTES - CHECKSUM_BYTES)
    writeFully(this.#fd, slot, 0, SLOT_BYTES, leaf * SLOT_BYTES)
  }

  #checksum (leaf: number, entries: Buffer): Buffer {
    return createHash('sha256').update(`${this.#id}/${leaf}`).update(entries).digest().subarray(0, CHECKSUM_BYTES)
  }

  close (): void {
    closeSync(this.#fd)
  }
}
