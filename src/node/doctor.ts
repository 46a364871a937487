/** `p2pvm doctor`: what this machine can and cannot do, each with what was found and how to mend it. It changes nothing. */
import { access, constants, open, readFile, statfs } from 'node:fs/promises'
import { release } from 'node:os'
import { delimiter, dirname, join } from 'node:path'
import { loadLibrary } from '../mirror/fuse-native/library.ts'
import { canCall } from '../mirror/system-calls.ts'
import { errorCodeOf } from '../protocols/errors.ts'
import { ControlClient } from './control-client.ts'
import { formatBytes } from './units.ts'

export interface Check {
  readonly name: string
  readonly ok: boolean
  /** Without it a storage or compute peer does not work; else it only makes something possible. */
  readonly needed: boolean
  readonly found: string
  readonly mend: string | null
}

export interface Examined {
  readonly dataDir: string
  readonly control: string
  readonly signal: AbortSignal
}

/** linux/capability.h */
const CAP_SYS_ADMIN = 21n
/** A storage peer holds two descriptors per connection and chunk in transit; 200 peers and their streams fit. */
const OPEN_FILES_MIN = 4096
/** Room for the chunks of a small image and the free-space floor. */
const FREE_BYTES_MIN = 2 * 2 ** 30

export async function examine (examined: Examined): Promise<Check[]> {
  return await Promise.all([
    node(), kernel(), fuse(), resend(), privileges(), mountProgram(), mountWithoutRoot(), systemCalls(), openFiles(), freeSpace(examined.dataDir), daemon(examined), kvm(),
    program('qemu-img', 'imports qcow2, vmdk, vdi and vhdx images', 'Debian: apt-get install qemu-utils')
  ])
}

async function node (): Promise<Check> {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  return { name: 'node', needed: true, ok: major > 22 || (major === 22 && minor >= 15), found: process.version, mend: 'use Node 22.15 or newer; \'npm ci\' in a checkout brings one' }
}

async function kernel (): Promise<Check> {
  const [major = 0, minor = 0] = release().split('.').map((part) => parseInt(part, 10))
  return {
    name: 'kernel',
    needed: true,
    ok: process.platform === 'linux' && (major > 5 || (major === 5 && minor >= 4)),
    found: `${process.platform} ${release()}`,
    mend: 'mounting needs Linux 5.4 or newer'
  }
}

async function fuse (): Promise<Check> {
  const check = { name: 'fuse', needed: true }
  try {
    await (await open('/dev/fuse', 'r+')).close()
    return { ...check, ok: true, found: '/dev/fuse can be opened', mend: null }
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    const mend = code === 'ENOENT'
      ? 'modprobe fuse; in a container start it with --device /dev/fuse'
      : 'run as root, or let this user open /dev/fuse; in a container start it with --device /dev/fuse'
    return { ...check, ok: false, found: `/dev/fuse: ${code}`, mend }
  }
}

/** FUSE_NOTIFY_RESEND. */
async function resend (): Promise<Check> {
  const [major = 0, minor = 0] = release().split('.').map((part) => parseInt(part, 10))
  const ok = process.platform === 'linux' && (major > 6 || (major === 6 && minor >= 9))
  return {
    name: 'fuse resend',
    needed: false,
    ok,
    found: ok ? 'a mount outlives its FUSE server, and can be upgraded' : `${process.platform} ${release()}: a mount ends with its FUSE server`,
    mend: 'with Linux 6.9 or newer a FUSE server that dies is a pause, and not the end of its mount'
  }
}

