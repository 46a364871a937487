/**
 * A peer of the simulated fabric: what a daemon composes (`src/node/peer.ts`), over a simulated network and disks.
 * It dies and starts again; between two lives there is what its disk kept. State it owns: its process, its disk and stores.
 */
import { serveChunkStore } from '../../src/dht/chunk-service.ts'
import { DiskChunkStore } from '../../src/dht/disk-chunk-store.ts'
import type { Member, Membership } from '../../src/dht/membership.ts'
import { PatientChunks } from '../../src/dht/patient-chunks.ts'
import { PeerHealth } from '../../src/dht/peer-health.ts'
import { serveRecordStore } from '../../src/dht/record-service.ts'
import { RecordStore } from '../../src/dht/record-store.ts'
import { ReplicatedChunks } from '../../src/dht/replicated-chunks.ts'
import { ReplicatedRecords } from '../../src/dht/replicated-records.ts'
import type { ReplicationInit } from '../../src/dht/replication.ts'
import type { Chunks } from '../../src/dht/chunks.ts'
import { serveVersions } from '../../src/protocols/version-protocol.ts'
import type { KeyValueStore } from '../../src/protocols/seams.ts'
import type { PeerId } from '../../src/protocols/transport.ts'
import { BlobClient } from '../../src/versioning/blob-client.ts'
import { createRecordAdmission } from '../../src/versioning/record-admission.ts'
import { VersionClient } from '../../src/versioning/version-client.ts'
import { VersionManager } from '../../src/versioning/version-manager.ts'
import { VersionStore } from '../../src/versioning/version-store.ts'
import { MemoryKeyValueStore } from '../harness/memory-stores.ts'
import { fabricSigner, namedSigner } from '../harness/signers.ts'
import { LyingRecords } from './lying-records.ts'
import type { SeededRandom } from './seeded-random.ts'
import { SimulatedDisk } from './simulated-disk.ts'
import type { SimulatedNetwork } from './simulated-network.ts'
import { SimulatedProcess, type Surroundings } from './simulated-process.ts'
import { SimulatedStore } from './simulated-store.ts'

export interface FabricPlan {
  /** R and W. */
  readonly replication: ReplicationInit
  /** The first one is the version manager. */
  readonly storagePeers: readonly PeerId[]
  /** One of them that hands out records that are not what they are called. */
  readonly liar?: PeerId | undefined
}

/** A peer that is up, as those on its machine use it. */
export interface Running {
  readonly process: SimulatedProcess
  readonly blobs: BlobClient
  readonly chunks: Chunks
}

interface Media {
  readonly disk: SimulatedDisk
  readonly records: SimulatedStore
  readonly versions: SimulatedStore
}

/** What a record store puts before a value: the end of its lease. */
const LEASE_BYTES = 8
const RECORD_PREFIX = 'record/'
const CAPACITY_BYTES = 1_000_000

export class SimulatedPeer {
  readonly id: PeerId
  readonly #plan: FabricPlan
  readonly #random: SeededRandom
  readonly #surroundings: Surroundings
  readonly #network: SimulatedNetwork
  #media: Media | undefined
  /** Every peer has a disk for what it has seen. */
  #seen: SimulatedStore | undefined
  #process: SimulatedProcess | undefined
  /** Of the life that is, or the next one that gets so far. */
  #up = Promise.withResolvers<Running>()
  #isUp = false
  lives = 0
  lies = 0
  hasRotted = false

  constructor (id: PeerId, plan: FabricPlan, random: SeededRandom, surroundings: Surroundings, network: SimulatedNetwork) {
    this.id = id
    this.#plan = plan
    this.#random = random
    this.#surroundings = surroundings
    this.#network = network
  }

  get isStorage (): boolean {
    return this.#plan.storagePeers.includes(this.id)
  }

  get process (): SimulatedProcess | undefined {
    return this.#process
  }

  async whenUp (): Promise<Running> {
    return await this.#up.promise
  }

