/**
 * A fabric of real daemons for one test file: a temporary folder, the processes in it, their mounts, and the certainty that
 * all of it is gone afterwards, by the ids that were given out, however the test ends.
 */
import { randomUUID } from 'node:crypto'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Role } from '../../src/dht/membership.ts'
import type { PeerRow } from '../../src/node/control-api.ts'
import { ControlClient } from '../../src/node/control-client.ts'
import { type Fabric, type FabricOptions, FabricPeer, startFabric } from '../../testnet/fabric.ts'
import { eventually } from './eventually.ts'
import { sha256Of } from './random-image.ts'

/** 15 s until a silent peer is down (DOWN_AFTER_MS), a round of gossip, and a slow machine. */
export const NOTICE_DEADLINE_MS = 30_000

export class LiveFabric {
  readonly folder: string
  readonly fabric: Fabric
  readonly #others: FabricPeer[] = []

  static async start (options: Omit<FabricOptions, 'folder'>): Promise<LiveFabric> {
    const folder = await mkdtemp(join(tmpdir(), 'p2pvm-system-'))
    try {
      return new LiveFabric(folder, await startFabric({ ...options, folder: join(folder, 'fabric') }))
    } catch (error) {
      await rm(folder, { recursive: true, force: true })
      throw error
    }
  }

  private constructor (folder: string, fabric: Fabric) {
    this.folder = folder
    this.fabric = fabric
  }

  /** 0 is the version manager's peer, too. */
  storage (index: number): FabricPeer {
    return at(this.fabric.storage, index)
  }

  compute (index: number): FabricPeer {
    return at(this.fabric.compute, index)
  }

  /** Mounts on a compute peer, detached; `close` ends it with the peer. */
  async mount (peer: FabricPeer, name: string): Promise<string> {
    const mountpoint = join(this.folder, name)
    await mkdir(mountpoint)
    await succeed(peer, 'mount', mountpoint, '--detach')
    return mountpoint
  }

  /** One more peer, not started yet; ended by `close`. It knows nobody but `bootstrap`. */
  peer (name: string, roles: readonly Role[], bootstrap: readonly string[]): FabricPeer {
    const env = Object.fromEntries(Object.entries(process.env).filter(([variable]) => !variable.startsWith('P2PVM_')))
    const peer = new FabricPeer({ name, roles, bootstrap, folder: this.folder, args: [], env, detached: false })
    this.#others.push(peer)
    return peer
  }

  /** Returns when every peer sees every storage peer up. */
  async whole (): Promise<void> {
    await this.knows(this.fabric.storage.map(({ peerId }) => peerId))
  }

  /** Returns when every peer sees these up. */
  async knows (wanted: readonly string[], deadlineMs = NOTICE_DEADLINE_MS): Promise<void> {
    await Promise.all([...this.fabric.storage, ...this.fabric.compute].map(async (peer) => {
      await sees(peer, wanted, 'up', deadlineMs)
    }))
  }

  /** Exports to a file: the sum of what is in it, not the one that the command says. */
  async exportedSum (peer: FabricPeer, ref: string): Promise<string> {
    const path = join(this.folder, `exported-${randomUUID()}.img`)
    await succeed(peer, 'export', ref, path)
    try {
      return await sha256Of(path)
    } finally {
      await rm(path)
    }
  }

  async close (): Promise<void> {
    const ended = await Promise.allSettled([...this.#others.map(async (peer) => { await peer.stop() }), this.fabric.stop()])
    for (const outcome of ended) if (outcome.status === 'rejected') throw outcome.reason
    await rm(this.folder, { recursive: true, force: true })
  }
}

/** A command that must not fail: its JSON document. */
export async function succeed<T> (peer: FabricPeer, ...args: string[]): Promise<T> {
  const result = await peer.cli(...args)
  if (result.code !== 0) throw new Error(`${peer.name}: p2pvm ${args.join(' ')} ended with ${result.code}: ${result.stdout}${result.stderr}`)
  return result.json as T
}

/** Returns when a peer says of all of these that they are in that state: how long it took. */
export async function sees (peer: FabricPeer, wanted: readonly string[], state: PeerRow['state'], deadlineMs = NOTICE_DEADLINE_MS): Promise<number> {
  const { tookMs } = await eventually(`${peer.peerId} sees ${wanted.join(', ')} ${state}`, deadlineMs, async () => {
    const rows = await peersOf(peer)
    return wanted.every((id) => rows.some((row) => row.peerId === id && row.state === state)) || undefined
  })
  return tookMs
}

async function peersOf (peer: FabricPeer): Promise<PeerRow[]> {
  return await withClient(peer, async (client) => await client.peers())
}

/** The sum of a counter's rows in /metrics that have these labels. */
export async function counterOf (peer: FabricPeer, name: string, labels: Readonly<Record<string, string>> = {}): Promise<number> {
  const text = await withClient(peer, async (client) => await client.metrics())
  const wanted = Object.entries(labels).map(([label, value]) => `${label}="${value}"`)
  let sum = 0
  for (const line of text.split('\n')) {
    const match = /^([a-z0-9_]+)(\{.*\})? (\S+)$/.exec(line)
    if (match?.[1] === name && wanted.every((label) => match[2]?.includes(label) === true)) sum += Number(match[3])
  }
  return sum
}

export async function withClient<T> (peer: { readonly control: string }, ask: (client: ControlClient) => Promise<T>): Promise<T> {
  const client = new ControlClient(peer.control)
  try {
    return await ask(client)
  } finally {
    client.close()
  }
}

function at<T> (items: readonly T[], index: number): T {
  const item = items[index]
  if (item === undefined) throw new Error(`no item ${index}`)
  return item
}
