/**
 * The process `p2pvm mount --driver direct`: the keeper of one mount (`keeper.ts`). It mounts, starts the FUSE server as a process of its own
 * (`mount-server.ts`), which inherits the device, and another one when that dies; it has the entry in the registry of mounts, and a
 * socket for `mount --upgrade`. All of its code is loaded when it is ready: the program on disk may be another one by then.
 */
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { replaceFile } from '../mirror/files.ts'
import { abortSync, type FuseDevice, mountDevice } from '../mirror/fuse/device.ts'
import { Keeper, type ServerProcess } from '../mirror/fuse/keeper.ts'
import { ownProcessId, type ProcessId } from '../mirror/processes.ts'
import type { MirrorFolders } from '../mirror/source.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { MountConfig } from './config.ts'
import { ControlClient } from './control-client.ts'
import { type ErrorDocument, readErrorDocument } from './error-document.ts'
import { json, serveOnSocket } from './http-server.ts'
import { type MountEntry, mountFiles } from './mounts.ts'
import { createLog, type LogLevel, nodeClock } from './world.ts'

/** All that a FUSE server is told, as its only argument, in JSON. */
export interface MountServerInit {
  readonly mountpoint: string
  readonly connection: number
  readonly control: string
  readonly logLevel: LogLevel
  readonly missDeadlineMs: number
  readonly trace: boolean
  readonly folders: MirrorFolders
  /** Of the files of this mount in the registry, without their endings. */
  readonly path: string
  readonly keeper: ProcessId
  readonly successor: boolean
}

export type ToServer = { readonly kind: 'go' } | { readonly kind: 'unmount' }
export type FromServer =
  | { readonly kind: 'loaded', readonly version: string }
  | { readonly kind: 'ready', readonly resend: boolean }
  | { readonly kind: 'failed' } & ErrorDocument

/** Beside this module: a bundle has it as an entry of its own. */
const SERVER = fileURLToPath(new URL(import.meta.url.endsWith('.ts') ? './mount-server.ts' : './mount-server.js', import.meta.url))

/** Only with P2PVM_TEST_HOOKS=1: see KeeperInit.crashesMax. */
const CRASHES_MAX_VARIABLE = 'P2PVM_TEST_CRASHES_MAX'

/** Returns when the mount has ended. ERR_UNAVAILABLE when no daemon answers at the control socket; else as mountDevice, or why it was given up. */
export async function runMountWithKeeper (config: MountConfig): Promise<void> {
  const log = createLog({ level: config.logLevel, stream: process.stderr })
  const folders = await foldersOf(config)
  const device = await mountDevice(config.mountpoint, nodeClock, log)
  const path = join(folders.mounts, randomBytes(4).toString('hex'))
  const files = mountFiles(path)
  const keeper = await ownProcessId()
  const kept = new Keeper({
    startServer: (successor) => startServer(device, {
      mountpoint: device.mountpoint, connection: device.connection, control: config.control, logLevel: config.logLevel, missDeadlineMs: config.missDeadlineMs, trace: config.trace, folders, path, keeper, successor
    }),
    abort: () => { abortSync(device) },
    clock: nodeClock,
    log
  }, process.env.P2PVM_TEST_HOOKS === '1' ? { crashesMax: Number(process.env[CRASHES_MAX_VARIABLE] ?? 5) } : {})
  const onAbort = (): void => { kept.stop() }
  config.signal.addEventListener('abort', onAbort)
  if (config.signal.aborted) onAbort()
  try {
    await kept.run(async () => {
      await serveOnSocket(files.keeper, [
        { method: 'GET', pattern: '/v1/status', handle: async () => json(kept.status()) },
        { method: 'POST', pattern: '/v1/upgrade', handle: async () => json(await kept.upgrade()) }
      ], log)
      const entry: Omit<MountEntry, 'id'> = { ...keeper, mountpoint: device.mountpoint, driver: 'direct', socket: files.socket, keeper: files.keeper }
      await replaceFile(files.entry, JSON.stringify(entry))
      config.onReady({ mountpoint: device.mountpoint, pid: process.pid, driver: 'direct' })
    })
  } finally {
    config.signal.removeEventListener('abort', onAbort)
    for (const file of Object.values(files)) await rm(file, { force: true })
  }
}

async function foldersOf ({ control, signal }: MountConfig): Promise<MirrorFolders> {
  const client = new ControlClient(control)
  try {
    return await client.folders({ signal })
  } finally {
    client.close()
  }
}

function startServer (device: FuseDevice, init: MountServerInit): ServerProcess {
  const child = spawn(process.execPath, [...process.execArgv, SERVER, JSON.stringify(init)], {
    cwd: '/', stdio: ['ignore', 'ignore', 'inherit', device.fd, 'ipc']
  })
  const loaded = Promise.withResolvers<string>()
  const ready = Promise.withResolvers<{ resend: boolean }>()
  const ended = Promise.withResolvers<boolean>()
  const fail = (error: Error): void => {
    loaded.reject(error)
    ready.reject(error)
  }
  for (const promise of [loaded.promise, ready.promise]) promise.catch(() => {}) // the keeper may not wait for both
  child.on('message', (message: FromServer) => {
    if (message.kind === 'loaded') loaded.resolve(message.version)
    else if (message.kind === 'ready') ready.resolve({ resend: message.resend })
    else fail(readErrorDocument(message))
  })
  child.on('error', (error) => {
    fail(error)
    if (child.pid === undefined) ended.resolve(false)
  })
  child.once('exit', (code, signal) => {
    fail(new P2pvmError('ERR_INTERNAL', `the FUSE server has ended (${signal ?? code})`))
    ended.resolve(code === 0)
  })
  const tell = (message: ToServer): void => { child.send(message, () => {}) } // one that is gone has ended
  return {
    pid: child.pid ?? -1,
    loaded: loaded.promise,
    async go () {
      tell({ kind: 'go' })
      return await ready.promise
    },
    unmount () { tell({ kind: 'unmount' }) },
    kill () { child.kill('SIGKILL') },
    ended: ended.promise
  }
}
