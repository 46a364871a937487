/** The peer that the mounts of `bench/mount.ts` are on: its cache emptied before each round, so that the first read comes from storage peers. */
import { rename } from 'node:fs/promises'
import { join } from 'node:path'
import { dataDirAt } from '../../src/node/data-dir.ts'
import type { FabricPeer } from '../../testnet/fabric.ts'
import { endMounts } from '../../testnet/processes.ts'
import { p2pvm } from './fabric.ts'
import type { Stage } from './stage.ts'
import { timed } from './timed.ts'

export interface Mounted {
  readonly driver: string
  readonly mountpoint: string
}

const DRIVERS = ['direct', 'fuse-native'] as const

/** One mount for each driver that this build can mount with here, and why the others are left out. The direct one needs no option. */
export async function tryMounts (stage: Stage, peer: FabricPeer, leaveOut: (why: string) => void): Promise<Mounted[]> {
  const { stdout: help } = await peer.cli('mount', '--help')
  const mounts: Mounted[] = []
  for (const driver of DRIVERS) {
    const mounted = { driver, mountpoint: stage.newFolder() }
    if (driver !== 'direct' && !help.includes('--driver')) leaveOut(`${driver} is left out: this build has no \`p2pvm mount --driver\``)
    else {
      try {
        await mount(peer, mounted)
        mounts.push(mounted)
      } catch (error) {
        if (driver === 'direct') throw error
        leaveOut(`${driver} is left out: ${(error as Error).message.trim()}`)
      }
    }
  }
  return mounts
}

let starts = 0

/**
 * The daemon starts over with an empty cache, and mounts are made anew. They end with the fabric, or when it starts over again. What was in
 * the cache stays beside it, as what each round of `withFabric` leaves.
 */
export async function startOver (peer: FabricPeer, mounts: readonly Mounted[]): Promise<void> {
  await endMounts(dataDirAt(peer.data).mounts)
  await peer.kill()
  const { cache } = dataDirAt(peer.data)
  await rename(cache, `${cache}.${++starts}`)
  await peer.restart()
  for (const mounted of mounts) await mount(peer, mounted)
}

async function mount (peer: FabricPeer, { driver, mountpoint }: Mounted): Promise<void> {
  await p2pvm(peer, 'mount', mountpoint, '--detach', ...driver === 'direct' ? [] : ['--driver', driver])
}

/** All of an image that is cached nowhere here, 1 MiB at a time; the mount has found it and its peers before. Bytes per second. */
export async function readCold (stage: Stage, mountpoint: string, image: string, sizeBytes: number): Promise<number> {
  const path = join(mountpoint, 'by-name', image, '1')
  await stage.run('dd', `if=${path}`, 'of=/dev/null', 'bs=4096', 'count=1', 'status=none')
  const { ms } = await timed(async () => await stage.run('dd', `if=${path}`, 'of=/dev/null', 'bs=1M', 'status=none'))
  return sizeBytes / ms * 1000
}
