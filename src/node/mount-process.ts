/**
 * The process `p2pvm mount --driver fuse-native`: the mount, its entry in the registry of mounts, and the socket by which the daemon
 * and `umount` drive it, in one. Libfuse holds the device by itself, so that there is nobody who could follow: the mount ends with
 * its process. (The driver direct: `mount-keeper.ts`.)
 */
import { randomBytes } from 'node:crypto'
import { unlink } from 'node:fs/promises'
import { join } from 'node:path'
import { replaceFile } from '../mirror/files.ts'
import { guardProcess } from '../mirror/fuse/exits.ts'
import { startMount } from '../mirror/fuse/mount.ts'
import { ownProcessId } from '../mirror/processes.ts'
import type { MountConfig } from './config.ts'
import { ControlClient } from './control-client.ts'
import { serveOnSocket } from './http-server.ts'
import { mirrorSource } from './mirror-source.ts'
import { mountRoutes } from './mount-routes.ts'
import { type MountEntry, mountFiles } from './mounts.ts'
import { createLog, nodeClock, nodeRandom, tracer } from './world.ts'

/** Returns when the mount has ended. ERR_UNAVAILABLE when no daemon answers at the control socket; else as startMount. */
export async function runMountWithoutKeeper (config: MountConfig): Promise<void> {
  const log = createLog({ level: config.logLevel, stream: process.stderr })
  const client = new ControlClient(config.control)
  const folders = await client.folders({ signal: config.signal })
  const mount = await startMount({
    mountpoint: config.mountpoint,
    source: mirrorSource(client),
    folders,
    clock: nodeClock,
    random: nodeRandom,
    log,
    missDeadlineMs: config.missDeadlineMs,
    driver: 'fuse-native',
    trace: tracer(config.trace)
  })
  guardProcess(mount, log)
  try {
    config.signal.throwIfAborted() // a signal that came before the guard was there
    const files = mountFiles(join(folders.mounts, randomBytes(4).toString('hex')))
    const server = await serveOnSocket(files.socket, mountRoutes(mount), log)
    const { mountpoint, driver } = mount
    const entry: Omit<MountEntry, 'id'> = { ...await ownProcessId(), mountpoint, driver, socket: files.socket, keeper: null }
    await replaceFile(files.entry, JSON.stringify(entry))
    config.onReady({ mountpoint, pid: process.pid, driver })
    await mount.closed
    await unlink(files.entry)
    await server.close()
  } catch (error) {
    mount.abort()
    throw error
  } finally {
    client.close()
  }
}
