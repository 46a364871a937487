/** The fabric of the benchmarks: six daemons on loopback, new for each round, so that nothing is there already. */
import { rmSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ControlClient } from '../../src/node/control-client.ts'
import { type Fabric, type FabricPeer, startFabric } from '../../testnet/fabric.ts'

export const STORAGE_PEERS = 4
export const COMPUTE_PEERS = 2

export interface Workshop {
  readonly fabric: Fabric
  /** The peer that images are put in at, and one that has never seen them. */
  readonly importer: FabricPeer
  readonly reader: FabricPeer
  /** A folder on the same file system as the peers'; removed when the program ends. */
  readonly folder: string
}

let rooms: string | undefined
let rounds = 0

/**
 * Runs `work` beside a new fabric, and stops it, also when interrupted. The files stay until the program ends: ext4 without a
 * journal does not give out the inodes of deleted files for some minutes, and searching past them would slow the next round.
 * `unwind` ends, before that, what `work` has put on top of it: it runs once, also when `work` is still busy.
 */
export async function withFabric (work: (workshop: Workshop) => Promise<void>, unwind = async (): Promise<void> => {}): Promise<void> {
  rooms ??= await folderUntilExit()
  const folder = join(rooms, String(++rounds))
  let fabric: Fabric | undefined
  const givingUp = new AbortController()
  let stopped: Promise<void> | undefined
  const stop = (): Promise<void> => stopped ??= unwind().finally(async () => { await fabric?.stop() })
  // A start that is under way ends what it has started, and throws.
  const interrupted = (): void => {
    givingUp.abort()
    void starting.catch(() => {}).then(stop).finally(() => { process.exit(130) })
  }
  process.once('SIGINT', interrupted).once('SIGTERM', interrupted)
  const starting = startFabric({ storage: STORAGE_PEERS, compute: COMPUTE_PEERS, folder: join(folder, 'fabric'), signal: givingUp.signal })
  try {
    fabric = await starting
    const [importer, reader] = fabric.compute
    await work({ fabric, importer: importer!, reader: reader!, folder })
  } finally {
    await stop()
    process.off('SIGINT', interrupted).off('SIGTERM', interrupted)
  }
}

async function folderUntilExit (): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'p2pvm-bench-'))
  process.once('exit', () => { rmSync(folder, { recursive: true, force: true }) })
  return folder
}

export function peersOf (fabric: Fabric): FabricPeer[] {
  return [...fabric.storage, ...fabric.compute]
}

/** A command that must not fail: its JSON document. */
export async function p2pvm<T> (peer: FabricPeer, ...args: string[]): Promise<T> {
  const { code, stdout, stderr, json } = await peer.cli(...args)
  if (code !== 0) throw new Error(`p2pvm ${args.join(' ')} ended with ${code}: ${stdout}${stderr}`)
  return json as T
}

/** The sum of a counter over all peers. */
export async function counterSum (fabric: Fabric, name: string): Promise<number> {
  const values = await Promise.all(peersOf(fabric).map(async ({ control }) => {
    const client = new ControlClient(control)
    try {
      return (await client.status()).counters[name] ?? 0
    } finally {
      client.close()
    }
  }))
  return values.reduce((sum, value) => sum + value, 0)
}
