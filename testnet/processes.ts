/** Ends processes and mounts by the ids that they were given out with, and returns only when they are gone. */
import { setTimeout as delay } from 'node:timers/promises'
import { isOurMount, unmount } from '../src/node/mountpoints.ts'
import { listMounts } from '../src/node/mounts.ts'
import { processId, type ProcessId, processIsAlive } from '../src/mirror/processes.ts'

/** A daemon stops within 5 s of SIGTERM, by itself; this is for a machine that is busy. */
const TERM_DEADLINE_MS = 15_000
/** A process that outlives SIGKILL hangs in the kernel: nothing can be done but to say so. */
const KILL_DEADLINE_MS = 10_000
/** The end of a process that is not our child can only be looked for. */
const LOOK_EVERY_MS = 20

export async function identify (pid: number): Promise<ProcessId> {
  const id = await processId(pid)
  if (id === undefined) throw new Error(`there is no process ${pid}`)
  return id
}

/** SIGTERM, and SIGKILL when that is not enough. Says which it took. */
export async function endProcess (id: ProcessId): Promise<'was gone' | 'SIGTERM' | 'SIGKILL'> {
  if (!await processIsAlive(id)) return 'was gone'
  send(id, 'SIGTERM')
  send(id, 'SIGCONT') // one that a test has stopped would never see it
  if (await isGoneWithin(id, TERM_DEADLINE_MS)) return 'SIGTERM'
  send(id, 'SIGKILL')
  if (await isGoneWithin(id, KILL_DEADLINE_MS)) return 'SIGKILL'
  throw new Error(`process ${id.pid} has not ended after SIGKILL`)
}

/** All mounts that are registered in a daemon's data directory. */
export async function endMounts (mountsFolder: string): Promise<void> {
  for (const mount of await listMounts(mountsFolder)) {
    await endProcess(mount)
    if (await isOurMount(mount.mountpoint)) await unmount(mount.mountpoint, { lazy: true })
  }
}

async function isGoneWithin (id: ProcessId, deadlineMs: number): Promise<boolean> {
  const endMs = performance.now() + deadlineMs
  while (await processIsAlive(id)) {
    if (performance.now() > endMs) return false
    await delay(LOOK_EVERY_MS)
  }
  return true
}

function send ({ pid }: ProcessId, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}
