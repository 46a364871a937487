/**
 * The names of a version's tree nodes, computable before the nodes exist: what makes the talk's metadata forward reference
 * possible. `namesWrittenBy` is the one definition of which nodes a version writes. Writers use it for their own nodes and,
 * knowing only extents and sizes, for those of writers in flight; collection uses it for what a version may have left.
 *
 * The tree has fan-out F. A leaf-level node (level 0) covers F chunks, a node of level l covers F^(l+1); node (l, i) covers the
 * chunks from i × F^(l+1) on. A version's root is (l, 0) of the lowest level that covers the version's size.
 *
 * Pure, without state. Plain numbers: a blob has at most BLOB_BYTES_MAX bytes, so every chunk index and span is a safe integer.
 */
import assert from 'node:assert/strict'
import { CHUNK_BYTES_MAX } from '../protocols/cid.ts'
import { P2pvmError } from '../protocols/errors.ts'
import { FIRST_ATTEMPT } from './attempts.ts'
import type { BlobId, Extent, VersionId } from './blobs.ts'

/** Rounded up to a whole chunk this is still a safe integer. */
export const BLOB_BYTES_MAX = Number.MAX_SAFE_INTEGER + 1 - CHUNK_BYTES_MAX

export const FAN_OUT_MIN = 2
/** A leaf of 128 digests is 4.4 KB; wider leaves would cost more per scattered write than they save in levels. */
export const FAN_OUT_MAX = 128

const NODE_NAME = /^node\/([a-z2-7]{16})\/(\d+)(?:\.(\d+))?\/(\d+)\/(\d+)$/
const VERSION_NAME = /^version\/([a-z2-7]{16})\/(\d+)$/

export interface Geometry {
  readonly chunkSize: number // bytes, a power of two
  readonly fanOut: number // a power of two, FAN_OUT_MIN … FAN_OUT_MAX
}

/** All that others need to know of a write to compute the names that it writes. */
export interface WriteShape {
  readonly extents: readonly Extent[] // sorted and disjoint, within sizeAfter rounded up to a chunk
  readonly sizeBefore: number
  readonly sizeAfter: number
}

/** Where a node lies in the tree. */
export interface NodePlace {
  readonly level: number
  readonly index: number
}

export interface NodeRef extends NodePlace, VersionId {}

/** A power of two from 2 to 128, or ERR_USAGE. */
export function checkFanOut (fanOut: number): number {
  if (!Number.isInteger(fanOut) || fanOut < FAN_OUT_MIN || fanOut > FAN_OUT_MAX || (fanOut & (fanOut - 1)) !== 0) {
    throw new P2pvmError('ERR_USAGE', `fan-out must be a power of two from ${FAN_OUT_MIN} to ${FAN_OUT_MAX}, not ${fanOut}`)
  }
  return fanOut
}

export function chunkCount (sizeBytes: number, { chunkSize }: Geometry): number {
  assert(sizeBytes >= 0 && sizeBytes <= BLOB_BYTES_MAX, `size of a blob: ${sizeBytes}`)
  return Math.ceil(sizeBytes / chunkSize)
}

/** Chunks below one node of this level. */
export function nodeSpan (level: number, { fanOut }: Geometry): number {
  return fanOut ** (level + 1)
}

/** The lowest level that covers the size; 0 for an empty blob. */
export function rootLevelOf (sizeBytes: number, geometry: Geometry): number {
  const count = chunkCount(sizeBytes, geometry)
  let level = 0
  while (nodeSpan(level, geometry) < count) level += 1
  return level
}

/** Of the first attempt as if there were no others; each further one has names of its own, because records are write-once. */
export function nodeName ({ blob, version, level, index }: NodeRef, attempt: number): string {
  const written = attempt === FIRST_ATTEMPT ? `${version}` : `${version}.${attempt}`
  return `node/${blob}/${written}/${level}/${index}`
}

