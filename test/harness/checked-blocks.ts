/** Reads what `checked-blocks.py` has written, and knows what has to be there. */
import { crc32 } from 'node:zlib'
import { LineProcess } from './line-process.ts'

/** A part of a file that is written in one way. */
export interface BlockRegion {
  readonly mode: 'direct' | 'buffered'
  readonly offset: number
  readonly blockBytes: number
  /** A power of two: 7 goes round in them all. */
  readonly slots: number
  readonly fsyncEvery: number
}

const STRIDE = 7
const HEADER_BYTES = 16
const CHECKSUM_BYTES = 4

export class CheckedBlocks {
  readonly region: BlockRegion
  readonly #base: Buffer
  /** By slot, the oldest write that may be there; -1: what was there before all. */
  readonly #oldest: number[]
  /** Numbers of the writer of the moment begin here, and the next one's there. */
  #first = 0
  #next = 0

  /** `base`: what the file holds before anything is written. */
  constructor (region: BlockRegion, base: Buffer) {
    this.region = region
    this.#base = base
    this.#oldest = Array.from({ length: region.slots }, () => -1)
  }

  /** Begins to write where the one before ended. */
  write (path: string): LineProcess {
    this.#first = this.#next
    const { offset, blockBytes, slots, fsyncEvery, mode } = this.region
    return LineProcess.python('checked-blocks.py', path, offset, blockBytes, slots, this.#next, fsyncEvery, mode)
  }

  /** What the writer has been answered counts from now on. What was written with O_DIRECT needs no fsync to outlive its server. */
  heard (lines: readonly string[]): void {
    const last = (kind: string): number => Number(lines.findLast((line) => line.startsWith(`${kind} `))?.slice(2) ?? this.#first - 1)
    const kept = this.region.mode === 'direct' ? last('w') : last('f')
    for (let number = this.#first; number <= kept; number++) this.#oldest[this.#slotOf(number)] = number
    this.#next = last('w') + 2 // the one in flight may be there
  }

  /** As it is now: what a version has to hold that is made from now on. */
  get oldest (): readonly number[] {
    return [...this.#oldest]
  }

  #slotOf (number: number): number {
    return number * STRIDE % this.region.slots
  }

  /** What is wrong with the file, in a few words each. What it holds is there for good from now on. */
  faults (file: Buffer): string[] {
    return this.#faults(file, this.#oldest, true)
  }

  /** The same of a version, which may hold less than the file by now. */
  faultsOfVersion (version: Buffer, oldest: readonly number[]): string[] {
    return this.#faults(version, oldest, false)
  }

  #faults (file: Buffer, oldestOf: readonly number[], keep: boolean): string[] {
    const faults: string[] = []
    for (let slot = 0; slot < this.region.slots; slot++) {
      const found = this.#read(file, slot)
      const oldest = oldestOf[slot] ?? -1
      if (found === undefined) faults.push(`slot ${slot} of the ${this.region.mode} blocks of ${this.region.blockBytes} is torn`)
      else if (found < oldest || found >= this.#next) faults.push(`slot ${slot} of the ${this.region.mode} blocks of ${this.region.blockBytes} holds write ${found}, not one of ${oldest} to ${this.#next - 1}`)
      else if (keep) this.#oldest[slot] = found
    }
    return faults
  }

  /** The write that a slot holds; -1: the base; undefined: neither, as a whole. */
  #read (file: Buffer, slot: number): number | undefined {
    const { offset, blockBytes } = this.region
    const at = offset + slot * blockBytes
    const block = file.subarray(at, at + blockBytes)
    const body = block.subarray(0, blockBytes - CHECKSUM_BYTES)
    const number = Number(block.readBigUInt64LE(0)) - 1
    if (crc32(body) === block.readUInt32LE(body.length) && Number(block.readBigUInt64LE(HEADER_BYTES / 2)) === slot && this.#slotOf(number) === slot) return number
    return block.equals(this.#base.subarray(at, at + blockBytes)) ? -1 : undefined
  }
}
