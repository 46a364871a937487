/** A client of a fabric inside the benchmark's own process: over real libp2p, without a daemon and its control socket in between. */
import { generateKeyPair } from '@libp2p/crypto/keys'
import { dataDirAt } from '../../src/node/data-dir.ts'
import { createFabricNode } from '../../src/node/libp2p-node.ts'
import { Peer } from '../../src/node/peer.ts'
import { probeFabric } from '../../src/node/probe-fabric.ts'
import { createCounters, createLog, nodeClock, nodeRandom, type World } from '../../src/node/world.ts'
import { Libp2pTransport } from '../../src/protocols/libp2p-transport.ts'
import { VersionClient } from '../../src/versioning/version-client.ts'
import type { Fabric } from '../../testnet/fabric.ts'

export function createWorld (): World {
  return { clock: nodeClock, random: nodeRandom, counters: createCounters(), log: createLog({ level: 'error', stream: process.stderr }) }
}

/** A compute peer with nothing cached. */
export async function startClient (fabric: Fabric, folder: string): Promise<{ peer: Peer, world: World }> {
  const world = createWorld()
  const peer = await Peer.start({
    roles: ['compute'], listen: [], bootstrap: fabric.storage[0]!.addresses.slice(0, 1), capacityBytes: 0, cacheBytesMax: 2 ** 30, replicas: 3, writeQuorum: 2, memberList: true,
    dataDir: dataDirAt(folder), identity: await generateKeyPair('Ed25519')
  }, world)
  return { peer, world }
}

/** Asks the version manager, and nobody else. */
export async function startVersionClient (fabric: Fabric): Promise<{ versions: VersionClient, stop: () => Promise<void> }> {
  const world = createWorld()
  const { fabric: { id, versionManager } } = await probeFabric(fabric.storage[0]!.addresses.slice(0, 1), world)
  const node = await createFabricNode({ privateKey: await generateKeyPair('Ed25519'), fabric: id, listen: [], kadServer: false })
  const transport = new Libp2pTransport({ node, ...world }, { fabric: id })
  await transport.learnAddresses(versionManager.peer, versionManager.addresses)
  await node.start()
  await transport.start()
  return {
    versions: new VersionClient({ transport, ...world, locate: async () => versionManager.peer }),
    async stop () {
      await transport.stop()
      await node.stop()
    }
  }
}
