/**
 * What a test needs from the machine that it runs on, and what to do when that is not there: on a developer's machine
 * the test is skipped, and its title says why; in CI, whose machine we set up ourselves, it fails.
 *
 * Packages are installed by scripts/install-debian-packages; this module only looks.
 */
import { spawnSync } from 'node:child_process'
import { accessSync, closeSync, constants, openSync, readFileSync, statfsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, it } from 'vitest'

/** The user without privileges, on every Linux. */
export const NOBODY = 65534

/** linux/magic.h. Its files are the page cache. */
const TMPFS_MAGIC = 0x01021994
const CAP_NET_ADMIN = 12n
const CAP_SYS_ADMIN = 21n

// What each means, in the order in which a reader would look for the cause.
const PROBES = {
  root: () => process.getuid?.() === 0,
  /** A FUSE mount of our own: the device can be opened, and mount(2) is permitted. */
  fuse: () => hasCapability(CAP_SYS_ADMIN) && canOpen('/dev/fuse'),
  /** The optional package, and its native half for this machine. */
  'fuse-native': () => canLoad('fuse-native'),
  /** Files in the temporary folder can be read past the page cache, and not waited for. */
  'direct-reads': () => canLoad('koffi') && statfsSync(tmpdir()).type !== TMPFS_MAGIC,
  /** A FUSE mount without root: what asks for it is unprivileged, what grants it is not. */
  fusermount: () => hasCommand('fusermount'),
  /** Somebody without privileges can run this checkout, which one below root's home folder is closed to. */
  nobody: () => hasCommand('unshare') && hasCommand('nsenter') && canRunAsNobody(),
  /** Networks of our own between processes on this machine. */
  'network-namespaces': () => hasCapability(CAP_SYS_ADMIN) && hasCapability(CAP_NET_ADMIN) && hasCommand('ip'),
  /** Processes that see other mounts than we do. */
  'mount-namespaces': () => hasCapability(CAP_SYS_ADMIN) && hasCommand('unshare'),
  /** A machine can be started; `setpriv` is what ends it with the test. */
  qemu: () => hasCommand('qemu-system-x86_64') && hasCommand('setpriv'),
  'qemu-img': () => hasCommand('qemu-img'),
  debootstrap: () => hasCommand('debootstrap'),
  'mkfs.ext4': () => hasCommand('mkfs.ext4'),
  attr: () => hasCommand('setfattr') && hasCommand('getfattr'),
  casync: () => hasCommand('casync'),
  fio: () => hasCommand('fio'),
  python3: () => hasCommand('python3'),
  /** A C compiler and the headers of the system. */
  cc: () => hasCommand('cc'),
  strace: () => hasCommand('strace')
} satisfies Record<string, () => boolean>

export type Capability = keyof typeof PROBES

/** All that a test needs which boots a Debian image with `bootGuest`. */
export const DEBIAN_GUEST: readonly Capability[] = ['root', 'qemu', 'debootstrap', 'mkfs.ext4']

const known = new Map<Capability, boolean>()

function has (name: Capability): boolean {
  let present = known.get(name)
  if (present === undefined) {
    present = PROBES[name]()
    known.set(name, present)
  }
  return present
}

/** Those of the named capabilities that this machine lacks, each once, in the order given. */
export function missingCapabilities (names: readonly Capability[]): Capability[] {
  return [...new Set(names)].filter((name) => !has(name))
}

/**
 * vitest's `describe` for tests that need something of the machine. Without it they are skipped under a title that
 * names what is missing; where CI is set they are replaced by a test that fails with the same words.
 */
export function describeWith (needs: readonly Capability[], name: string, fn: () => void): void {
  const missing = missingCapabilities(needs)
  if (missing.length === 0) {
    describe(name, fn)
    return
  }
  const lacks = `this machine lacks ${missing.join(', ')}`
  if ((process.env.CI ?? '') === '') {
    describe.skip(`${name} (skipped: ${lacks})`, fn)
    return
  }
  describe(name, () => {
    it(`needs ${missing.join(', ')}`, () => {
      throw new Error(`${lacks}; in CI that is a failure. See scripts/install-debian-packages`)
    })
  })
}

function hasCommand (command: string): boolean {
  // A user's PATH often lacks the folders where mkfs and its kind live.
  const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/local/sbin', '/usr/sbin', '/sbin']
  return folders.some((folder) => {
    try {
      accessSync(join(folder, command), constants.X_OK)
      return true
    } catch {
      return false
    }
  })
}

function canRunAsNobody (): boolean {
  const program = fileURLToPath(new URL('../../bin/p2pvm', import.meta.url))
  return spawnSync('setpriv', [`--reuid=${NOBODY}`, `--regid=${NOBODY}`, '--clear-groups', '--', program, '--version'], { stdio: 'ignore' }).status === 0
}

function canLoad (name: string): boolean {
  try {
    createRequire(import.meta.url)(name)
    return true
  } catch {
    return false
  }
}

// Root without this one is what an unprivileged container has.
function hasCapability (bit: bigint): boolean {
  try {
    const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]
    return effective !== undefined && ((BigInt(`0x${effective}`) >> bit) & 1n) === 1n
  } catch {
    return false
  }
}

// Opening is the only sure way: a container may have the device node and no permission for it. Nothing is mounted by that.
function canOpen (device: string): boolean {
  try {
    closeSync(openSync(device, constants.O_RDWR))
    return true
  } catch {
    return false
  }
}
