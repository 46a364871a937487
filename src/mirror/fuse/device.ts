/**
 * /dev/fuse and mount(2): opening the device, attaching it to a folder, finding the connection in fusectl, and every way
 * to let go of it. mount(8) and umount(8) do the system calls that Node does not have; they inherit the device and nothing
 * else (Node opens everything close-on-exec).
 *
 * Not for: what is said on the device (`protocol.ts`).
 */
import { spawn, spawnSync } from 'node:child_process'
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { readdir, readFile, readlink, realpath, stat } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { withDeadline } from '../../protocols/abort.ts'
import { P2pvmError } from '../../protocols/errors.ts'
import type { Clock, Log } from '../../protocols/seams.ts'
import { isNodeError } from '../files.ts'
import { withSignal } from '../patience.ts'
import { DIRTY_PERCENT_MAX, READ_AHEAD_BYTES } from './protocol.ts'

export const DEVICE = '/dev/fuse'
/** What mountinfo and `mount -t` call us. */
const FILE_SYSTEM = 'fuse.p2pvm'
const FUSECTL = '/sys/fs/fuse/connections'
const BDI = '/sys/class/bdi'
/** mount(2) and umount(2) take milliseconds; somebody else's hung file system must not hang us. */
const COMMAND_DEADLINE_MS = 10_000

export interface FuseDevice {
  readonly fd: number
  /** Absolute, without symbolic links. */
  readonly mountpoint: string
  /** The name of our folder in fusectl. */
  readonly connection: number
}

/**
 * Mounts. ERR_NOT_FOUND: no such folder. ERR_USAGE: not a folder, or not an empty one. ERR_CONFLICT: something is mounted
 * there. ERR_NOT_ALLOWED: no device, or no privilege. A dead server's mount is removed first.
 */
export async function mountDevice (path: string, clock: Clock, log: Log): Promise<FuseDevice> {
  const mountpoint = await checkMountpoint(path, clock, log)
  const fd = openDevice()
  try {
    const options = `fd=3,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions`
    const { code, stderr } = await run('mount', ['-i', '-t', FILE_SYSTEM, '-o', options, 'p2pvm', mountpoint], fd)
    if (code !== 0) {
      throw new P2pvmError('ERR_NOT_ALLOWED', `cannot mount ${mountpoint}: ${stderr.trim()} (mounting needs root, or CAP_SYS_ADMIN in a container)`, { path: mountpoint })
    }
    await mountFusectl()
    const connection = await connectionOf(mountpoint)
    setReadAhead(connection, log)
    setDirtyShare(connection, log)
    return { fd, mountpoint, connection }
  } catch (error) {
    closeSync(fd)
    throw error
  }
}

function openDevice (): number {
  try {
    return openSync(DEVICE, 'r+')
  } catch (error) {
    throw new P2pvmError('ERR_NOT_ALLOWED', `cannot open ${DEVICE}: load the fuse module, or give the container --device ${DEVICE}`, {}, error)
  }
}

/** The folder, absolute and without symbolic links, when it can be mounted on; errors as above. */
export async function checkMountpoint (path: string, clock: Clock, log: Log): Promise<string> {
  // The folder's own name may be a dead mount, which cannot be looked at: only what leads to it is resolved.
  const absolute = resolve(path)
  const parent = await realpath(dirname(absolute)).catch((error: unknown) => { throw missing(absolute, error) })
  const mountpoint = absolute === '/' ? '/' : join(parent, basename(absolute))
  if (await isDead(mountpoint, clock)) {
    log.warn('removing the mount of a dead server', { mountpoint })
    await run(...unmountCommand(mountpoint, { lazy: true }))
  }
  if ((await mountIdsAt(mountpoint)).length > 0) throw new P2pvmError('ERR_CONFLICT', `something is mounted on ${mountpoint}`, { path: mountpoint })
  const real = await realpath(mountpoint).catch((error: unknown) => { throw missing(absolute, error) })
  if (real !== mountpoint) return await checkMountpoint(real, clock, log) // a symbolic link
  if (!(await stat(real)).isDirectory()) throw new P2pvmError('ERR_USAGE', `${real} is not a folder`, { path: real })
  if ((await readdir(real)).length > 0) throw new P2pvmError('ERR_USAGE', `${real} is not empty`, { path: real })
  return real
}

function missing (path: string, cause: unknown): P2pvmError {
  return new P2pvmError('ERR_NOT_FOUND', `there is no folder ${path}`, { path }, cause)
}

/** ENOTCONN: the server is gone and the mount is still there. */
async function isDead (path: string, clock: Clock): Promise<boolean> {
  try {
    await withDeadline(clock, COMMAND_DEADLINE_MS, [], async (signal) => await withSignal(signal, stat(path)))
    return false
  } catch (error) {
    if (isNodeError(error, 'ENOTCONN', 'ECONNABORTED')) return true
    if (error instanceof P2pvmError) throw new P2pvmError('ERR_CONFLICT', `the file system on ${path} does not answer`, { path }, error)
    return false // missing: said later
  }
}

/** Without it a mount that somebody has detached lazily could not be aborted. Best effort: /sys is read-only in some containers. */
async function mountFusectl (): Promise<void> {
  const entries = await readdir(FUSECTL).catch(() => [])
  if (entries.length === 0) await run('mount', ['-i', '-t', 'fusectl', 'fusectl', FUSECTL])
}

