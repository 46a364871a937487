/**
 * `Chunks` on the fabric: placement decides who keeps a chunk, the chunk protocol moves it, `replication.ts` goes through
 * the candidates. A storage peer that is its own candidate uses its store directly; nothing crosses a socket then.
 *
 * State it owns: bytes on their way (admission), latencies of peers, gets and puts under way (concurrent ones of one chunk
 * share), questions that wait to travel together. Not for: caching (`cached-chunks.ts`), answering others (`chunk-service.ts`).
 */
import { abortErrorOf, throwIfAborted, untilAborted, withDeadline } from '../protocols/abort.ts'
import { AUDIT_IDS_MAX, auditChunks, getChunk, HAVE_IDS_MAX, haveChunks, putChunk, type ChunkCondition } from '../protocols/chunk-protocol.ts'
import { CHUNK_BYTES_DEFAULT, matches, type ChunkId } from '../protocols/cid.ts'
import { errorCodeOf, P2pvmError } from '../protocols/errors.ts'
import type { Clock, Counters, Log } from '../protocols/seams.ts'
import type { PeerId, Transport } from '../protocols/transport.ts'
import { Admission } from './admission.ts'
import { chunkConditionIn } from './chunk-service.ts'
import type { ChunkStore } from './chunk-store.ts'
import type { ChunkAudit, ChunkOptions, Chunks, Priority, PutOutcome } from './chunks.ts'
import type { Membership } from './membership.ts'
import { pack, unpack } from './packed-chunk.ts'
import { PeerBatcher } from './peer-batcher.ts'
import { PeerLatency } from './peer-latency.ts'
import { keyOfChunk } from './placement.ts'
import { describe, place, Replication, seek, verdict, type Candidates, type Failure, type ReplicationInit } from './replication.ts'
import { mapAtMost } from './semaphore.ts'
import { SingleFlight } from './single-flight.ts'

export interface ReplicatedChunksComponents {
  readonly transport: Transport
  readonly membership: Membership
  readonly clock: Clock
  readonly log: Log
  readonly counters: Counters
  /** This peer's own durable store, when it is a storage peer. */
  readonly store?: ChunkStore | undefined
}

export interface ReplicatedChunksInit extends ReplicationInit {
  /** Aborts when the process stops: also what goes on after a put was acknowledged. */
  readonly signal?: AbortSignal | undefined
}

/** For a whole get: a machine's read fails after it (EIO), and must not earlier. */
const GET_DEADLINE_MS = 30_000
/** For a whole put with all its candidates. */
const PUT_DEADLINE_MS = 60_000
/** An audit reads and hashes a batch of chunks at the peer. */
const AUDIT_DEADLINE_MS = 30_000
const AUDITS_AT_ONCE = 64

export class ReplicatedChunks implements Chunks {
  readonly #components: ReplicatedChunksComponents
  readonly #replication: Replication
  readonly #signal: AbortSignal | undefined
  readonly #admission = new Admission()
  readonly #latency = new PeerLatency()
  readonly #gets = new SingleFlight<Uint8Array>()
  readonly #puts = new Map<ChunkId, Promise<unknown>>()
  readonly #have: PeerBatcher<ChunkId, boolean>
  readonly #audit: PeerBatcher<ChunkId, ChunkCondition>
  /** What a get reserves before it knows: the largest chunk seen. */
  #bytesExpected = CHUNK_BYTES_DEFAULT

