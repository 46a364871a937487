/**
 * One peer of the fabric, composed: network, membership, stores, the services of its roles, and what the rest of the process
 * uses of them. Started in the order in which things need each other, stopped in the reverse.
 *
 * State it owns: what is open. Not for: the control socket and the process (`daemon.ts`).
 */
import { mkdir } from 'node:fs/promises'
import type { Libp2p, PrivateKey } from '@libp2p/interface'
import { peerIdFromPrivateKey } from '@libp2p/peer-id'
import { CachedChunks } from '../dht/cached-chunks.ts'
import { serveChunkStore } from '../dht/chunk-service.ts'
import type { ChunkCache, ChunkStore } from '../dht/chunk-store.ts'
import type { Chunks } from '../dht/chunks.ts'
import { DiskChunkStore } from '../dht/disk-chunk-store.ts'
import { EvictingCache } from '../dht/evicting-cache.ts'
import { encodeFabricRecord, type FabricRecord } from '../dht/fabric.ts'
import { KadMembership, kadLookup } from '../dht/kad-membership.ts'
import { openStore } from '../dht/open-store.ts'
import { MemberList } from '../dht/member-list.ts'
import type { Membership, Role } from '../dht/membership.ts'
import { nodeDisk } from '../dht/node-disk.ts'
import { PatientChunks } from '../dht/patient-chunks.ts'
import { serveRecordStore } from '../dht/record-service.ts'
import { RecordStore } from '../dht/record-store.ts'
import { ReplicatedChunks } from '../dht/replicated-chunks.ts'
import { ReplicatedRecords } from '../dht/replicated-records.ts'
import { SwitchingMembership } from '../dht/switching-membership.ts'
import { withDeadline } from '../protocols/abort.ts'
import { serveFabric } from '../protocols/fabric-protocol.ts'
import { Libp2pTransport } from '../protocols/libp2p-transport.ts'
import type { Clock, KeyValueStore, Random } from '../protocols/seams.ts'
import type { Signer } from '../protocols/signatures.ts'
import type { PeerId } from '../protocols/transport.ts'
import { serveVersions } from '../protocols/version-protocol.ts'
import { BlobClient } from '../versioning/blob-client.ts'
import type { Blobs } from '../versioning/blobs.ts'
import { createRecordAdmission } from '../versioning/record-admission.ts'
import { VersionClient } from '../versioning/version-client.ts'
import { VersionManager } from '../versioning/version-manager.ts'
import type { DaemonConfig } from './config.ts'
import type { DataDir } from './data-dir.ts'
import { signerOfIdentity } from './identity.ts'
import { joinFabric, loadFabricSigner } from './join-fabric.ts'
import { addressesOf, createFabricNode } from './libp2p-node.ts'
import { loadMembers, saveMembers } from './stored-members.ts'
import type { World } from './world.ts'

/** Seams for test peers that misbehave. */
export interface PeerOverrides {
  readonly wrapChunkStore?: (store: ChunkStore) => ChunkStore
}

export interface PeerInit extends Pick<DaemonConfig, 'roles' | 'listen' | 'bootstrap' | 'capacityBytes' | 'cacheBytesMax' | 'replicas' | 'writeQuorum' | 'memberList'> {
  readonly dataDir: DataDir
  readonly identity: PrivateKey
}

/** Always kept free by our own stores: a full file system stops more than us. */
const FREE_FLOOR_BYTES = 64 * 1024 * 1024
/** Before it says that it is ready, a peer waits so long to know the others: requests work without, by lookups. */
const MEMBERS_DEADLINE_MS = 5_000

export class Peer {
  readonly id: PeerId
  readonly roles: readonly Role[]
  readonly dataDir: DataDir
  readonly fabric: FabricRecord
  readonly clock: Clock
  readonly random: Random
  readonly membership: Membership
  readonly chunks: Chunks
  readonly cachedChunks: CachedChunks
  readonly cache: ChunkCache
  readonly blobs: Blobs
  readonly #memberList: boolean
  readonly #open: Open

