/**
 * Memory that all workers share, into which the disk brings pieces of chunks before a reader who goes through a file in order
 * (`disk-read-ahead.ts`), past the page cache: the kernel's own copy of what it was given would be one too many. Whoever gets the reader's
 * request takes the bytes from here.
 *
 * A chunk of a version never changes, so a piece is known by its version's table and its place there, and nothing has ever to be taken
 * back. A slot has one piece:
 *
 *   EMPTY → CLAIMED    by whoever begins a piece: the slot is his alone
 *   CLAIMED → READING  the disk has it; or back to EMPTY
 *   READING → READY    by whoever hears of the read's end; or to EMPTY, when it failed
 *   READY + n          so many are copying from it; the last one empties it when all of it has been read
 *   READY → CLAIMED    when nobody has come for it in a long time
 *
 * State it owns: nothing but a view of that memory, which main and workers share. Not for: who reads what next.
 */
import type { DirectReads, ReadMemory } from '../direct-reads.ts'

const EMPTY = 0
const CLAIMED = 1
const READING = 2
const READY = 3

/** Fields of a slot. */
const STATE = 0
const TABLE = 1
const PIECE = 2
/** Bytes: of the piece, and those of it that nobody has read yet. */
const LENGTH = 3
const LEFT = 4
/** How often it has been passed over by somebody who would have had use for it. */
const PASSED = 5
const FIELDS = 6
const NEXT_SLOT = 0
const SLOTS_AT = 1

/** What a reader may have ahead (4 MiB), twice. Also how many reads are under way at most. */
export const SLOTS = 32
export const PIECE_BYTES = 256 * 1024
export const RING_BYTES = SLOTS * PIECE_BYTES
/** To begin a read takes as long as the page cache takes for so much. */
const CHUNK_BYTES_MIN = 64 * 1024
/** A slot whose reader went elsewhere is somebody else's after so many turns; one who is on his way is not robbed before. */
const PASSED_MAX = 8
const PASSED_BEHIND_MAX = 1
/** Somebody else may hear of the end that one waits for: so he looks again soon. And gives up after a second: then a file is read. */
const WAIT_MS = 0.1
const WAITS_MAX = 10_000

export interface ReadAheadRingInit {
  readonly cells: SharedArrayBuffer
  readonly memory: ReadMemory
}

/** For the workers of one mount; `memory` of RING_BYTES. */
export function makeReadAheadRing (memory: ReadMemory): ReadAheadRingInit {
  return { cells: new SharedArrayBuffer((SLOTS_AT + SLOTS * FIELDS) * Int32Array.BYTES_PER_ELEMENT), memory }
}

export class ReadAheadRing {
  readonly #cells: Int32Array
  readonly #bytes: Uint8Array
  readonly #address: number
  readonly #reads: Pick<DirectReads, 'begin' | 'reap'>

  constructor ({ cells, memory }: ReadAheadRingInit, reads: Pick<DirectReads, 'begin' | 'reap'>) {
    this.#cells = new Int32Array(cells)
    this.#bytes = new Uint8Array(memory.bytes, memory.start, RING_BYTES)
    this.#address = memory.address
    this.#reads = reads
  }

