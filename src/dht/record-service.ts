/**
 * The serving side of record/1: a storage peer answers from its record store, any other peer that it is none. No state.
 */
import { P2pvmError } from '../protocols/errors.ts'
import { RECORD_BATCH_BYTES, serveRecords } from '../protocols/record-protocol.ts'
import type { Counters } from '../protocols/seams.ts'
import type { PeerId, Transport } from '../protocols/transport.ts'
import { checkRecordName, type RecordStore } from './record-store.ts'
import type { NamedRecord } from './records.ts'
import { Semaphore } from './semaphore.ts'

export interface RecordServiceComponents {
  readonly transport: Transport
  readonly counters: Counters
  /** Of a storage peer. */
  readonly store?: Pick<RecordStore, 'get' | 'put'> | undefined
  /** Whether a value may be stored under its name, when this peer brings it. */
  readonly admits: (record: NamedRecord, from: PeerId) => boolean
}

/** The store joins what comes together into one write to the disk; these are what waits for it, not what works on it. */
const PUTS_AT_ONCE = 64
/** Times a batch of 1 MiB: 256 MiB at the worst, from peers that all send their largest. */
const PUT_QUEUE_MAX = 192

export function serveRecordStore ({ transport, counters, store, admits }: RecordServiceComponents): void {
  const writes = new Semaphore({ permits: PUTS_AT_ONCE, queueMax: PUT_QUEUE_MAX })
  const own = (): NonNullable<typeof store> => {
    if (store === undefined) throw new P2pvmError('ERR_NOT_ALLOWED', `${transport.self} is not a storage peer`, { peer: transport.self })
    return store
  }

  serveRecords(transport, {
    async put (records, { peer, signal }) {
      const store = own()
      const admitted = records.filter((record) => admits(record, peer))
      const outcomes = await writes.run(async () => await store.put(admitted), signal)
      counters.add('record_puts_total', admitted.length)
      if (admitted.length < records.length) counters.add('record_refusals_total', records.length - admitted.length, { peer })
      const outcomeOf = new Map(admitted.map((record, at) => [record, outcomes[at]!]))
      return records.map((record) => outcomeOf.get(record) ?? 'refused')
    },

    async get (names) {
      names.forEach(checkRecordName)
      const values: Array<Uint8Array | undefined> = []
      // What does not fit one answer is asked for again: not read now.
      for (let bytes = 0; values.length < names.length && bytes < RECORD_BATCH_BYTES;) {
        const value = own().get(names[values.length] ?? '')
        values.push(value)
        bytes += value?.length ?? 0
      }
      return values
    }
  })
}