/** What `nodeName` made the name of; undefined when that is nothing. */
export function nodeOfName (name: string): (NodeRef & { readonly attempt: number }) | undefined {
  const [, blob, version, attempt = FIRST_ATTEMPT, level, index] = NODE_NAME.exec(name) ?? []
  if (blob === undefined) return undefined
  const node = { blob, version: Number(version), attempt: Number(attempt), level: Number(level), index: Number(index) }
  return nodeName(node, node.attempt) === name ? node : undefined
}

/** What `versionName` made the name of; undefined when that is nothing. */
export function versionOfName (name: string): VersionId | undefined {
  const [, blob, version] = VERSION_NAME.exec(name) ?? []
  if (blob === undefined) return undefined
  const id = { blob, version: Number(version) }
  return versionName(blob, id.version) === name ? id : undefined
}

export function versionName (blob: BlobId, version: number): string {
  return `version/${blob}/${version}`
}

/**
 * The names that a version writes:
 * - every node, on every level up to its root's, that covers a chunk which one of its extents touches;
 * - its root, always;
 * - the left spine: when the blob grew by levels, (l, 0) for every level above the old root's. The old root is then linked to
 *   from a node that exists, also when all that was written lies far to the right of it.
 */
export function namesWrittenBy (write: WriteShape, geometry: Geometry): WrittenNames {
  return new WrittenNames(write, geometry)
}

export class WrittenNames {
  readonly rootLevel: number
  readonly #rootLevelBefore: number
  readonly #geometry: Geometry
  /** Chunks that the extents touch: run r is [#firsts[r], #ends[r]), ascending, disjoint and not adjacent. */
  readonly #firsts: number[] = []
  readonly #ends: number[] = []

  constructor ({ extents, sizeBefore, sizeAfter }: WriteShape, geometry: Geometry) {
    assert(sizeBefore <= sizeAfter, 'blobs never shrink')
    this.#geometry = geometry
    this.rootLevel = rootLevelOf(sizeAfter, geometry)
    this.#rootLevelBefore = rootLevelOf(sizeBefore, geometry)
    for (const { offset, size } of extents) {
      assert(offset >= 0 && size > 0, 'an extent is not empty')
      const first = Math.floor(offset / geometry.chunkSize)
      const end = Math.ceil((offset + size) / geometry.chunkSize)
      const last = this.#ends.length - 1
      assert(last < 0 || first >= this.#firsts[last]!, 'extents are sorted')
      if (last >= 0 && first <= this.#ends[last]!) this.#ends[last] = Math.max(end, this.#ends[last]!)
      else {
        this.#firsts.push(first)
        this.#ends.push(end)
      }
    }
    assert((this.#ends.at(-1) ?? 0) <= chunkCount(sizeAfter, geometry), 'extents lie within the size')
  }

  writes (level: number, index: number): boolean {
    if (level > this.rootLevel) return false
    if (index === 0 && (level === this.rootLevel || level > this.#rootLevelBefore)) return true
    const span = nodeSpan(level, this.#geometry)
    return this.#touches(index * span, (index + 1) * span)
  }

  writesChunk (index: number): boolean {
    return this.#touches(index, index + 1)
  }

  /** From the root down, each level from left to right. Lazy: a terabyte of chunks is a lot of names. */
  * names (): Generator<NodePlace> {
    for (let level = this.rootLevel; level >= 0; level -= 1) {
      const span = nodeSpan(level, this.#geometry)
      let indexNext = 0
      if (this.writes(level, 0)) {
        yield { level, index: 0 }
        indexNext = 1
      }
      for (const [run, first] of this.#firsts.entries()) {
        const indexLast = Math.floor((this.#ends[run]! - 1) / span)
        for (let index = Math.max(indexNext, Math.floor(first / span)); index <= indexLast; index += 1) yield { level, index }
        indexNext = Math.max(indexNext, indexLast + 1)
      }
    }
  }

  #touches (first: number, end: number): boolean {
    // The first run that ends behind `first` is the only candidate that matters: those after it begin further right.
    let low = 0
    let high = this.#ends.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#ends[middle]! > first) high = middle
      else low = middle + 1
    }
    return low < this.#firsts.length && this.#firsts[low]! < end
  }
}