  /** Has all of a chunk read from its file, or says false: it is small, there is no room, or it lies in the page cache. */
  begin (table: number, index: number, chunkSize: number, fd: number): boolean {
    if (chunkSize < CHUNK_BYTES_MIN) return false
    const pieceBytes = Math.min(chunkSize, PIECE_BYTES)
    for (let offset = 0; offset < chunkSize; offset += pieceBytes) {
      const piece = (index * chunkSize + offset) / pieceBytes
      if (this.#find(table, piece) !== undefined) continue
      const slot = this.#claim(table, piece)
      if (slot === undefined) return false
      const cells = this.#cells
      cells[slot + TABLE] = table
      cells[slot + PIECE] = piece
      cells[slot + PASSED] = 0
      // Before it begins: another worker may hear of its end at once.
      Atomics.store(cells, slot + STATE, READING)
      const number = (slot - SLOTS_AT) / FIELDS
      if (!this.#reads.begin(fd, offset, pieceBytes, this.#address + number * PIECE_BYTES, number)) {
        Atomics.store(cells, slot + STATE, EMPTY)
        return false
      }
    }
    return true
  }

  /** In turn, so that those which were begun first are looked at first. */
  #claim (table: number, piece: number): number | undefined {
    const cells = this.#cells
    const slot = SLOTS_AT + (Atomics.add(cells, NEXT_SLOT, 1) >>> 0) % SLOTS * FIELDS
    if (Atomics.load(cells, slot + STATE) === READING) this.#reap(0)
    if (Atomics.compareExchange(cells, slot + STATE, EMPTY, CLAIMED) === EMPTY) return slot
    const passed = Atomics.add(cells, slot + PASSED, 1)
    // Begun too late: a worker was kept from it until its reader had gone by.
    const isBehind = cells[slot + TABLE] === table && cells[slot + PIECE]! < piece - SLOTS
    if (passed < (isBehind ? PASSED_BEHIND_MAX : PASSED_MAX)) return undefined
    return Atomics.compareExchange(cells, slot + STATE, READY, CLAIMED) === READY ? slot : undefined
  }

  /** Copies `[within, within + length)` of a chunk to `to` at `at`, when that is here or on its way; false: the file has to be read. */
  read (table: number, index: number, chunkSize: number, within: number, to: Uint8Array, at: number, length: number): boolean {
    const pieceBytes = Math.min(chunkSize, PIECE_BYTES)
    for (let done = 0; done < length;) {
      const offset = (within + done) % pieceBytes
      const count = Math.min(length - done, pieceBytes - offset)
      const piece = Math.floor((index * chunkSize + within + done) / pieceBytes)
      if (!this.#take(table, piece, offset, to, at + done, count)) return false
      done += count
    }
    return true
  }

  #take (table: number, piece: number, offset: number, to: Uint8Array, at: number, length: number): boolean {
    const slot = this.#find(table, piece)
    if (slot === undefined || !this.#enter(slot)) return false
    const cells = this.#cells
    // It may have been another's before it was entered.
    const isHere = cells[slot + TABLE] === table && cells[slot + PIECE] === piece && offset + length <= cells[slot + LENGTH]!
    if (isHere) {
      const from = (slot - SLOTS_AT) / FIELDS * PIECE_BYTES + offset
      to.set(this.#bytes.subarray(from, from + length), at)
      Atomics.sub(cells, slot + LEFT, length)
    }
    this.#leave(slot)
    return isHere
  }

  #find (table: number, piece: number): number | undefined {
    const cells = this.#cells
    for (let slot = SLOTS_AT; slot < cells.length; slot += FIELDS) {
      if (cells[slot + PIECE] === piece && cells[slot + TABLE] === table && Atomics.load(cells, slot + STATE) !== EMPTY) return slot
    }
    return undefined
  }

  /** False: what was on its way has not come, or somebody has claimed the slot. */
  #enter (slot: number): boolean {
    const cells = this.#cells
    for (let waits = 0; Atomics.load(cells, slot + STATE) === READING && waits < WAITS_MAX; waits++) this.#reap(WAIT_MS)
    for (;;) {
      const state = Atomics.load(cells, slot + STATE)
      if (state < READY) return false
      if (Atomics.compareExchange(cells, slot + STATE, state, state + 1) === state) return true
    }
  }

  #leave (slot: number): void {
    const cells = this.#cells
    for (;;) {
      const state = Atomics.load(cells, slot + STATE)
      const next = state === READY + 1 && Atomics.load(cells, slot + LEFT) <= 0 ? EMPTY : state - 1
      if (Atomics.compareExchange(cells, slot + STATE, state, next) === state) return
    }
  }

  #reap (waitMs: number): void {
    this.#reads.reap(waitMs, (number, result) => {
      const slot = SLOTS_AT + number * FIELDS
      Atomics.store(this.#cells, slot + LENGTH, result)
      Atomics.store(this.#cells, slot + LEFT, result)
      Atomics.store(this.#cells, slot + STATE, result > 0 ? READY : EMPTY)
    })
  }
}
