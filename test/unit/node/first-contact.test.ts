import { mkdtemp, readFile, readdir, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, describe, expect, it } from 'vitest'
import { encodeFabricRecord, fabricIdOf } from '../../../src/dht/fabric.ts'
import type { FabricRecord } from '../../../src/dht/fabric.ts'
import { loadOrCreateIdentity } from '../../../src/node/identity.ts'
import { probeFabric } from '../../../src/node/probe-fabric.ts'
import { nodeClock } from '../../../src/node/world.ts'
import { errorCodeOf } from '../../../src/protocols/errors.ts'
import { serveFabric } from '../../../src/protocols/fabric-protocol.ts'
import { Libp2pTransport } from '../../../src/protocols/libp2p-transport.ts'
import { startLivePeer } from '../../harness/live-nodes.ts'
import { KeptLog, PlainCounters } from '../../harness/quiet.ts'

const cleanups: Array<() => Promise<void>> = []

afterEach(async () => {
  await Promise.all(cleanups.splice(0).map(async (cleanup) => { await cleanup() }))
})

function fabricOf (seed: number): FabricRecord {
  const publicKey = new Uint8Array(32).fill(seed)
  return { id: fabricIdOf(publicKey), publicKey, versionManager: { peer: '12D3KooW', addresses: [] }, createdMs: 0 }
}

/** A peer of that fabric that answers first contacts; its address with /p2p. */
async function startMember (fabric: FabricRecord): Promise<string> {
  const peer = await startLivePeer({ fabric: fabric.id })
  const open = new Libp2pTransport({ node: peer.node, clock: nodeClock, counters: peer.counters, log: peer.log }, { fabric: null })
  serveFabric(open, () => encodeFabricRecord(fabric))
  await open.start()
  cleanups.push(async () => {
    await open.stop()
    await peer.stop()
  })
  return `${peer.addresses[0]!}/p2p/${peer.id}`
}

const world = { clock: nodeClock, counters: new PlainCounters(), log: new KeptLog() }

describe('first contact', () => {
  it('learns the fabric and who answered, though another address is dead', async () => {
    const fabric = fabricOf(1)
    const address = await startMember(fabric)
    const dead = '/ip4/127.0.0.1/tcp/9/p2p/12D3KooWGRUfQUpnQ7AN9xMrGKKEcCRSBKBNLXWoR5LQCUyfLJQf'
    const found = await probeFabric([dead, address], world)
    expect(found.fabric).toEqual(fabric)
    expect(found.peers).toEqual([{ peer: address.split('/').at(-1), address }])
  })

  it('takes an address without a peer id', async () => {
    const address = await startMember(fabricOf(1))
    const found = await probeFabric([address.replace(/\/p2p\/.*/, '')], world)
    expect(found.peers[0]?.peer).toBe(address.split('/').at(-1))
  })

  it('names the addresses when none answers', async () => {
    const address = '/ip4/127.0.0.1/tcp/9'
    await expect(probeFabric([address], world)).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE', message: expect.stringContaining(address) })
  })

  it('refuses bootstrap addresses of two fabrics', async () => {
    const addresses = await Promise.all([startMember(fabricOf(1)), startMember(fabricOf(2))])
    await expect(probeFabric(addresses, world)).rejects.toMatchObject({ code: 'ERR_NOT_ALLOWED' })
  })

  it('gives up when told to', async () => {
    expect(await probeFabric(['/ip4/127.0.0.1/tcp/9'], world, { signal: AbortSignal.abort() }).then(() => 'none', errorCodeOf)).toBe('ERR_ABORTED')
  })
})

describe('identity', () => {
  const folder = async (): Promise<string> => {
    const path = await mkdtemp(join(tmpdir(), 'p2pvm-identity-'))
    cleanups.push(async () => { await rm(path, { recursive: true }) })
    return path
  }

  it('is made once, for its owner only, and kept', async () => {
    const root = await folder()
    const path = join(root, 'identity.key')
    const first = await loadOrCreateIdentity(path)
    expect((await stat(path)).mode & 0o777).toBe(0o600)
    expect(await readdir(root)).toEqual(['identity.key'])
    const bytes = await readFile(path)
    expect((await loadOrCreateIdentity(path)).equals(first)).toBe(true)
    expect(await readFile(path)).toEqual(bytes)
  })

  it('does not replace a key that it cannot read', async () => {
    const path = join(await folder(), 'identity.key')
    await writeFile(path, 'garbage')
    expect(await loadOrCreateIdentity(path).then(() => 'none', errorCodeOf)).toBe('ERR_CORRUPT')
    expect(await readFile(path, 'utf8')).toBe('garbage')
  })
})