async function privileges (): Promise<Check> {
  const status = await readFile('/proc/self/status', 'utf8').catch(() => '')
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)/m.exec(status)?.[1] ?? '0'}`)
  const ok = (effective >> CAP_SYS_ADMIN & 1n) === 1n
  const mend = 'mounting needs root, or else the driver fuse-native; in a container start it with --cap-add SYS_ADMIN'
  return { name: 'privileges', needed: !(await mountWithoutRoot()).ok, ok, found: ok ? 'CAP_SYS_ADMIN' : 'no CAP_SYS_ADMIN', mend }
}

async function mountProgram (): Promise<Check> {
  return { ...await program('mount', 'attaches the mount', 'Debian: apt-get install mount'), needed: true }
}

/** The second driver. Root does without, and so does a peer that mounts nothing. */
async function mountWithoutRoot (): Promise<Check> {
  const check = { name: 'without root', needed: false }
  try {
    await loadLibrary()
  } catch (error) {
    return { ...check, ok: false, found: (error as Error).message, mend: 'npm install fuse-native; only root can mount without it' }
  }
  return { ...await program('fusermount', 'lets a user mount, through the package fuse-native', 'Debian: apt-get install fuse3'), name: check.name }
}

async function systemCalls (): Promise<Check> {
  const ok = canCall()
  return {
    name: 'system calls',
    needed: false,
    ok,
    found: ok ? 'a mount gives discarded space back, and has the disk read ahead, through the package koffi' : 'the package koffi cannot be loaded: discards give no space back, and cached images are read slower',
    mend: 'npm install koffi; it is made for x64 and arm64'
  }
}

async function openFiles (): Promise<Check> {
  const limits = await readFile('/proc/self/limits', 'utf8').catch(() => '')
  const [, soft = '0', hard = '0'] = /^Max open files\s+(\S+)\s+(\S+)/m.exec(limits) ?? []
  const ok = soft === 'unlimited' || Number(soft) >= OPEN_FILES_MIN
  return { name: 'open files', needed: true, ok, found: `${soft} (at most ${hard})`, mend: `raise the limit to ${OPEN_FILES_MIN} or more: ulimit -n ${OPEN_FILES_MIN}, or LimitNOFILE= in a systemd unit` }
}

async function freeSpace (dataDir: string): Promise<Check> {
  const check = { name: 'disk', needed: true }
  for (let folder = dataDir; ; folder = dirname(folder)) {
    try {
      const { bavail, bsize, ffree } = await statfs(folder)
      await access(folder, constants.W_OK)
      const bytes = bavail * bsize
      return { ...check, ok: bytes >= FREE_BYTES_MIN, found: `${formatBytes(bytes)} and ${ffree} inodes free for ${dataDir}`, mend: `free at least ${formatBytes(FREE_BYTES_MIN)}, or choose another --data` }
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code === 'ENOENT' && folder !== dirname(folder)) continue
      return { ...check, ok: false, found: `${folder}: ${code}`, mend: 'choose a --data that this user may write to' }
    }
  }
}

async function daemon ({ control, signal }: Examined): Promise<Check> {
  const check = { name: 'daemon', needed: false, mend: 'start one with \'p2pvm daemon\', or name its socket with --control' }
  const client = new ControlClient(control)
  try {
    const { roles, membersUp, members } = await client.status({ signal })
    return { ...check, ok: true, found: `${control}: ${roles.join(', ')}; ${membersUp} of ${members} members up` }
  } catch (error) {
    return { ...check, ok: false, found: `${control}: ${errorCodeOf(error)}` }
  } finally {
    client.close()
  }
}

async function kvm (): Promise<Check> {
  const ok = await access('/dev/kvm', constants.R_OK | constants.W_OK).then(() => true, () => false)
  return { name: 'kvm', needed: false, ok, found: ok ? '/dev/kvm can be opened' : '/dev/kvm is missing or closed to this user', mend: 'virtual machines run many times slower without it' }
}

async function program (name: string, purpose: string, mend: string): Promise<Check> {
  // A user's PATH often lacks the folders of the system's own programs.
  for (const folder of [...(process.env['PATH'] ?? '').split(delimiter), '/usr/sbin', '/sbin']) {
    const path = join(folder, name)
    if (await access(path, constants.X_OK).then(() => true, () => false)) return { name, needed: false, ok: true, found: `${path}: ${purpose}`, mend: null }
  }
  return { name, needed: false, ok: false, found: `not installed: ${purpose}`, mend }
}
