/**
 * What will be read next, from what was missed so far: a reader who goes through a file from one chunk to the next is given the
 * chunks before him while he reads those that he has; the longer he has gone on, the more. Without it there is in flight what one
 * request of the kernel covers, half a chunk of a buffered read, and the wait for each chunk comes after the one before.
 *
 * Only misses are seen here: workers answer hits by themselves, and a reader who does not come back has all that he wants.
 *
 * State it owns, per file: the readers that were last seen, at most READERS_MAX. Not for: fetching (`chunk-files.ts`).
 */
import { SLOT_HOLE, SLOT_UNKNOWN } from './file-view.ts'

/** A machine reads a few files at a time through one disk; beyond that the one who was not seen for longest is forgotten. */
const READERS_MAX = 8
/** In flight before a reader, at most: what a link of 1 Gbit/s brings in 70 ms. */
const AHEAD_BYTES_MAX = 8 * 1024 * 1024
/**
 * So far a reader has to have gone before anything is fetched unasked: few runs of a boot are as long, and what is fetched for nothing at
 * the end of one is a quarter of it at most.
 */
const RUN_BYTES_MIN = 4 * 1024 * 1024
const AHEAD_SHARE = 1 / 4
/** Holes that are passed over at once, so that a file that is mostly holes costs no long search: 1 GiB in chunks of 256 KiB. */
const HOLES_PASSED_MAX = 4096

interface Reader {
  /** Behind the last chunk that he missed. */
  next: number
  /** Behind the last chunk that was fetched for him. */
  aheadEnd: number
  /** Chunks that he has missed, or been spared. */
  run: number
}

export class ReadAhead {
  readonly #aheadMax: number
  readonly #runMin: number
  /** The one who was seen last is the last. */
  readonly #readers: Reader[] = []

  constructor (chunkSize: number) {
    this.#aheadMax = Math.max(1, Math.floor(AHEAD_BYTES_MAX / chunkSize))
    this.#runMin = Math.ceil(RUN_BYTES_MIN / chunkSize)
  }

  /**
   * Chunks `[first, end)` are being read, and some of them were not at hand. Which ones to fetch besides, all behind `end`; of `slots`
   * (file-view.ts) only those are that nothing is known of.
   */
  missed (first: number, end: number, slots: Int32Array): number[] {
    const reader = this.#readerAt(first, slots) ?? { next: first, aheadEnd: end, run: 0 }
    this.#readers.push(reader)
    if (this.#readers.length > READERS_MAX) this.#readers.shift()
    reader.run += Math.max(0, end - reader.next)
    reader.next = Math.max(reader.next, end)
    const from = Math.max(reader.aheadEnd, end)
    if (reader.run < this.#runMin) {
      reader.aheadEnd = from
      return []
    }
    const reach = Math.min(this.#aheadMax, Math.ceil(reader.run * AHEAD_SHARE))
    const ahead: number[] = []
    let at = from
    for (let passed = 0; at < slots.length && passed < HOLES_PASSED_MAX && at - passed < end + reach; at++) {
      const slot = Atomics.load(slots, at)
      if (slot === SLOT_UNKNOWN) ahead.push(at)
      if (slot === SLOT_HOLE) passed += 1
    }
    reader.aheadEnd = at
    return ahead
  }

  /** Who comes next to this chunk, taken out of the list: he missed the one before it, or it was fetched for him, or there are holes between. */
  #readerAt (first: number, slots: Int32Array): Reader | undefined {
    const found = this.#readers.findIndex(({ next, aheadEnd }) => first >= next - 1 && first <= passHoles(aheadEnd, first, slots))
    return found < 0 ? undefined : this.#readers.splice(found, 1)[0]
  }
}

/** The first chunk from `at` on that is no hole, at most `end`. */
function passHoles (at: number, end: number, slots: Int32Array): number {
  let to = at
  for (const last = Math.min(end, at + HOLES_PASSED_MAX); to < last && Atomics.load(slots, to) === SLOT_HOLE; to++);
  return to
}
