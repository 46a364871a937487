/**
 * The bytes of a WRITE, sorted by the chunks that they fall into. Pure: knows neither the blob's content nor its size. Where parts
 * overlap, the later one wins.
 */
import { P2pvmError } from '../protocols/errors.ts'
import type { Extent, Part } from './blobs.ts'
import { coalesce } from './extents.ts'
import { BLOB_BYTES_MAX } from './tree-names.ts'

export class ChunkedWrite {
  readonly chunkSize: number
  /** Sorted, disjoint, few: may say more than was written. */
  readonly extents: readonly Extent[]
  /** Where the last part ends; 0 without parts. */
  readonly end: number
  /** What was written, overlaps counted once. */
  readonly bytesChanged: number
  /** Offsets here are within the chunk. In the order written. */
  readonly #fragments = new Map<number, Part[]>()

  /** ERR_USAGE for an offset that is none, or beyond what a blob can hold. */
  constructor (parts: readonly Part[], chunkSize: number) {
    this.chunkSize = chunkSize
    for (const { offset, bytes } of parts) {
      if (!Number.isSafeInteger(offset) || offset < 0 || offset + bytes.length > BLOB_BYTES_MAX) {
        throw new P2pvmError('ERR_USAGE', `cannot write ${bytes.length} bytes at ${offset}`)
      }
      this.#split(offset, bytes)
    }
    const written = coalesce(parts.map(({ offset, bytes }) => ({ offset, size: bytes.length })), Infinity)
    this.extents = coalesce(written)
    this.end = written.reduce((end, { offset, size }) => Math.max(end, offset + size), 0)
    this.bytesChanged = written.reduce((sum, { size }) => sum + size, 0)
  }

  /** Of the chunks that are written to, ascending. */
  get indices (): number[] {
    return [...this.#fragments.keys()].sort((a, b) => a - b)
  }

  /** Whether every byte of the chunk before `end` is written. */
  covers (index: number, end: number): boolean {
    const [first] = coalesce(this.#fragmentsOf(index).map(({ offset, bytes }) => ({ offset, size: bytes.length })), Infinity)
    return end <= 0 || (first !== undefined && first.offset === 0 && first.size >= end)
  }

  /** Puts what is written over `chunk`, the chunk's bytes as they were, from its first on. */
  writeOver (index: number, chunk: Uint8Array): void {
    for (const { offset, bytes } of this.#fragmentsOf(index)) chunk.set(bytes, offset)
  }

  #fragmentsOf (index: number): readonly Part[] {
    return this.#fragments.get(index) ?? []
  }

  #split (offset: number, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length;) {
      const index = Math.floor((offset + at) / this.chunkSize)
      const within = offset + at - index * this.chunkSize
      const size = Math.min(this.chunkSize - within, bytes.length - at)
      const fragments = this.#fragments.get(index) ?? []
      fragments.push({ offset: within, bytes: bytes.subarray(at, at + size) })
      this.#fragments.set(index, fragments)
      at += size
    }
  }
}
