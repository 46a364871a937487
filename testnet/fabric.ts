/**
 * A fabric of real daemons as processes on this machine, on loopback: for the system tests, the quickstart and `npm run
 * testnet`. It owns the processes, and the mounts that were made through them: `stop` returns when all of it is gone.
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { ControlClient } from '../src/node/control-client.ts'
import { FabricPeer } from './peer.ts'

export { FabricPeer } from './peer.ts'

export interface FabricOptions {
  /** The first of them is the version manager's peer too. */
  readonly storage: number
  readonly compute: number
  /** Where the peers' folders go; made when it is missing, never removed. */
  readonly folder: string
  readonly env?: NodeJS.ProcessEnv
  readonly daemonArgs?: readonly string[]
  /** The daemons go on when this process ends. */
  readonly detached?: boolean
  /** Gives up a start, and ends the commands that are under way. `stop` works on. */
  readonly signal?: AbortSignal
}

export interface Fabric {
  readonly folder: string
  readonly storage: readonly FabricPeer[]
  readonly compute: readonly FabricPeer[]
  /** Ends mounts and daemons. Throws when something could not be ended, after it has tried all. */
  stop (): Promise<void>
}

/** One bootstrap address, then gossip: within seconds, also with a hundred peers on two cores. */
const CONVERGED_DEADLINE_MS = 60_000
const ASK_EVERY_MS = 100

/** Returns when every peer knows all storage peers and sees them up. When it throws, nothing is left running. */
export async function startFabric (options: FabricOptions): Promise<Fabric> {
  mkdirSync(options.folder, { recursive: true })
  const init = { folder: options.folder, args: options.daemonArgs ?? [], env: environment(options), detached: options.detached ?? false, signal: options.signal }
  const first = new FabricPeer({ ...init, name: 'storage-0', roles: ['storage', 'versions'], bootstrap: [] })
  const storage = [first]
  const compute: FabricPeer[] = []
  const fabric: Fabric = { folder: options.folder, storage, compute, stop: async () => { await stopAll([...compute, ...storage]) } }
  try {
    await first.start()
    const bootstrap = first.addresses.slice(0, 1)
    for (let at = 1; at < options.storage; at++) storage.push(new FabricPeer({ ...init, name: `storage-${at}`, roles: ['storage'], bootstrap }))
    for (let at = 0; at < options.compute; at++) compute.push(new FabricPeer({ ...init, name: `compute-${at}`, roles: ['compute'], bootstrap }))
    await settled([...storage.slice(1), ...compute].map(async (peer) => { await peer.start() }))
    await settled([...storage, ...compute].map(async (peer) => { await converged(peer, storage.map(({ peerId }) => peerId)) }))
    return fabric
  } catch (error) {
    await fabric.stop()
    throw error
  }
}

/** Our own settings only: what the caller's shell or machine says about its own daemon is not for these. */
function environment ({ folder, env }: FabricOptions): NodeJS.ProcessEnv {
  const inherited = Object.entries(process.env).filter(([name]) => !name.startsWith('P2PVM_'))
  const config = join(folder, 'config.json')
  writeFileSync(config, '{}\n')
  return { ...Object.fromEntries(inherited), P2PVM_CONFIG: config, ...env }
}

async function converged (peer: FabricPeer, storageIds: readonly string[]): Promise<void> {
  const client = new ControlClient(peer.control)
  const deadlineMs = performance.now() + CONVERGED_DEADLINE_MS
  try {
    for (;;) {
      const up = new Set((await client.peers()).filter(({ state }) => state === 'up').map(({ peerId }) => peerId))
      const missing = storageIds.filter((id) => !up.has(id))
      if (missing.length === 0) return
      if (performance.now() > deadlineMs) throw new Error(`${peer.name} does not see ${missing.length} of ${storageIds.length} storage peers; its log is ${peer.log}`)
      await delay(ASK_EVERY_MS)
    }
  } finally {
    client.close()
  }
}

async function stopAll (peers: readonly FabricPeer[]): Promise<void> {
  await settled(peers.map(async (peer) => { await peer.stop() }))
}

/** Waits for all, then throws the first failure. */
async function settled (work: ReadonlyArray<Promise<void>>): Promise<void> {
  for (const outcome of await Promise.allSettled(work)) {
    if (outcome.status === 'rejected') throw outcome.reason
  }
}
