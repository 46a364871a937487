/**
 * The libp2p node of a peer, with every setting that a private fabric must change. State it owns: none; the caller starts
 * and stops the node. Our own protocols are put on it by `protocols/libp2p-transport.ts`.
 */
import { noise } from '@chainsafe/libp2p-noise'
import { identify } from '@libp2p/identify'
import type { Identify } from '@libp2p/identify'
import type { Libp2p, PrivateKey } from '@libp2p/interface'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import type { KadDHT } from '@libp2p/kad-dht'
import { ping } from '@libp2p/ping'
import type { Ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import type { PeerId } from '../protocols/transport.ts'
import { joinedWrites } from './joined-writes.ts'
import { sendFewerWindowUpdates } from './yamux-window-updates.ts'

// The index signature is what libp2p asks of a map of services.
export interface FabricServices extends Record<string, unknown> {
  readonly identify: Identify
  readonly ping: Ping
  readonly dht: KadDHT
}

export interface FabricNodeInit {
  readonly privateKey: PrivateKey
  readonly fabric: string
  /** Storage peers form the Kademlia network as servers; the others only look up. */
  readonly kadServer: boolean
  readonly listen: readonly string[]
}

/** Above the size of any fabric that holds a whole member list: pruning would close streams in use. */
const CONNECTIONS_MAX = 10_000
/** A whole testnet behind one address starts in the same second. */
const CONNECTIONS_PER_SECOND_AND_HOST_MAX = 100_000
const PENDING_CONNECTIONS_MAX = 1000
const PARALLEL_DIALS_MAX = 100
/** A request has other peers to turn to: one that does not take the connection in this time counts as gone. */
const DIAL_TIMEOUT_MS = 5000
const ADDRESS_DIAL_TIMEOUT_MS = 2000
const STREAMS_MAX = 1000
/** yamux would let a window grow to 16 MiB, and aborts a stream that has 4 MiB unread. */
const STREAM_WINDOW_BYTES_MAX = 1024 * 1024
/** Without the connection monitor this alone keeps idle sockets from being closed after two minutes. */
const KEEP_ALIVE_MS = 30_000
/** The peer store forgets addresses after an hour; the member list says for itself when they change. */
const ADDRESS_AGE_MS_MAX = 30 * 24 * 60 * 60 * 1000

sendFewerWindowUpdates()

const connectionSettings = {
  transports: [tcp()],
  connectionEncrypters: [joinedWrites(noise())],
  streamMuxers: [yamux({
    enableKeepAlive: true,
    keepAliveInterval: KEEP_ALIVE_MS,
    maxInboundStreams: STREAMS_MAX,
    maxOutboundStreams: STREAMS_MAX,
    streamOptions: { maxStreamWindowSize: STREAM_WINDOW_BYTES_MAX }
  })],
  connectionManager: {
    maxConnections: CONNECTIONS_MAX,
    inboundConnectionThreshold: CONNECTIONS_PER_SECOND_AND_HOST_MAX,
    maxIncomingPendingConnections: PENDING_CONNECTIONS_MAX,
    maxParallelDials: PARALLEL_DIALS_MAX,
    dialTimeout: DIAL_TIMEOUT_MS,
    addressDialTimeout: ADDRESS_DIAL_TIMEOUT_MS
  },
  // It pings each connection every ten seconds, at a tenth of an idle process's CPU, and aborts good ones under load.
  connectionMonitor: { enabled: false },
  peerStore: { maxAddressAge: ADDRESS_AGE_MS_MAX, maxPeerAge: ADDRESS_AGE_MS_MAX }
}

/** Not started: register protocols first, so that nobody who connects early misses one. */
export async function createFabricNode (init: FabricNodeInit): Promise<Libp2p<FabricServices>> {
  return await createLibp2p({
    ...connectionSettings,
    start: false,
    privateKey: init.privateKey,
    addresses: { listen: [...init.listen] },
    services: {
      identify: identify(),
      ping: ping(),
      dht: kadDHT({
        protocol: `/p2pvm/${init.fabric}/kad/1`,
        clientMode: !init.kadServer,
        // The default mapper drops private addresses: on a LAN the routing table would stay empty.
        peerInfoMapper: passthroughMapper,
        // A lookup with an empty table answers at once that it found nobody, instead of waiting up to three minutes.
        allowQueryWithZeroPeers: true,
        maxInboundStreams: STREAMS_MAX,
        maxOutboundStreams: STREAMS_MAX
      })
    }
  })
}

/** For one question to another peer: listens nowhere, belongs to no fabric, has an identity of its own. Started. */
export async function createProbeNode (): Promise<Libp2p> {
  return await createLibp2p({ ...connectionSettings, services: { identify: identify() } })
}

/** Where others find this node, without /p2p. */
export function addressesOf (node: Libp2p): string[] {
  return node.getMultiaddrs().map((address) => address.toString().replace(/\/p2p\/[^/]+$/, ''))
}

/** Connects to an address, with or without /p2p, and says who is there. Throws libp2p's own errors. */
export async function connectTo (node: Libp2p, address: string, signal: AbortSignal): Promise<PeerId> {
  const connection = await node.dial(multiaddr(address), { signal })
  return connection.remotePeer.toString()
}