  constructor (components: ReplicatedChunksComponents, init: ReplicatedChunksInit) {
    const { transport } = components
    this.#components = components
    this.#signal = init.signal
    this.#replication = new Replication(components, init)
    this.#have = new PeerBatcher({
      itemsMax: HAVE_IDS_MAX,
      atOnce: 1,
      send: async (peer, ids) => await this.#replication.asking(peer, this.#signal, async (options) => await haveChunks(transport, peer, ids, options))
    })
    this.#audit = new PeerBatcher({
      itemsMax: AUDIT_IDS_MAX,
      atOnce: 1,
      send: async (peer, ids) => await this.#replication.asking(peer, this.#signal, async ({ signal }) =>
        await auditChunks(transport, peer, ids, { signal, deadlineMs: AUDIT_DEADLINE_MS }), AUDIT_DEADLINE_MS)
    })
  }

  /** As `Chunks.put`. The bytes must not change until the put has settled. */
  async put (id: ChunkId, bytes: Uint8Array, { signal, priority = 'commit' }: ChunkOptions = {}): Promise<PutOutcome> {
    if (!matches(id, bytes)) throw new P2pvmError('ERR_CORRUPT', `bytes do not match the chunk ${id}`, { cid: id })
    // The second of two puts of one chunk finds it there and sends nothing.
    for (let earlier; (earlier = this.#puts.get(id)) !== undefined;) await (signal === undefined ? earlier : untilAborted(earlier, signal))
    const put = this.#put(id, bytes, priority, signal)
    const over = put.catch(() => {}).then(() => { if (this.#puts.get(id) === over) this.#puts.delete(id) })
    this.#puts.set(id, over)
    return await put
  }

  async get (id: ChunkId, { signal, priority = 'demand' }: ChunkOptions = {}): Promise<Uint8Array> {
    const getWithin = async (own: AbortSignal): Promise<Uint8Array> => {
      const release = await this.#admission.acquire(this.#bytesExpected, priority, own)
      try {
        return await this.#get(id, priority, own)
      } finally {
        release()
      }
    }
    return await this.#gets.run(id, async (allGone) =>
      await withDeadline(this.#components.clock, GET_DEADLINE_MS, [allGone, this.#signal], getWithin), signal)
  }

  async audit (ids: readonly ChunkId[], { signal }: ChunkOptions = {}): Promise<ChunkAudit[]> {
    return await mapAtMost(AUDITS_AT_ONCE, ids, async (id) =>
      await withDeadline(this.#components.clock, 2 * AUDIT_DEADLINE_MS, [signal, this.#signal], async (own) => await this.#auditOne(id, own)))
  }

  async #put (id: ChunkId, bytes: Uint8Array, priority: Priority, signal: AbortSignal | undefined): Promise<PutOutcome> {
    // The caller may give up until W have it; from then on the put goes on to R without them.
    const caller = new AbortController()
    const giveUp = (): void => { caller.abort(signal?.reason) }
    signal?.addEventListener('abort', giveUp, { once: true })
    if (signal?.aborted === true) giveUp()
    const deadline = this.#components.clock.deadline(PUT_DEADLINE_MS, caller.signal, this.#signal)
    let release = (): void => {}
    let settled: PutOutcome['settled'] | undefined
    const end = (): void => {
      deadline[Symbol.dispose]()
      release()
    }
    try {
      release = await this.#admission.acquire(bytes.length, priority, deadline.signal)
      const candidates = await this.#replication.candidates(keyOfChunk(id), 'put', deadline.signal)
      throwIfAborted(deadline.signal)
      const progress = { isNew: true, stored: 0, sentBytes: 0 }
      let packed: Uint8Array | undefined
      const packOnce = (): Uint8Array => packed ??= pack(bytes) // not for a chunk that all have
      const placing = place(`chunk ${id}`, candidates, async (peer) => {
        await this.#storeAt(peer, id, packOnce, progress, deadline.signal)
        progress.stored += 1
      })
      deadline.signal.addEventListener('abort', () => { placing.giveUp(abortErrorOf(deadline.signal)) })
      settled = placing.settled.then(() => {
        end()
        return { replicas: progress.stored, wanted: candidates.wanted, sentBytes: progress.sentBytes }
      })
      await placing.acknowledged
      return { isNew: progress.isNew, storedBytes: progress.isNew ? packOnce().length : 0, replicas: progress.stored, settled }
    } finally {
      signal?.removeEventListener('abort', giveUp)
      if (settled === undefined) end()
    }
  }

  async #storeAt (peer: PeerId, id: ChunkId, packOnce: () => Uint8Array, progress: { isNew: boolean, sentBytes: number }, signal: AbortSignal): Promise<void> {
    const { transport, counters, store } = this.#components
    if (peer === this.#replication.self && store !== undefined) {
      if (!await store.put(id, packOnce())) progress.isNew = false
      return
    }
    if (await untilAborted(this.#have.ask(peer, id), signal)) {
      progress.isNew = false
      return
    }
    const packed = packOnce()
    let sent = true
    try {
      const stored = await this.#replication.asking(peer, signal, async (options) => await putChunk(transport, peer, id, packed, options))
      if (!stored) progress.isNew = false
    } catch (error) {
      sent = errorCodeOf(error) !== 'ERR_UNAVAILABLE'
      counters.add('chunk_put_failures_total', 1, { peer })
      throw error
    } finally {
      if (sent) {
        progress.sentBytes += packed.length
        counters.add('chunk_bytes_sent_total', packed.length)
      }
    }
  }

  async #get (id: ChunkId, priority: Priority, signal: AbortSignal): Promise<Uint8Array> {
    const { clock, counters } = this.#components
    const own = await this.#getOwn(id)
    if (own instanceof Uint8Array) return own
    const candidates = await this.#replication.candidates(keyOfChunk(id), 'get', signal)
    const { value, failures } = await seek(withoutPeer(candidates, this.#replication.self), {
      ask: async (peer, cancel) => await this.#getFrom(peer, id, priority, cancel),
      latency: this.#latency,
      clock,
      signal,
      onHedge: () => { counters.add('chunk_hedges_total') },
      onOvertaken: (peer) => { if (this.#latency.overdue(peer)) this.#replication.reportHung(peer) }
    })
    if (value !== undefined) return value
    throw notGot(id, own === undefined ? failures : [{ peer: this.#replication.self, error: own }, ...failures], candidates.complete)
  }

  /** An error when our own copy is bad: others may have a good one. */
  async #getOwn (id: ChunkId): Promise<Uint8Array | undefined | Error> {
    try {
      return await this.#components.store?.get(id)
    } catch (error) {
      return error as Error
    }
  }

  async #getFrom (peer: PeerId, id: ChunkId, priority: Priority, signal: AbortSignal): Promise<Uint8Array | undefined> {
    const { transport, clock, counters } = this.#components
    const startMs = clock.monotonic()
    const packed = await this.#replication.asking(peer, signal, async (options) => await getChunk(transport, peer, id, { ...options, priority }))
    this.#latency.answered(peer, clock.monotonic() - startMs)
    if (packed === undefined) return undefined
    counters.add('chunk_bytes_received_total', packed.length)
    const bytes = unpack(id, packed)
    if (bytes !== undefined) {
      this.#bytesExpected = Math.max(this.#bytesExpected, bytes.length)
      return bytes
    }
    counters.add('chunk_corrupt_total', 1, { peer })
    this.#replication.reportLiar(peer, id)
    throw new P2pvmError('ERR_CORRUPT', `${peer} sent bytes that do not match the chunk ${id}`, { cid: id, peer })
  }

  async #auditOne (id: ChunkId, signal: AbortSignal): Promise<ChunkAudit> {
    const { placement, wanted } = await this.#replication.candidates(keyOfChunk(id), 'get', signal)
    const found: PeerId[] = []
    const corrupt: PeerId[] = []
    const unreachable: PeerId[] = []
    const look = async (peer: PeerId): Promise<void> => {
      const condition = await this.#conditionAt(peer, id, signal)
      if (condition === 'good') found.push(peer)
      else if (condition === 'corrupt') corrupt.push(peer)
      else if (condition === 'unreachable') unreachable.push(peer)
    }
    await Promise.all(placement.slice(0, wanted).map(look))
    // What was meant for a peer that was down went to one further on.
    if (found.length < wanted) await Promise.all(placement.slice(wanted).map(look))
    return { found, corrupt, unreachable, wanted }
  }

  async #conditionAt (peer: PeerId, id: ChunkId, signal: AbortSignal): Promise<ChunkCondition | 'unreachable'> {
    const { store } = this.#components
    try {
      if (peer !== this.#replication.self || store === undefined) return await untilAborted(this.#audit.ask(peer, id), signal)
      return await chunkConditionIn(store, id)
    } catch (error) {
      if (errorCodeOf(error) === 'ERR_ABORTED') throw error
      return 'unreachable'
    }
  }
}

/** Our own store was asked already. */
function withoutPeer (candidates: Candidates, self: PeerId): Pick<Candidates, 'take' | 'left'> {
  const take = (): PeerId | undefined => {
    const peer = candidates.take()
    return peer === self ? candidates.take() : peer
  }
  return { take, left: () => candidates.left() }
}

function notGot (id: ChunkId, failures: readonly Failure[], complete: boolean): P2pvmError {
  const reasons = failures.length === 0 ? '' : ` (${describe(failures)})`
  switch (verdict(failures, complete)) {
    case 'missing': return new P2pvmError('ERR_MISSING', `no storage peer has the chunk ${id}`, { cid: id })
    case 'corrupt': return new P2pvmError('ERR_CORRUPT', `no good copy of the chunk ${id} was found${reasons}`, { cid: id })
    case 'unavailable': return new P2pvmError('ERR_UNAVAILABLE', `the chunk ${id} could not be got${reasons}`, { cid: id })
  }
}
