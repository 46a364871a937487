/**
 * Which fabric a peer belongs to: made by the first version manager, learned from a bootstrap peer on a first start, and
 * remembered in `fabric.cbor` from then on. A peer never changes its fabric.
 */
import { mkdir, readFile } from 'node:fs/promises'
import type { PrivateKey } from '@libp2p/interface'
import { multiaddr } from '@multiformats/multiaddr'
import { checkSameFabric, decodeFabricRecord, encodeFabricRecord, fabricIdOf, type FabricRecord } from '../dht/fabric.ts'
import type { Role } from '../dht/membership.ts'
import { replaceFile } from '../mirror/files.ts'
import { errorCodeOf, P2pvmError } from '../protocols/errors.ts'
import type { Signer } from '../protocols/signatures.ts'
import type { PeerId } from '../protocols/transport.ts'
import type { DataDir } from './data-dir.ts'
import { loadIdentity, loadOrCreateIdentity, signerOfIdentity } from './identity.ts'
import { type FabricFound, probeFabric } from './probe-fabric.ts'
import type { World } from './world.ts'

export interface JoinInit {
  readonly dataDir: DataDir
  readonly self: PeerId
  readonly roles: readonly Role[]
  readonly bootstrap: readonly string[]
}

export interface Joined {
  readonly fabric: FabricRecord
  /** Bootstrap peers, with the addresses to reach them by. */
  readonly bootstrap: ReadonlyArray<{ readonly peer: PeerId, readonly address: string }>
}

/** A peer that knows its fabric asks only to find a mistake early: it starts without an answer, and goes on trying. */
const LATER_PROBE_DEADLINE_MS = 2_000

/**
 * ERR_UNAVAILABLE when a first start reaches no bootstrap address, ERR_NOT_ALLOWED when that leads to another fabric or the
 * fabric has a version manager already, ERR_USAGE when there is nothing to go by.
 */
export async function joinFabric (init: JoinInit, world: World): Promise<Joined> {
  const { dataDir, roles, bootstrap } = init
  await mkdir(dataDir.root, { recursive: true, mode: 0o750 })
  const stored = await readFabric(dataDir)
  if (stored !== undefined) return await rejoin(stored, init, world)
  if (bootstrap.length === 0) {
    if (!roles.includes('versions')) {
      throw new P2pvmError('ERR_USAGE', 'a first start needs --bootstrap ADDRESS to join a fabric, or --role versions to make one')
    }
    return { fabric: await makeFabric(init, world), bootstrap: [] }
  }
  const { fabric, peers } = await probeFabric(bootstrap, world)
  checkOnlyVersionManager(fabric, init)
  await writeFabric(dataDir, fabric)
  return { fabric, bootstrap: peers }
}

/** A second version manager would hand out the same numbers again; there is no way to hand over yet. */
function checkOnlyVersionManager (fabric: FabricRecord, { self, roles }: JoinInit): void {
  if (!roles.includes('versions') || fabric.versionManager.peer === self) return
  throw new P2pvmError('ERR_NOT_ALLOWED', `the fabric ${fabric.id} has a version manager already: peer ${fabric.versionManager.peer}`,
    { fabric: fabric.id, peer: fabric.versionManager.peer })
}

async function rejoin (fabric: FabricRecord, init: JoinInit, world: World): Promise<Joined> {
  checkOnlyVersionManager(fabric, init)
  if (init.bootstrap.length === 0) return { fabric, bootstrap: [] }
  let found: FabricFound
  try {
    found = await probeFabric(init.bootstrap, world, { deadlineMs: LATER_PROBE_DEADLINE_MS })
  } catch (error) {
    if (errorCodeOf(error) !== 'ERR_UNAVAILABLE') throw error
    world.log.warn('no bootstrap address answers; starting with the peers that are known', { bootstrap: init.bootstrap.join(' ') })
    return { fabric, bootstrap: init.bootstrap.flatMap(peerIn) }
  }
  checkSameFabric(fabric, found.fabric)
  return { fabric: found.fabric, bootstrap: found.peers }
}

/** From the address alone, when it says who is there. */
function peerIn (address: string): Array<{ peer: PeerId, address: string }> {
  const peer = multiaddr(address).getComponents().findLast(({ name }) => name === 'p2p')?.value
  return peer === undefined ? [] : [{ peer, address }]
}

async function makeFabric ({ dataDir, self }: JoinInit, world: World): Promise<FabricRecord> {
  const key: PrivateKey = await loadOrCreateIdentity(dataDir.fabricKey)
  const publicKey = key.publicKey.raw
  const fabric = { id: fabricIdOf(publicKey), publicKey, versionManager: { peer: self, addresses: [] }, createdMs: world.clock.now() }
  await writeFabric(dataDir, fabric)
  world.log.info('made a fabric', { fabric: fabric.id })
  return fabric
}

/** What the version manager signs with. ERR_CORRUPT when the key is not there, or another fabric's: without it nothing can be published. */
export async function loadFabricSigner ({ fabricKey: path }: DataDir, { id, publicKey }: FabricRecord): Promise<Signer> {
  const key = await loadIdentity(path).catch((error: unknown) => {
    throw new P2pvmError('ERR_CORRUPT', `${path} does not hold the key of the fabric ${id}`, { path, fabric: id }, error)
  })
  const signer = signerOfIdentity(key)
  if (Buffer.compare(signer.publicKey, publicKey) !== 0) throw new P2pvmError('ERR_CORRUPT', `${path} holds a key, but not that of the fabric ${id}`, { path, fabric: id })
  return signer
}

async function readFabric ({ fabric }: DataDir): Promise<FabricRecord | undefined> {
  try {
    return decodeFabricRecord(await readFile(fabric))
  } catch (error) {
    if (errorCodeOf(error) === 'ERR_NOT_FOUND') return undefined
    throw new P2pvmError('ERR_CORRUPT', `${fabric} does not say which fabric this peer belongs to`, { path: fabric }, error)
  }
}

async function writeFabric ({ fabric: path }: DataDir, fabric: FabricRecord): Promise<void> {
  await replaceFile(path, encodeFabricRecord(fabric))
}
