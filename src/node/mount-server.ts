/**
 * The process of a FUSE server, started by its keeper (`mount-keeper.ts`) with the device as descriptor 3 and a channel. It serves
 * the kernel, and on the mount's socket the daemon. It has no libp2p in it, and goes on without its daemon with what is local.
 *
 * It ends when the mount does, in order; by SIGKILL when it is told to, or has a defect; and when its keeper is gone it takes the
 * mount with it, in order.
 */
import { rm } from 'node:fs/promises'
import { guardKept } from '../mirror/fuse/exits.ts'
import { type Mount, serveDevice } from '../mirror/fuse/mount.ts'
import { checkJournal } from '../mirror/mount-journal.ts'
import { ownProcessId } from '../mirror/processes.ts'
import { ControlClient } from './control-client.ts'
import { errorDocument } from './error-document.ts'
import { serveOnSocket } from './http-server.ts'
import { mirrorSource } from './mirror-source.ts'
import type { FromServer, MountServerInit, ToServer } from './mount-keeper.ts'
import { mountRoutes } from './mount-routes.ts'
import { mountFiles } from './mounts.ts'
import { PROGRAM_VERSION } from './program-version.ts'
import { createLog, nodeClock, nodeRandom, tracer } from './world.ts'

const DEVICE_FD = 3

const init = JSON.parse(process.argv[2] ?? '{}') as MountServerInit
const log = createLog({ level: init.logLevel, stream: process.stderr })
let mount: Mount | undefined
let leaving = false

guardKept(log)
process.on('message', (message: ToServer) => {
  if (message.kind === 'go') void serve().catch(fail)
  else leave('the keeper')
})
process.on('disconnect', () => { leave('the end of the keeper') })
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => { leave(signal) })

try {
  if (init.successor) checkJournal(mountFiles(init.path).journal)
  tell({ kind: 'loaded', version: PROGRAM_VERSION })
} catch (error) {
  fail(error)
}

async function serve (): Promise<void> {
  const { control, folders, mountpoint, connection, keeper, successor, path, missDeadlineMs, trace } = init
  const files = mountFiles(path)
  const client = new ControlClient(control)
  mount = await serveDevice({ fd: DEVICE_FD, mountpoint, connection },
    { source: mirrorSource(client), folders, clock: nodeClock, random: nodeRandom, log, missDeadlineMs, trace: tracer(trace) },
    { journal: files.journal, successor, owner: { ...keeper, server: await ownProcessId() } })
  const socket = await serveOnSocket(files.socket, mountRoutes(mount), log)
  tell({ kind: 'ready', resend: mount.resend })
  if (!process.connected) leave('the end of the keeper')
  await mount.closed
  await socket.close()
  client.close()
  if (!process.connected) await Promise.all(Object.values(files).map(async (file) => { await rm(file, { force: true }) }))
  process.exit(0)
}

/** Before there is a mount it is the keeper's to end, which says so again when there is one. */
function leave (reason: string): void {
  if (mount === undefined) {
    if (!process.connected) process.kill(process.pid, 'SIGKILL')
    return
  }
  if (leaving) return
  leaving = true
  log.info('unmounting', { reason, mountpoint: init.mountpoint })
  mount.unmount({ force: true }).catch((error: unknown) => {
    mount?.abort()
    fail(error)
  })
}

/** A worker may be blocked on the device already. */
function fail (error: unknown): void {
  log.error('the FUSE server cannot go on', { error })
  tell({ kind: 'failed', ...errorDocument(error) }, () => { process.kill(process.pid, 'SIGKILL') })
}

function tell (message: FromServer, then = (): void => {}): void {
  if (process.send === undefined || !process.connected) then()
  else process.send(message, then)
}
