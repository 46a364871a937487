import { setTimeout as delay } from 'node:timers/promises'
import type { Command } from 'commander'
import { errorCodeOf, P2pvmError } from '../../protocols/errors.ts'
import { dataDirAt } from '../data-dir.ts'
import { EXIT } from '../exit-codes.ts'
import { canonicalMountpoint, isOurMount, unmount } from '../mountpoints.ts'
import { leaveMount, listMounts, type MountEntry } from '../mounts.ts'
import { processIsAlive } from '../../mirror/processes.ts'
import { command, configOf, DAEMON_EXITS, type Options, type Session, withDaemon } from '../session.ts'

/** It syncs the overlays first: a gigabyte of them takes seconds. */
const GONE_DEADLINE_MS = 60_000
/** One that nobody else has ends at once; then it is asked why it does not, and again when nobody answers. */
const ASK_EVERY_MS = 1_000
/** The end of a process that is not our child can only be looked for. */
const LOOK_EVERY_MS = 20

export function umountCommand ({ output, signal }: Session): Command {
  return command('umount', {
    description: 'end a mount, or take away what a dead one left behind',
    exits: [EXIT.notFound, EXIT.conflict, ...DAEMON_EXITS],
    settings: ['data']
  })
    .argument('<DIR>')
    .option('--force', 'also when files are open there: whoever has them open gets errors')
    .addHelpText('after', '\nWorks without the daemon too: the mount is then looked for under --data.')
    .action(async (folder: string, options: Options) => {
      const mountpoint = await canonicalMountpoint(folder)
      const entry = (await listMounts(await registryOf(options, signal))).find((mount) => mount.mountpoint === mountpoint)
      if (entry !== undefined) {
        const elsewhere = await end(entry, { force: options['force'] === true, signal })
        if (elsewhere.length > 0) output.note(`it was in the mount namespace of process ${elsewhere.join(', ')}, too, and is gone from there`)
      } else if (await isOurMount(mountpoint)) await unmount(mountpoint, { lazy: true })
      else throw new P2pvmError('ERR_NOT_FOUND', `p2pvm has nothing mounted at ${mountpoint}`, { mountpoint })
      output.result({ mountpoint, pid: entry?.pid ?? null }, () => `unmounted ${mountpoint}`)
    })
}

/** The folder where mounts are registered, with or without the daemon. */
export async function registryOf (options: Options, signal: AbortSignal): Promise<string> {
  try {
    return (await withDaemon(options, async (client) => await client.folders({ signal }))).mounts
  } catch (error) {
    if (errorCodeOf(error) !== 'ERR_UNAVAILABLE') throw error
    return dataDirAt(configOf(options).get('data')).mounts
  }
}

/** Processes in whose mount namespaces it was, too. */
async function end (mount: MountEntry, { force, signal }: { readonly force: boolean, readonly signal: AbortSignal }): Promise<number[]> {
  const { pid, mountpoint } = mount
  // The kernel says whether anybody has a file open; server and keeper end with the mount.
  if (force) terminate(pid, mountpoint)
  else if (await isOurMount(mountpoint)) await unmount(mountpoint, { lazy: false }) // else it is only elsewhere, since an umount before this one
  const startMs = performance.now()
  let askAtMs = force ? Infinity : startMs + ASK_EVERY_MS
  let elsewhere: number[] | undefined
  while (await processIsAlive(mount)) {
    const nowMs = performance.now()
    if (nowMs > startMs + GONE_DEADLINE_MS) throw new P2pvmError('ERR_TIMEOUT', `the process of the mount at ${mountpoint} (pid ${pid}) has not ended within ${GONE_DEADLINE_MS / 1000} s`, { pid })
    if (nowMs > askAtMs) {
      elsewhere = await leaveMount(mount, signal)
      askAtMs = elsewhere === undefined ? performance.now() + ASK_EVERY_MS : Infinity
    }
    await delay(LOOK_EVERY_MS, undefined, { signal })
  }
  if (await isOurMount(mountpoint)) await unmount(mountpoint, { lazy: true })
  return elsewhere ?? []
}

function terminate (pid: number, mountpoint: string): void {
  try {
    process.kill(pid, 'SIGTERM')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return
    throw new P2pvmError(errorCodeOf(error), `cannot end the mount at ${mountpoint} (pid ${pid}): ${(error as Error).message}`, { pid }, error)
  }
}