  private constructor (init: PeerInit, world: World, open: Open, clients: Clients) {
    this.id = open.transport.self
    this.roles = init.roles
    this.dataDir = init.dataDir
    this.fabric = open.fabric
    this.clock = world.clock
    this.random = world.random
    this.membership = open.membership
    this.cache = open.stores.cache
    this.chunks = clients.chunks
    this.cachedChunks = clients.cachedChunks
    this.blobs = clients.blobs
    this.#memberList = init.memberList
    this.#open = open
  }

  /** ERR_UNAVAILABLE when a first start reaches no bootstrap peer, ERR_NOT_ALLOWED when that is of another fabric. */
  static async start (init: PeerInit, world: World, overrides: PeerOverrides = {}): Promise<Peer> {
    const open = await openPeer(init, world, overrides)
    const peer = new Peer(init, world, open, composeClients(init, world, open))
    await open.node.start()
    await open.openTransport.start()
    await open.transport.start()
    if (init.memberList) {
      open.list.start()
      await withDeadline(world.clock, MEMBERS_DEADLINE_MS, [], async (signal) => { await open.list.whenComplete(signal) }).catch(() => {
        world.log.warn('no other peer answers yet; going on and trying', { bootstrap: init.bootstrap.length })
      })
    }
    void open.versions?.recover() // never rejects, and must not keep the others waiting
    return peer
  }

  /** Multiaddrs that others can dial, with /p2p. */
  addresses (): string[] {
    return this.#open.node.getMultiaddrs().map((address) => address.toString())
  }

  /** False where members are found by lookups only. */
  memberListComplete (): boolean {
    return this.#memberList && this.#open.list.complete
  }

  /** What this storage peer keeps; null without the role. */
  stored (): { chunks: number, bytes: number, records: number } | null {
    const { store, records } = this.#open.stores
    return store === undefined || records === undefined ? null : { ...store.usage(), records: records.count() }
  }

  async stop (): Promise<void> {
    const { list, transport, openTransport, node, stores, stopping, versions, blobs } = this.#open
    stopping.abort()
    await versions?.stop()
    await blobs?.stop()
    await list.stop()
    await transport.stop()
    await openTransport.stop()
    await node.stop()
    await Promise.all(stores.keyValueStores.map(async (store) => { await store.close() }))
  }
}

interface Stores {
  readonly store: ChunkStore | undefined
  readonly records: RecordStore | undefined
  readonly versions: KeyValueStore | undefined
  readonly seen: KeyValueStore
  readonly cache: ChunkCache
  readonly keyValueStores: readonly KeyValueStore[]
}

interface Open {
  readonly fabric: FabricRecord
  readonly node: Libp2p
  readonly transport: Libp2pTransport
  /** For those who do not know the fabric yet. */
  readonly openTransport: Libp2pTransport
  readonly list: MemberList
  readonly membership: Membership
  readonly stores: Stores
  readonly stopping: AbortController
  /** On the peer of the version manager. */
  readonly fabricSigner: Signer | undefined
  versions?: VersionManager
  blobs?: BlobClient
}

interface Clients {
  readonly chunks: Chunks
  readonly cachedChunks: CachedChunks
  readonly blobs: Blobs
}

async function openPeer (init: PeerInit, world: World, overrides: PeerOverrides): Promise<Open> {
  const self = peerIdFromPrivateKey(init.identity).toString()
  const { fabric, bootstrap } = await joinFabric({ ...init, self }, world)
  const fabricSigner = init.roles.includes('versions') ? await loadFabricSigner(init.dataDir, fabric) : undefined
  const stores = await openStores(init, world, overrides)
  const stopping = new AbortController()
  const node = await createFabricNode({
    privateKey: init.identity, fabric: fabric.id, listen: init.listen, kadServer: init.roles.includes('storage')
  })
  const transport = new Libp2pTransport({ node, ...world }, { fabric: fabric.id })
  const openTransport = new Libp2pTransport({ node, ...world }, { fabric: null })
  for (const { peer, address } of bootstrap) await transport.learnAddresses(peer, [address])
  if (fabric.versionManager.peer !== self) await transport.learnAddresses(fabric.versionManager.peer, fabric.versionManager.addresses)

  const stored = await loadMembers(init.dataDir)
  const list = new MemberList({ transport, ...world, save: async (members) => { await saveMembers(init.dataDir, members) } }, {
    roles: init.roles,
    capacityBytes: init.capacityBytes,
    addresses: () => addressesOf(node),
    founder: fabric.versionManager.peer === self,
    stored,
    bootstrap: bootstrap.map(({ peer }) => peer)
  })
  list.serve()
  const kad = new KadMembership({
    transport,
    ...world,
    lookup: kadLookup(node.services.dht),
    describeSelf: () => list.describeSelf(),
    bootstrap: () => [...new Set([...bootstrap.map(({ peer }) => peer), fabric.versionManager.peer])].filter((peer) => peer !== self)
  })
  const membership = init.memberList ? new SwitchingMembership(list, kad) : kad
  serveFabric(openTransport, () => encodeFabricRecord(withAddresses(fabric, self, membership, node)))
  return { fabric, node, transport, list, membership, stores, stopping, openTransport, fabricSigner }
}

