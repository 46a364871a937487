/** Mounts of a peer as the tests that kill parts of them see them: the keeper from the registry, and the FUSE server below it. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type ProcessId, startTimeOf } from '../../src/mirror/processes.ts'
import { listMounts, type MountEntry } from '../../src/node/mounts.ts'
import type { FabricPeer } from '../../testnet/peer.ts'
import { eventually } from './eventually.ts'

/** Node starts in a fifth of a second, on a machine that is busy in some. */
const SERVER_DEADLINE_MS = 30_000

export async function entryOf (peer: FabricPeer, mountpoint: string): Promise<MountEntry> {
  const entry = (await listMounts(join(peer.data, 'mounts'))).find((mount) => mount.mountpoint === mountpoint)
  if (entry === undefined) throw new Error(`${mountpoint} is not registered`)
  return entry
}

/** The server of this moment, ready or not. */
export async function serverOf (entry: MountEntry): Promise<ProcessId> {
  const { answer } = await eventually(`${entry.mountpoint} has a server`, SERVER_DEADLINE_MS, async () => {
    for (const pid of readFileSync(`/proc/${entry.pid}/task/${entry.pid}/children`, 'utf8').split(' ').filter(Boolean).map(Number)) {
      const startTime = await startTimeOf(pid)
      if (startTime !== undefined && commandOf(pid).includes('mount-server')) return { pid, startTime }
    }
    return undefined
  })
  return answer
}

/** Its arguments; nothing when it has ended. */
export function commandOf (pid: number | string): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ')
  } catch {
    return ''
  }
}

/** With SIGKILL, if it has not ended by itself. */
export function killNow ({ pid }: { readonly pid: number }): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}
