/**
 * Storage peers in one process: real stores over simulated disks, real services and protocols over the memory network.
 * Who is a member, and up, is what the test says.
 */
import type { ChunkStore } from '../../src/dht/chunk-store.ts'
import { serveChunkStore } from '../../src/dht/chunk-service.ts'
import { DiskChunkStore } from '../../src/dht/disk-chunk-store.ts'
import { CLOSEST_COUNT, type Member, type Membership } from '../../src/dht/membership.ts'
import { keyOfChunk, keyOfRecord, placementOrder } from '../../src/dht/placement.ts'
import { type RecordServiceComponents, serveRecordStore } from '../../src/dht/record-service.ts'
import { RecordStore } from '../../src/dht/record-store.ts'
import { ReplicatedChunks } from '../../src/dht/replicated-chunks.ts'
import { ReplicatedRecords } from '../../src/dht/replicated-records.ts'
import type { ReplicationInit } from '../../src/dht/replication.ts'
import { createCounters, type CounterRegistry } from '../../src/node/world.ts'
import type { ChunkId } from '../../src/protocols/cid.ts'
import type { Log } from '../../src/protocols/seams.ts'
import type { PeerId } from '../../src/protocols/transport.ts'
import { Power, SimulatedDisk } from '../simulation/simulated-disk.ts'
import { FakeClock } from './fake-clock.ts'
import { MemoryKeyValueStore } from './memory-stores.ts'
import { MemoryNetwork, type MemoryTransport } from './memory-transport.ts'

const UNUSABLE_MS = 5_000

export class StaticMembership implements Membership {
  readonly self: PeerId
  readonly reports: Array<[PeerId, 'answered' | 'failed']> = []
  readonly #clock: FakeClock
  readonly #peers: () => readonly PeerId[]
  readonly #unusableUntil = new Map<PeerId, number>()
  /** What `closest` leaves out, as kad-dht does with peers that did not answer. */
  readonly hidden = new Set<PeerId>()

  constructor (self: PeerId, clock: FakeClock, peers: () => readonly PeerId[]) {
    this.self = self
    this.#clock = clock
    this.#peers = peers
  }

  members (): readonly Member[] {
    return this.#peers().map((id) => ({ id, addresses: [], roles: ['storage'], capacityBytes: 1000, state: 'up' }))
  }

  storageCount (): number {
    return Math.max(1, this.#peers().length)
  }

  async closest (): Promise<readonly Member[]> {
    return this.members().filter(({ id }) => !this.hidden.has(id)).slice(0, CLOSEST_COUNT)
  }

  usable (peer: PeerId): boolean {
    return (this.#unusableUntil.get(peer) ?? -Infinity) <= this.#clock.monotonic()
  }

  report (peer: PeerId, outcome: 'answered' | 'failed'): void {
    this.reports.push([peer, outcome])
    this.#unusableUntil.set(peer, outcome === 'failed' ? this.#clock.monotonic() + UNUSABLE_MS : -Infinity)
  }
}

export interface StoragePeer {
  readonly id: PeerId
  readonly transport: MemoryTransport
  readonly disk: SimulatedDisk
  readonly store: DiskChunkStore
  readonly records: RecordStore
  readonly recordDisk: MemoryKeyValueStore
  readonly counters: CounterRegistry
}

export interface Client {
  readonly chunks: ReplicatedChunks
  readonly records: ReplicatedRecords
  readonly membership: StaticMembership
  readonly counters: CounterRegistry
  readonly warnings: string[]
  readonly transport: MemoryTransport
}

export class StorageFabric {
  readonly clock = new FakeClock()
  readonly network = new MemoryNetwork(this.clock)
  readonly peers = new Map<PeerId, StoragePeer>()
  /** What storage peers take; everything, unless the test says otherwise. */
  admits: RecordServiceComponents['admits'] = () => true

  static async of (count: number, capacityBytes?: number): Promise<StorageFabric> {
    const fabric = new StorageFabric()
    for (let index = 0; index < count; index++) await fabric.add(`storage-${index}`, capacityBytes)
    return fabric
  }

  async add (id: PeerId, capacityBytes = Infinity): Promise<StoragePeer> {
    const disk = new SimulatedDisk({ power: new Power(id), clock: this.clock, capacityBytes })
    const counters = createCounters()
    const store = await DiskChunkStore.open({ disk, clock: this.clock, log: quiet([]), counters }, { root: '/store', durable: true, freeFloorBytes: 0 })
    const recordDisk = new MemoryKeyValueStore()
    const records = new RecordStore({ store: recordDisk, clock: this.clock })
    const transport = this.network.join(id)
    serveChunkStore({ transport, counters, store })
    serveRecordStore({ transport, counters, store: records, admits: (record, from) => this.admits(record, from) })
    const peer = { id, transport, disk, store, records, recordDisk, counters }
    this.peers.set(id, peer)
    return peer
  }

  peer (id: PeerId | undefined): StoragePeer {
    const peer = this.peers.get(id ?? '')
    if (peer === undefined) throw new Error(`no peer ${id}`)
    return peer
  }

  /** A compute peer's view, or, with the id of a storage peer, that peer's own. */
  client (self = 'client', init: ReplicationInit & { signal?: AbortSignal } = { replicas: 3, acknowledgements: 2 }): Client {
    const own = this.peers.get(self)
    const transport = own?.transport ?? this.network.join(self)
    const membership = new StaticMembership(self, this.clock, () => [...this.peers.keys()])
    const counters = createCounters()
    const warnings: string[] = []
    const components = { transport, membership, clock: this.clock, log: quiet(warnings), counters }
    return {
      chunks: new ReplicatedChunks({ ...components, store: own?.store }, init),
      records: new ReplicatedRecords({ ...components, store: own?.records }, init),
      membership,
      counters,
      warnings,
      transport
    }
  }

  placementOfChunk (id: ChunkId): PeerId[] {
    return this.#placement(keyOfChunk(id))
  }

  placementOfRecord (name: string): PeerId[] {
    return this.#placement(keyOfRecord(name))
  }

  /** Who has the chunk on disk, sorted. */
  async holders (id: ChunkId): Promise<PeerId[]> {
    const found = await Promise.all([...this.peers.values()].map(async ({ id: peer, disk, store }) => disk.paths().includes(store.pathOf(id)) ? [peer] : []))
    return found.flat().sort()
  }

  holdersOfRecord (name: string): PeerId[] {
    return [...this.peers.values()].filter(({ records }) => records.get(name) !== undefined).map(({ id }) => id).sort()
  }

  #placement (key: Uint8Array): PeerId[] {
    return placementOrder(key, [...this.peers.keys()].map((id) => ({ id, capacityBytes: 1000 })))
  }
}

function quiet (warnings: string[]): Log {
  return { debug () {}, info () {}, warn (message) { warnings.push(message) }, error () {} }
}

/** A store that gives out, for every chunk that it has, bytes that do not match. */
export function lying (store: ChunkStore): ChunkStore {
  return {
    put: async (id, bytes) => await store.put(id, bytes),
    have: async (ids) => await store.have(ids),
    delete: async (id) => { await store.delete(id) },
    pathOf: (id) => store.pathOf(id),
    usage: () => store.usage(),
    get: async (id) => await store.get(id) === undefined ? undefined : Buffer.from('not these'),
    getPacked: async (id) => await store.getPacked(id) === undefined ? undefined : Buffer.from('not these')
  }
}