/** Where the version manager is now, for those who come. */
function withAddresses (fabric: FabricRecord, self: PeerId, membership: Membership, node: Libp2p): FabricRecord {
  const { peer, addresses } = fabric.versionManager
  const now = peer === self ? addressesOf(node) : membership.members().find(({ id }) => id === peer)?.addresses ?? addresses
  return { ...fabric, versionManager: { peer, addresses: now } }
}

async function openStores ({ dataDir, roles, cacheBytesMax }: PeerInit, world: World, { wrapChunkStore = (store) => store }: PeerOverrides): Promise<Stores> {
  for (const folder of [dataDir.cache, dataDir.working, dataDir.mounts]) await mkdir(folder, { recursive: true, mode: 0o750 })
  const components = { disk: nodeDisk, ...world }
  const recordStore = roles.includes('storage') ? await openStore(dataDir.records) : undefined
  const versionStore = roles.includes('versions') ? await openStore(dataDir.versions) : undefined
  const seen = await openStore(dataDir.seen)
  return {
    store: roles.includes('storage')
      ? wrapChunkStore(await DiskChunkStore.open(components, { root: dataDir.chunks, durable: true, freeFloorBytes: FREE_FLOOR_BYTES }))
      : undefined,
    records: recordStore === undefined ? undefined : new RecordStore({ store: recordStore, clock: world.clock }),
    versions: versionStore,
    seen,
    cache: await EvictingCache.open(components, { root: dataDir.cache, bytesMax: cacheBytesMax, freeFloorBytes: FREE_FLOOR_BYTES }),
    keyValueStores: [recordStore, versionStore, seen].filter((store) => store !== undefined)
  }
}

/** The services of the peer's roles, and the clients that use the fabric. */
function composeClients (init: PeerInit, world: World, open: Open): Clients {
  const { transport, membership, stores, fabric, stopping, fabricSigner } = open
  serveChunkStore({ transport, ...world, store: stores.store, cache: stores.cache })
  const admits = createRecordAdmission({ fabricKey: fabric.publicKey, versionManager: fabric.versionManager.peer })
  serveRecordStore({ transport, ...world, store: stores.records, admits })

  const replication = { replicas: init.replicas, acknowledgements: init.writeQuorum, signal: stopping.signal }
  const components = { transport, membership, ...world }
  const records = new ReplicatedRecords({ ...components, store: stores.records }, replication)
  const chunks = new PatientChunks({ chunks: new ReplicatedChunks({ ...components, store: stores.store }, replication), ...world })
  const cachedChunks = new CachedChunks({ chunks, cache: stores.cache, ...world })

  if (stores.versions !== undefined && fabricSigner !== undefined) {
    open.versions = new VersionManager({ store: stores.versions, records, signer: fabricSigner, ...world })
    serveVersions(transport, open.versions)
  }
  const versions = new VersionClient({ transport, ...world, local: open.versions, locate: async () => fabric.versionManager.peer })
  const signer = signerOfIdentity(init.identity)
  open.blobs = new BlobClient({ chunks: cachedChunks, records, versions, signer, fabricKey: fabric.publicKey, seen: stores.seen, ...world })
  return { chunks, cachedChunks, blobs: open.blobs }
}
