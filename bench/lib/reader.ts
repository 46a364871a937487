/** The peer that the mounts of `bench/mount.ts` are on: its cache emptied before each round, so that the first read comes from storage peers. */
import { rm } from 'node:fs/promises'
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

/** Drivers that this build can mount with. The direct one needs no option. */
export async function drivers (peer: FabricPeer): Promise<string[]> {
  const { stdout } = await peer.cli('mount', '--help')
  return stdout.includes('--driver') ? ['direct', 'fuse-native'] : ['direct']
}

/** The daemon starts over with an empty cache, and mounts are made anew. They end with the fabric, or when it starts over again. */
export async function startOver (peer: FabricPeer, mounts: readonly Mounted[]): Promise<void> {
  await endMounts(dataDirAt(peer.data).mounts)
  await peer.kill()
  await rm(dataDirAt(peer.data).cache, { recursive: true, force: true })
  await peer.restart()
  for (const { driver, mountpoint } of mounts) {
    await p2pvm(peer, 'mount', mountpoint, '--detach', ...driver === 'direct' ? [] : ['--driver', driver])
  }
}

/** All of an image that is cached nowhere here, 1 MiB at a time; the mount has found it and its peers before. Bytes per second. */
export async function readCold (stage: Stage, mountpoint: string, image: string, sizeBytes: number): Promise<number> {
  const path = join(mountpoint, 'by-name', image, '1')
  await stage.run('dd', `if=${path}`, 'of=/dev/null', 'bs=4096', 'count=1', 'status=none')
  const { ms } = await timed(async () => await stage.run('dd', `if=${path}`, 'of=/dev/null', 'bs=1M', 'status=none'))
  return sizeBytes / ms * 1000
}
