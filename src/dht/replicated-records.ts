/**
 * `Records` on the fabric. Each record goes its own way through its candidates (`replication.ts`), and what several of them
 * have to say to one peer at one time travels in one batch (`peer-batcher.ts`): a level of a segment tree is a request per
 * peer, not per node. A storage peer that is its own candidate uses its store directly.
 *
 * State it owns: latencies of peers, batches under way. Not for: caching tree nodes (`versioning/`), answering others
 * (`record-service.ts`).
 */
import { abortErrorOf, throwIfAborted, untilAborted, withDeadline } from '../protocols/abort.ts'
import { getRecords, putRecords, RECORD_BATCH_BYTES, RECORDS_MAX } from '../protocols/record-protocol.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { Clock, Counters, Log } from '../protocols/seams.ts'
import type { PeerId, Transport } from '../protocols/transport.ts'
import type { Membership } from './membership.ts'
import { PeerBatcher } from './peer-batcher.ts'
import { PeerLatency } from './peer-latency.ts'
import { keyOfRecord } from './placement.ts'
import { checkRecord, checkRecordName, type RecordOutcome, type RecordStore } from './record-store.ts'
import type { NamedRecord, Records } from './records.ts'
import { describe, place, type Placing, Refusal, Replication, seek, verdict, type Candidates, type ReplicationInit } from './replication.ts'
import { SharedDeadlines } from './shared-deadlines.ts'

export interface ReplicatedRecordsComponents {
  readonly transport: Transport
  readonly membership: Membership
  readonly clock: Clock
  readonly log: Log
  readonly counters: Counters
  /** This peer's own store, when it is a storage peer. */
  readonly store?: RecordStore | undefined
}

export interface ReplicatedRecordsInit extends ReplicationInit {
  /** Aborts when the process stops: also what goes on after a put was acknowledged. */
  readonly signal?: AbortSignal | undefined
}

const GET_DEADLINE_MS = 30_000
const PUT_DEADLINE_MS = 60_000
/** Requests to one peer under way at a time: a batch that fills while another is on its way need not wait for it. */
const BATCHES_AT_ONCE = 4

type PutOptions = NonNullable<Parameters<Records['put']>[1]>
type GetOptions = NonNullable<Parameters<Records['get']>[1]>

export class ReplicatedRecords implements Records {
  readonly #components: ReplicatedRecordsComponents
  readonly #replication: Replication
  readonly #signal: AbortSignal | undefined
  readonly #latency = new PeerLatency()
  readonly #deadlines: SharedDeadlines
  readonly #puts: PeerBatcher<NamedRecord, RecordOutcome>
  readonly #gets: PeerBatcher<string, Uint8Array | undefined>

  constructor (components: ReplicatedRecordsComponents, init: ReplicatedRecordsInit) {
    this.#components = components
    this.#signal = init.signal
    this.#replication = new Replication(components, init)
    this.#deadlines = new SharedDeadlines(components.clock, init.signal)
    const batches = { itemsMax: RECORDS_MAX, atOnce: BATCHES_AT_ONCE }
    this.#puts = new PeerBatcher({ ...batches, bytesMax: RECORD_BATCH_BYTES, bytesOf: ({ value }) => value.length, send: this.#sendPut.bind(this) })
    this.#gets = new PeerBatcher({ ...batches, send: this.#sendGet.bind(this) })
  }