/** Minor device numbers of what is mounted exactly there. For FUSE, that number names the connection. */
async function mountIdsAt (mountpoint: string): Promise<number[]> {
  return parseMountinfo(await readFile('/proc/self/mountinfo', 'utf8'), mountpoint)
}

export function parseMountinfo (mountinfo: string, mountpoint: string): number[] {
  const minors: number[] = []
  for (const line of mountinfo.split('\n')) {
    const [, , device, , place] = line.split(' ')
    if (device === undefined || place === undefined || unescapeOctal(place) !== mountpoint) continue
    minors.push(Number(device.split(':')[1]))
  }
  return minors
}

/** Where a connection's file system is still mounted. */
export interface Copies {
  /** In this mount namespace. */
  readonly places: string[]
  /** A process of each other mount namespace that has it, of those that may be looked at. */
  readonly pids: number[]
}

export async function copiesOf (connection: number): Promise<Copies> {
  const pids: number[] = []
  const seen = new Set([await readlink('/proc/self/ns/mnt')])
  for (const pid of (await readdir('/proc')).map(Number).filter(Number.isInteger)) {
    try {
      const namespace = await readlink(`/proc/${pid}/ns/mnt`)
      if (seen.has(namespace)) continue
      if (placesOf(await readFile(`/proc/${pid}/mountinfo`, 'utf8'), connection).length > 0) pids.push(pid)
      seen.add(namespace)
    } catch {
      // It has ended, or is none of our business.
    }
  }
  return { places: placesOf(await readFile('/proc/self/mountinfo', 'utf8'), connection), pids }
}

/** FUSE file systems have major number 0. */
export function placesOf (mountinfo: string, connection: number): string[] {
  return mountinfo.split('\n').flatMap((line) => {
    const [, , device, , place] = line.split(' ')
    return device === `0:${connection}` && place !== undefined ? [unescapeOctal(place)] : []
  })
}

/** Blanks, tabs, newlines and backslashes are written \040 and so on. */
function unescapeOctal (field: string): string {
  if (!field.includes('\\')) return field
  const bytes = field.replace(/\\([0-7]{3})/g, (_match, digits: string) => String.fromCharCode(parseInt(digits, 8)))
  return bytes
}

export async function connectionOf (mountpoint: string): Promise<number> {
  const connection = (await mountIdsAt(mountpoint)).at(-1)
  if (connection === undefined) throw new P2pvmError('ERR_INTERNAL', `mounted ${mountpoint}, and it is not in mountinfo`)
  return connection
}

/** Only the kernel's own setting goes up; what a server says in INIT only goes down. Best effort: /sys is read-only in some containers. */
export function setReadAhead (connection: number, log: Log): void {
  try {
    writeFileSync(join(BDI, `0:${connection}`, 'read_ahead_kb'), String(READ_AHEAD_BYTES / 1024))
  } catch (error) {
    log.debug('the kernel reads ahead by no more than its default', { error: String(error) })
  }
}

/** The writeback cache alone makes use of it. Best effort, as above. */
function setDirtyShare (connection: number, log: Log): void {
  try {
    writeFileSync(join(BDI, `0:${connection}`, 'max_ratio'), String(DIRTY_PERCENT_MAX))
  } catch (error) {
    log.debug('the kernel keeps no more than its default for a mount to write', { error: String(error) })
  }
}

/** umount(2) is for root; others are helped by fusermount, as far as the mount is theirs. */
export function unmountCommand (mountpoint: string, { lazy }: { readonly lazy: boolean }): [command: string, args: string[]] {
  // There is no mount helper (-i), and nobody may answer to have the path made canonical (-c).
  if (process.geteuid?.() === 0) return ['umount', ['-i', '-c', ...lazy ? ['-l'] : [], mountpoint]]
  return ['fusermount', ['-u', ...lazy ? ['-z'] : [], mountpoint]]
}

/** False when somebody has a file open there. */
export async function unmount (device: Pick<FuseDevice, 'mountpoint'>): Promise<boolean> {
  const { code } = await run(...unmountCommand(device.mountpoint, { lazy: false }))
  return code === 0
}

/**
 * Ends the connection whatever is open: requests fail, readers of the device get ENODEV, the mount is taken out of the
 * tree. Blocks: for the way out, when nothing else may run any more.
 */
export function abortSync (device: Pick<FuseDevice, 'mountpoint' | 'connection'>): void {
  try {
    writeFileSync(join(FUSECTL, String(device.connection), 'abort'), '1')
  } catch {
    // fusectl cannot be mounted everywhere; MNT_FORCE below aborts as well.
  }
  // Not what somebody else has mounted there since.
  if (!parseMountinfo(readFileSync('/proc/self/mountinfo', 'utf8'), device.mountpoint).includes(device.connection)) return
  const [command, args] = unmountCommand(device.mountpoint, { lazy: true })
  const force = command === 'umount' ? ['-f'] : []
  spawnSync(command, [...force, ...args], { stdio: 'ignore', timeout: COMMAND_DEADLINE_MS })
}

/** Runs a command that inherits `fd`, if any, as its descriptor 3. */
async function run (command: string, args: string[], fd?: number): Promise<{ code: number | null, stderr: string }> {
  const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'pipe', ...(fd === undefined ? [] : [fd])], timeout: COMMAND_DEADLINE_MS })
  let stderr = ''
  child.stderr?.on('data', (text: Buffer) => { stderr += text.toString() })
  return await new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (code) => { resolve({ code, stderr }) })
  })
}
