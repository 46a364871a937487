/** Real libp2p nodes on loopback, in this process, each with a transport. */
import { generateKeyPair } from '@libp2p/crypto/keys'
import type { Libp2p } from '@libp2p/interface'
import { addressesOf, createFabricNode } from '../../src/node/libp2p-node.ts'
import type { FabricServices } from '../../src/node/libp2p-node.ts'
import { nodeClock } from '../../src/node/world.ts'
import { Libp2pTransport } from '../../src/protocols/libp2p-transport.ts'
import { KeptLog, PlainCounters } from './quiet.ts'

export interface LivePeer {
  readonly id: string
  readonly node: Libp2p<FabricServices>
  readonly transport: Libp2pTransport
  readonly counters: PlainCounters
  readonly log: KeptLog
  readonly addresses: string[]
  stop (): Promise<void>
}

export async function startLivePeer ({ fabric = 'testtesttesttest', kadServer = true, prepare }: { fabric?: string, kadServer?: boolean, prepare?: (transport: Libp2pTransport) => void } = {}): Promise<LivePeer> {
  const node = await createFabricNode({ privateKey: await generateKeyPair('Ed25519'), fabric, kadServer, listen: ['/ip4/127.0.0.1/tcp/0'] })
  const counters = new PlainCounters()
  const log = new KeptLog()
  const transport = new Libp2pTransport({ node, clock: nodeClock, counters, log }, { fabric })
  prepare?.(transport)
  await transport.start()
  await node.start()
  return {
    id: transport.self,
    node,
    transport,
    counters,
    log,
    addresses: addressesOf(node),
    stop: async () => {
      await transport.stop()
      await node.stop()
    }
  }
}
