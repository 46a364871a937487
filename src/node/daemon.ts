/**
 * The process `p2pvm daemon`: one peer, its control socket, its end. Started: lock, peer, control socket, then the ready
 * line. Stopped by the signal in the reverse order, within STOP_DEADLINE_MS.
 */
import { mkdir } from 'node:fs/promises'
import { peerIdFromPrivateKey } from '@libp2p/peer-id'
import { Committer } from '../mirror/commit.ts'
import { sweepWorkingFolder } from '../mirror/working-copy.ts'
import type { DaemonConfig } from './config.ts'
import { controlHandlers } from './control-handlers.ts'
import { serveControl } from './control-server.ts'
import { dataDirAt } from './data-dir.ts'
import { lockDataDir } from './data-dir-lock.ts'
import { loadOrCreateIdentity } from './identity.ts'
import { collectAfterBursts } from './idle-memory.ts'
import { Peer, type PeerOverrides } from './peer.ts'
import { PROGRAM_VERSION } from './program-version.ts'
import { WorkingCopies } from './working-copies.ts'
import { createCounters, createLog, nodeClock, nodeRandom, type World } from './world.ts'

/** What does not end by then is cut off by the end of the process: everything acknowledged is on disk. */
const STOP_DEADLINE_MS = 4_000

/** Returns when the peer has stopped. ERR_CONFLICT when a daemon runs on this data directory or control socket; else as Peer.start. */
export async function runDaemon (config: DaemonConfig, overrides: PeerOverrides = {}): Promise<void> {
  const world: World = {
    clock: nodeClock, random: nodeRandom, counters: createCounters(), log: createLog({ level: config.logLevel, stream: process.stderr })
  }
  const dataDir = dataDirAt(config.dataDir)
  await mkdir(dataDir.root, { recursive: true, mode: 0o750 })
  const identity = await loadOrCreateIdentity(dataDir.identity)
  const lock = await lockDataDir(dataDir, { pid: process.pid, peerId: peerIdFromPrivateKey(identity).toString(), control: config.control })
  try {
    await sweepWorkingFolder(dataDir.working)
    const peer = await Peer.start({ ...config, dataDir, identity }, world, overrides)
    try {
      await serveUntilStopped(peer, config, world)
    } finally {
      await Promise.race([peer.stop(), world.clock.sleep(STOP_DEADLINE_MS)])
    }
  } finally {
    await lock.release()
  }
}

async function serveUntilStopped (peer: Peer, config: DaemonConfig, world: World): Promise<void> {
  const { blobs, cachedChunks: chunks, cache, dataDir } = peer
  const committer = new Committer({ blobs, chunks, cache, ...world })
  const workingCopies = new WorkingCopies({ folders: dataDir, blobs, committer, ...world })
  const handlers = controlHandlers({ peer, workingCopies, counters: world.counters, control: config.control, version: PROGRAM_VERSION })
  const server = await serveControl(config.control, handlers, world.log)
  void collectAfterBursts(world, config.signal)
  try {
    config.onReady({ peerId: peer.id, addresses: peer.addresses(), control: config.control })
    if (!config.signal.aborted) await new Promise((resolve) => { config.signal.addEventListener('abort', resolve, { once: true }) })
    world.log.info('stopping')
  } finally {
    await server.close()
  }
}