  async put (records: readonly NamedRecord[], { signal, deadlineMs = PUT_DEADLINE_MS }: PutOptions = {}): Promise<void> {
    records.forEach(checkRecord)
    const looking = new AbortController()
    let placings: Placing[] = []
    const giveUp = (error: P2pvmError): void => {
      looking.abort(error)
      for (const placing of placings) placing.giveUp(error)
    }
    const callerGone = (): void => { giveUp(abortErrorOf(signal!)) }
    const timely = this.#deadlines.wait(deadlineMs, giveUp)
    signal?.addEventListener('abort', callerGone)
    try {
      if (signal?.aborted === true) callerGone()
      throwIfAborted(looking.signal)
      const candidates = await this.#candidates(records.map(({ name }) => name), 'put', looking.signal)
      throwIfAborted(looking.signal)
      placings = records.map((record, index) => place(`record ${record.name}`, candidates[index]!, (peer) => this.#storeAt(peer, record)))
      await Promise.all(placings.map(({ acknowledged }) => acknowledged))
    } finally {
      signal?.removeEventListener('abort', callerGone)
      // They go on to R without the caller.
      void Promise.all(placings.map(({ settled }) => settled)).then(timely)
    }
  }

  async get (names: readonly string[], { signal, accept }: GetOptions = {}): Promise<Array<Uint8Array | undefined>> {
    names.forEach(checkRecordName)
    const unique = [...new Set(names)]
    const values = await withDeadline(this.#components.clock, GET_DEADLINE_MS, [signal, this.#signal], async (own) => {
      const candidates = await this.#candidates(unique, 'get', own)
      return await Promise.all(unique.map(async (name, index) => await this.#getOne(name, candidates[index] as Candidates, accept, own)))
    })
    const byName = new Map(unique.map((name, index) => [name, values[index]]))
    return names.map((name) => byName.get(name))
  }

  async #candidates (names: readonly string[], purpose: 'put' | 'get', signal: AbortSignal): Promise<Candidates[]> {
    return await Promise.all(names.map(async (name) => await this.#replication.candidates(keyOfRecord(name), purpose, signal)))
  }

  async #storeAt (peer: PeerId, record: NamedRecord): Promise<void> {
    const outcome = await this.#puts.ask(peer, record)
    if (outcome === 'conflict') throw new P2pvmError('ERR_CONFLICT', `the record ${record.name} has another value already`, { name: record.name, peer })
    if (outcome === 'refused') throw new Refusal(`it is not what may be stored as ${record.name}`, { name: record.name, peer })
  }

  async #getOne (name: string, candidates: Candidates, accept: GetOptions['accept'], signal: AbortSignal): Promise<Uint8Array | undefined> {
    const { clock, counters } = this.#components
    const { value, failures } = await seek(candidates, {
      ask: async (peer, cancel) => {
        const found = await untilAborted(this.#gets.ask(peer, name), cancel)
        if (found === undefined || accept === undefined || accept(name, found)) return found
        counters.add('record_corrupt_total', 1, { peer })
        this.#replication.reportLiar(peer, name)
        throw new P2pvmError('ERR_CORRUPT', `${peer} sent a value that cannot be that of the record ${name}`, { name, peer })
      },
      latency: this.#latency,
      clock,
      signal,
      onHedge: () => { counters.add('record_hedges_total') },
      onOvertaken: (peer) => { if (this.#latency.overdue(peer)) this.#replication.reportHung(peer) }
    })
    if (value !== undefined) return value
    switch (verdict(failures, candidates.complete)) {
      case 'missing': return undefined
      case 'corrupt': throw new P2pvmError('ERR_CORRUPT', `no good copy of the record ${name} was found (${describe(failures)})`, { name })
      case 'unavailable': throw new P2pvmError('ERR_UNAVAILABLE', `the record ${name} could not be got (${describe(failures)})`, { name })
    }
  }

  async #sendPut (peer: PeerId, records: NamedRecord[]): Promise<RecordOutcome[]> {
    const { transport, store, counters } = this.#components
    if (peer === this.#replication.self && store !== undefined) return await store.put(records)
    counters.add('record_batches_sent_total', 1, { kind: 'put' })
    return await this.#replication.asking(peer, this.#signal, async (options) => await putRecords(transport, peer, records, options))
  }

  async #sendGet (peer: PeerId, names: string[]): Promise<Array<Uint8Array | undefined>> {
    const { transport, store, clock, counters } = this.#components
    if (peer === this.#replication.self && store !== undefined) return names.map((name) => store.get(name))
    counters.add('record_batches_sent_total', 1, { kind: 'get' })
    const startMs = clock.monotonic()
    const values = await this.#replication.asking(peer, this.#signal, async (options) => await getRecords(transport, peer, names, options))
    this.#latency.answered(peer, clock.monotonic() - startMs)
    return values
  }
}