  /** Begins a life, with what the last one left on disk. No effect on a peer that lives. `onDeath` is told of its end. */
  start (onDeath: () => void): void {
    if (this.#process?.isAlive === true) return
    const { trace } = this.#surroundings
    trace.add(this.id, 'starts')
    this.lives += 1
    const process = new SimulatedProcess(this.id, this.#random.fork(this.lives), this.#surroundings)
    this.#process = process
    process.death.addEventListener('abort', () => {
      trace.add(this.id, 'died')
      // Who waits for one that dies on its way waits for the next.
      if (this.#isUp) this.#up = Promise.withResolvers()
      this.#isUp = false
      onDeath()
    })
    // One that dies on its way never comes to the end of this.
    void this.#compose(process).then((running) => {
      trace.add(this.id, 'is up')
      this.#isUp = true
      this.#up.resolve(running)
    }, (error: unknown) => { this.#up.reject(error) })
  }

  die (): void {
    this.#process?.die()
  }

  /** A byte of one of its chunk files turns over. */
  rotOne (random: SeededRandom): void {
    const paths = this.#chunkPaths()
    if (this.#media === undefined || paths.length === 0) return
    const path = random.pick(paths)
    this.#media.disk.corrupt(path)
    this.hasRotted = true
    this.#surroundings.trace.add(this.id, 'rots:', path)
  }

  /** Values by name, as a power cut at this moment would leave them at the least. */
  recordsOnDisk (): Map<string, Uint8Array> {
    const entries = [...this.#media?.records.durable ?? []].filter(([key]) => key.startsWith(RECORD_PREFIX))
    return new Map(entries.map(([key, entry]) => [key.slice(RECORD_PREFIX.length), entry.subarray(LEASE_BYTES)]))
  }

  recordOnDisk (name: string): Uint8Array | undefined {
    return this.#media?.records.durable.get(RECORD_PREFIX + name)?.subarray(LEASE_BYTES)
  }

  /** The version manager's, as a power cut at this moment would leave them at the least. */
  versionsOnDisk (): VersionStore {
    return new VersionStore(new MemoryKeyValueStore(this.#media?.versions.durable))
  }

  /** Chunk files as they are now, by path. */
  async chunkFiles (): Promise<Map<string, Uint8Array>> {
    return new Map(await Promise.all(this.#chunkPaths().map(async (path) => [path, await this.#media!.disk.read(path)] as const)))
  }

  #chunkPaths (): string[] {
    return this.#media?.disk.paths().filter((path) => path.startsWith('/store/chunks/')) ?? []
  }

  async #compose (process: SimulatedProcess): Promise<Running> {
    const { clock, random, counters, log } = process
    const world = { clock, random, counters, log }
    const transport = this.#network.join(process)
    const membership = new FixedMembership(this.id, this.#plan.storagePeers, new PeerHealth(clock))
    const media = this.isStorage ? this.#insert(process) : undefined
    const chunkStore = media && await DiskChunkStore.open({ disk: media.disk, ...world }, { root: '/store', durable: true, freeFloorBytes: 0 })
    const recordEntries = media && await media.records.open(process)
    const recordStore = recordEntries && new RecordStore({ store: recordEntries, clock })
    serveChunkStore({ transport, counters, store: chunkStore })
    const versionManager = this.#plan.storagePeers[0]!
    const served = recordStore !== undefined && this.id === this.#plan.liar ? this.#lying(recordStore, recordEntries!, process) : recordStore
    serveRecordStore({ transport, counters, store: served, admits: createRecordAdmission({ fabricKey: fabricSigner.publicKey, versionManager }) })

    const components = { transport, membership, ...world }
    const records = new ReplicatedRecords({ ...components, store: recordStore }, this.#plan.replication)
    const chunks = new PatientChunks({ chunks: new ReplicatedChunks({ ...components, store: chunkStore }, this.#plan.replication), ...world })
    const local = media && this.id === versionManager ? new VersionManager({ store: await media.versions.open(process), records, signer: fabricSigner, ...world }) : undefined
    if (local !== undefined) serveVersions(transport, local)
    const versions = new VersionClient({ transport, ...world, local, locate: async () => versionManager })
    this.#seen = SimulatedStore.insert('seen', this.#seen, process)
    const seen = await this.#seen.open(process)
    this.#network.listen(process, transport)
    void local?.recover()
    return { process, blobs: new BlobClient({ chunks, records, versions, signer: namedSigner(this.id), fabricKey: fabricSigner.publicKey, seen, ...world }), chunks }
  }

  #lying (store: RecordStore, entries: KeyValueStore, { random }: SimulatedProcess): LyingRecords {
    return new LyingRecords(store, {
      random: random.fork('lies'),
      entries,
      prefix: RECORD_PREFIX,
      onLie: (name) => {
        this.lies += 1
        this.#surroundings.trace.add(this.id, 'lies about', name)
      }
    })
  }

  /** Disk and stores, empty at first, later as the last power cut left them. */
  #insert (process: SimulatedProcess): Media {
    const { power, clock } = process
    const before = this.#media
    this.#media = {
      disk: before?.disk.recover({ power, clock }) ?? new SimulatedDisk({ power, clock }),
      records: SimulatedStore.insert('records', before?.records, process),
      versions: SimulatedStore.insert('versions', before?.versions, process)
    }
    return this.#media
  }
}

/** Everybody knows from the beginning who keeps things. Who fails is left alone for a while, as by the member list. */
class FixedMembership implements Membership {
  readonly self: PeerId
  readonly #members: readonly Member[]
  readonly #health: PeerHealth

  constructor (self: PeerId, storagePeers: readonly PeerId[], health: PeerHealth) {
    this.self = self
    this.#members = storagePeers.map((id) => ({ id, addresses: [], roles: ['storage'], capacityBytes: CAPACITY_BYTES, state: 'up' }))
    this.#health = health
  }

  members (): readonly Member[] {
    return this.#members
  }

  storageCount (): number {
    return this.#members.length
  }

  async closest (): Promise<readonly Member[]> {
    return this.#members
  }

  usable (peer: PeerId): boolean {
    return !this.#health.isFailing(peer)
  }

  report (peer: PeerId, outcome: 'answered' | 'failed'): void {
    this.#health.report(peer, outcome)
  }
}
