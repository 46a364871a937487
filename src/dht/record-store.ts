/**
 * The records on one storage peer: write-once named values with a lease, in a key-value store.
 *
 *     record/<name>  →  end of lease (milliseconds since 1970, 8 bytes, big-endian) ‖ value
 *
 * Lease and value are one entry, so that no crash parts them. State it owns: the number of records, and which names are
 * being written. Not for: who may write which name, nor where else a record is.
 */
import { P2pvmError } from '../protocols/errors.ts'
import type { RecordPutOutcome } from '../protocols/record-protocol.ts'
import type { Clock, KeyValueStore } from '../protocols/seams.ts'
import { LEASE_MS } from './chunk-store.ts'
import { RECORD_BYTES_MAX, RECORD_NAME_BYTES_MAX, type NamedRecord } from './records.ts'

/** What became of one record of a batch. */
export type RecordOutcome = RecordPutOutcome

/** A lease that has lost more than this is renewed: at most one rewrite per record and hour. */
export const RECORD_LEASE_GRANULARITY_MS = 60 * 60 * 1000

const PREFIX = 'record/'
/** The character after '/', so that [PREFIX, PREFIX_END) is every key that begins with PREFIX. */
const PREFIX_END = 'record0'
const LEASE_BYTES = 8
const PRINTABLE_ASCII = /^[\x21-\x7e]+$/

/** ERR_USAGE when name or size are out of bounds. */
export function checkRecord ({ name, value }: NamedRecord): void {
  checkRecordName(name)
  if (value.length > RECORD_BYTES_MAX) throw new P2pvmError('ERR_USAGE', `record ${name} has ${value.length} bytes; at most ${RECORD_BYTES_MAX} are allowed`)
}

export function checkRecordName (name: string): void {
  if (name.length > RECORD_NAME_BYTES_MAX || !PRINTABLE_ASCII.test(name)) {
    throw new P2pvmError('ERR_USAGE', `not a record name (printable ASCII, at most ${RECORD_NAME_BYTES_MAX} characters): ${JSON.stringify(name.slice(0, RECORD_NAME_BYTES_MAX))}`)
  }
}

export class RecordStore {
  readonly #store: KeyValueStore
  readonly #clock: Clock
  readonly #writing = new Map<string, Promise<void>>()
  #count = 0

  /** Takes over `store`: nobody else may write below `record/`. */
  constructor ({ store, clock }: { store: KeyValueStore, clock: Clock }) {
    this.#store = store
    this.#clock = clock
    for (const _ of store.range({ start: PREFIX, end: PREFIX_END })) this.#count += 1
  }

  count (): number {
    return this.#count
  }

  get (name: string): Uint8Array | undefined {
    return this.#store.get(PREFIX + name)?.subarray(LEASE_BYTES)
  }

  /**
   * Each record for itself: a conflict in one does not keep the others out. Resolves when all that are not in conflict are
   * on disk with a fresh lease. ERR_USAGE, ERR_DISK_FULL.
   */
  async put (records: readonly NamedRecord[]): Promise<RecordOutcome[]> {
    records.forEach(checkRecord)
    const now = this.#clock.now()
    const earlier: Array<Promise<void>> = []
    const fresh = new Map<string, Uint8Array>()
    const outcomes = records.map(({ name, value }): RecordOutcome => {
      const found = fresh.get(name) ?? this.#store.get(PREFIX + name)
      if (found !== undefined && Buffer.compare(found.subarray(LEASE_BYTES), value) !== 0) return 'conflict'
      // Seen is not durable: it may be on its way to the disk for somebody else.
      const writing = this.#writing.get(name)
      if (writing !== undefined) earlier.push(writing)
      if (found === undefined || leaseEndOf(found) < now + LEASE_MS - RECORD_LEASE_GRANULARITY_MS) fresh.set(name, withLease(value, now + LEASE_MS))
      return found === undefined ? 'stored' : 'there'
    })
    await Promise.all([this.#write(fresh, outcomes), ...earlier])
    return outcomes
  }

  async #write (entries: ReadonlyMap<string, Uint8Array>, outcomes: readonly RecordOutcome[]): Promise<void> {
    if (entries.size === 0) return
    const writing = this.#store.write([...entries].map(([name, value]) => ({ key: PREFIX + name, value })))
    for (const name of entries.keys()) this.#writing.set(name, writing)
    try {
      await writing
      this.#count += outcomes.filter((outcome) => outcome === 'stored').length
    } finally {
      for (const name of entries.keys()) if (this.#writing.get(name) === writing) this.#writing.delete(name)
    }
  }
}

function withLease (value: Uint8Array, leaseEndMs: number): Uint8Array {
  const entry = new Uint8Array(LEASE_BYTES + value.length)
  const view = new DataView(entry.buffer)
  const ms = Math.round(leaseEndMs)
  view.setUint32(0, Math.floor(ms / 2 ** 32))
  view.setUint32(4, ms % 2 ** 32)
  entry.set(value, LEASE_BYTES)
  return entry
}

function leaseEndOf (entry: Uint8Array): number {
  const view = new DataView(entry.buffer, entry.byteOffset, LEASE_BYTES)
  return view.getUint32(0) * 2 ** 32 + view.getUint32(4)
}
