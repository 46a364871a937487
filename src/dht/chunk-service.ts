/**
 * The serving side of chunk/1. A storage peer answers from its durable store, a compute peer answers `get` from its cache;
 * `have`, `put` and `audit` are for storage peers. State it owns: how many requests work on the disk at a time.
 */
import { serveChunks, type ChunkCondition } from '../protocols/chunk-protocol.ts'
import type { ChunkId } from '../protocols/cid.ts'
import { errorCodeOf, P2pvmError } from '../protocols/errors.ts'
import type { Counters } from '../protocols/seams.ts'
import type { PeerId, Transport } from '../protocols/transport.ts'
import type { ChunkStore } from './chunk-store.ts'
import { mapAtMost, Semaphore } from './semaphore.ts'

export interface ChunkServiceComponents {
  readonly transport: Transport
  readonly counters: Counters
  /** Of a storage peer. */
  readonly store?: ChunkStore | undefined
  /** Of a compute peer. */
  readonly cache?: ChunkStore | undefined
}

/** Durable puts of 256 KiB reach the disk's throughput with eight at a time; reads need no more. */
const DISK_WORK_AT_ONCE = 8
/** Behind so many a request is answered after its deadline: better refused, so that the asker goes elsewhere. */
const DISK_QUEUE_MAX = 512
/** An audit may take a while; reads that machines wait for must not wait behind it. */
const AUDIT_READS_AT_ONCE = 2

export function serveChunkStore ({ transport, counters, store, cache }: ChunkServiceComponents): void {
  const reads = new Semaphore({ permits: DISK_WORK_AT_ONCE, queueMax: DISK_QUEUE_MAX })
  const writes = new Semaphore({ permits: DISK_WORK_AT_ONCE, queueMax: DISK_QUEUE_MAX })

  serveChunks(transport, {
    async have (ids, { signal }) {
      return await writes.run(async () => await storeOf(store, transport.self).have(ids), signal)
    },

    async put (id, chunk, { peer, signal }) {
      const durable = storeOf(store, transport.self)
      counters.add('chunk_bytes_received_total', chunk.length)
      return await counting(counters, peer, async () => await writes.run(async () => await durable.put(id, chunk), signal))
    },

    async get (id, _priority, { signal }) {
      const chunk = await reads.run(async () => await firstGood(id, [store, cache]), signal)
      if (chunk !== undefined) counters.add('chunk_bytes_sent_total', chunk.length)
      return chunk
    },

    async audit (ids, { signal }) {
      const durable = storeOf(store, transport.self)
      return await mapAtMost(AUDIT_READS_AT_ONCE, ids, async (id) => await reads.run(async () => await chunkConditionIn(durable, id), signal))
    }
  })
}

/** Reads the copy and checks its hash. */
export async function chunkConditionIn (store: ChunkStore, id: ChunkId): Promise<ChunkCondition> {
  try {
    return await store.get(id) === undefined ? 'missing' : 'good'
  } catch (error) {
    if (errorCodeOf(error) === 'ERR_CORRUPT') return 'corrupt'
    throw error
  }
}

function storeOf (store: ChunkStore | undefined, self: PeerId): ChunkStore {
  if (store === undefined) throw new P2pvmError('ERR_NOT_ALLOWED', `${self} is not a storage peer`, { peer: self })
  return store
}

/** A bad copy in one of them is told only when no other has a good one. */
async function firstGood (id: ChunkId, stores: ReadonlyArray<ChunkStore | undefined>): Promise<Uint8Array | undefined> {
  let failure: unknown
  for (const store of stores) {
    try {
      const chunk = await store?.getPacked(id)
      if (chunk !== undefined) return chunk
    } catch (error) {
      failure = error
    }
  }
  if (failure !== undefined) throw failure
  return undefined
}

async function counting<T> (counters: Counters, peer: PeerId, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    if (errorCodeOf(error) === 'ERR_CORRUPT') counters.add('chunk_corrupt_total', 1, { peer })
    throw error
  }
}
