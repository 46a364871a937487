import { type ChildProcess, spawn } from 'node:child_process'
import { closeSync, openSync } from 'node:fs'
import { join, resolve } from 'node:path'
import type { Command } from 'commander'
import { P2pvmError } from '../../protocols/errors.ts'
import { chooseDriver, type DriverChoice } from '../../mirror/driver.ts'
import type { MountConfig, MountReady } from '../config.ts'
import { errorDocument, type ErrorDocument, readErrorDocument } from '../error-document.ts'
import { EXIT } from '../exit-codes.ts'
import { fields } from '../output.ts'
import { command, DAEMON_EXITS, type Options, type Session, withDaemon } from '../session.ts'
import type { LogLevel } from '../world.ts'
import { upgradeMount } from './mount-upgrade.ts'

/** INIT, the first answers of the daemon, two worker threads: a second or so on a busy machine. */
const READY_DEADLINE_MS = 60_000

/** Nothing has been written yet that it would have to sync. */
const END_DEADLINE_MS = 10_000

type Report = { readonly ready: MountReady } | ErrorDocument

export function mountCommand (session: Session): Command {
  return command('mount', {
    description: 'serve the images and working copies in a folder, until SIGTERM or umount',
    exits: [EXIT.notFound, EXIT.conflict, ...DAEMON_EXITS],
    settings: ['driver', 'miss-deadline', 'log-level']
  })
    .argument('<DIR>', 'an existing, empty folder')
    .option('--detach', 'return when the mount is ready')
    .option('--trace', 'a line on stderr per request that the main thread answers (P2PVM_FUSE_TRACE=1)')
    .option('--upgrade', 'DIR is mounted already: serve it with this program from now on; whoever uses it notices a pause')
    .action(async (folder: string, options: Options) => {
      try {
        if (options['upgrade'] === true) {
          await upgradeMount(folder, options, session)
          return
        }
        const mountpoint = resolve(folder)
        const mountOptions = await mountOptionsOf(options, session)
        if (options['detach'] === true) await mountDetached(mountpoint, mountOptions, session)
        else await mountHere(mountpoint, mountOptions, session)
      } catch (error) {
        report(errorDocument(error))
        throw error
      }
    })
}

/** What the mount is told, from flags, environment and file. */
interface MountOptions {
  readonly control: string
  readonly logLevel: LogLevel
  readonly driver: DriverChoice
  readonly missDeadlineS: number
  readonly trace: boolean
  /** The folder where mounts are registered. */
  readonly mounts: string
}

/** A clear word when there is no daemon, before anything is mounted. */
async function mountOptionsOf (options: Options, { signal }: Session): Promise<MountOptions> {
  return await withDaemon(options, async (client, config) => {
    const { mounts } = await client.folders({ signal })
    return {
      control: config.get('control'),
      logLevel: config.get('log-level'),
      driver: config.get('driver'),
      missDeadlineS: config.get('miss-deadline'),
      trace: options['trace'] === true || process.env['P2PVM_FUSE_TRACE'] === '1',
      mounts
    }
  })
}

/** Only one of the two is loaded: a keeper is to be small. */
async function mountHere (mountpoint: string, { control, logLevel, driver, missDeadlineS, trace }: MountOptions, session: Session): Promise<void> {
  const config: MountConfig = {
    mountpoint,
    control,
    logLevel,
    missDeadlineMs: missDeadlineS * 1000,
    trace,
    onReady (ready) {
      if (process.send === undefined) printReady(ready, session)
      else report({ ready })
    },
    signal: session.signal
  }
  await chooseDriver(driver, {
    direct: async () => { await (await import('../mount-keeper.ts')).runMountWithKeeper(config) },
    'fuse-native': async () => { await (await import('../mount-process.ts')).runMountWithoutKeeper(config) }
  })
}

/** To the process that started this one with --detach, and waits for it; once. */
function report (message: Report): void {
  if (process.send === undefined || !process.connected) return
  process.send(message, () => { if (process.connected) process.disconnect() })
}

function printReady (ready: MountReady, { output }: Session): void {
  const { mountpoint, pid, driver } = ready
  output.result({ mountpoint, pid, driver }, () => fields([['mountpoint', mountpoint], ['pid', pid], ['driver', driver]]))
}

/** The same command again, in a session of its own, with its log beside the registry of mounts. */
async function mountDetached (mountpoint: string, { control, logLevel, driver, missDeadlineS, trace, mounts }: MountOptions, session: Session): Promise<void> {
  const log = join(mounts, `${mountpoint.slice(1).replaceAll('/', '-')}.log`)
  const program = process.argv[1]
  if (program === undefined) throw new P2pvmError('ERR_INTERNAL', 'the program does not know its own path')
  const logDescriptor = openSync(log, 'a', 0o640)
  const own = [
    'mount', mountpoint, '--control', control, '--log-level', logLevel, '--driver', driver, '--miss-deadline', String(missDeadlineS), ...trace ? ['--trace'] : []
  ]
  const child = spawn(process.execPath, [...process.execArgv, program, ...own], {
    cwd: '/', detached: true, stdio: ['ignore', logDescriptor, logDescriptor, 'ipc']
  })
  closeSync(logDescriptor)

  const deadline = AbortSignal.any([session.signal, AbortSignal.timeout(READY_DEADLINE_MS)])
  const message = await new Promise<Report>((resolve) => {
    child.once('message', (message) => { resolve(message as Report) })
    child.once('error', (error) => { resolve(errorDocument(error)) })
    child.once('exit', (code, signal) => {
      resolve(errorDocument(new P2pvmError('ERR_INTERNAL', `the mount ended (${signal ?? code}) before it was ready; its log is ${log}`)))
    })
    deadline.addEventListener('abort', () => {
      resolve(errorDocument(session.signal.aborted
        ? session.signal.reason
        : new P2pvmError('ERR_TIMEOUT', `the mount was not ready within ${READY_DEADLINE_MS / 1000} s; its log is ${log}`)))
    })
  })
  if ('error' in message) {
    await ended(child)
    throw readErrorDocument(message)
  }
  child.unref()
  printReady(message.ready, session)
}

/** It unmounts what it may have mounted: until then the failure is not over. */
async function ended (child: ChildProcess): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return
  const exited = new Promise<void>((resolve) => { child.once('exit', () => { resolve() }) })
  child.kill('SIGTERM')
  const kill = setTimeout(() => { child.kill('SIGKILL') }, END_DEADLINE_MS)
  await exited
  clearTimeout(kill)
}
