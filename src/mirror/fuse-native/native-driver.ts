/**
 * The driver for those without CAP_SYS_ADMIN: libfuse 2, which mounts with the help of fusermount, through the package
 * fuse-native. A native thread talks to the kernel and calls the main thread for each request; there are no workers, no
 * writeback cache, no ioctl, lseek or fallocate. The library says when it begins and never when it ends: its descriptor of
 * /dev/fuse is looked for.
 *
 * Not for: what is answered (`path-operations.ts`).
 */
import { access, constants, readdir, readlink } from 'node:fs/promises'
import { delimiter, join } from 'node:path'
import type Fuse from 'fuse-native'
import { withDeadline } from '../../protocols/abort.ts'
import { P2pvmError } from '../../protocols/errors.ts'
import type { Clock } from '../../protocols/seams.ts'
import type { Driver } from '../driver.ts'
import { abortSync, checkMountpoint, connectionOf, DEVICE, setReadAhead, unmount } from '../fuse/device.ts'
import type { DriverComponents } from '../fuse/direct-driver.ts'
import type { Operations } from '../operations.ts'
import { withSignal } from '../patience.ts'
import { createSession, loadLibrary } from './library.ts'
import { PathOperations } from './path-operations.ts'

const MOUNT_DEADLINE_MS = 10_000
/** An end that nobody tells us of is seen this late: one readlink each time. */
const LOOK_EVERY_MS = 200
const FUSERMOUNT = 'fusermount'

interface NativeDriverParts {
  readonly mountpoint: string
  readonly connection: number
  /** The library's descriptor of /dev/fuse. */
  readonly device: string | undefined
  readonly session: Fuse
  readonly operations: PathOperations
  readonly ending: AbortController
  readonly clock: Clock
}

export class NativeDriver implements Driver {
  readonly name = 'fuse-native'
  readonly writeback = false
  readonly mountpoint: string
  readonly connection: number
  readonly ended: Promise<void>
  readonly #parts: NativeDriverParts

  private constructor (parts: NativeDriverParts) {
    this.#parts = parts
    this.mountpoint = parts.mountpoint
    this.connection = parts.connection
    this.ended = this.#untilEnded()
  }

  /** Mounts. ERR_NOT_ALLOWED without the package, without fusermount where that is needed, or privilege; else as `mountDevice`. */
  static async open (path: string, components: DriverComponents): Promise<NativeDriver> {
    const { clock, log } = components
    const library = await loadLibrary()
    if (!isRoot() && !await hasFusermount()) {
      throw new P2pvmError('ERR_NOT_ALLOWED', `the driver fuse-native needs ${FUSERMOUNT} to mount without root (Debian: apt-get install fuse3)`)
    }
    const mountpoint = await checkMountpoint(path, clock, log)
    const ending = new AbortController()
    const operations = new PathOperations(ending.signal, components)
    const session = createSession(library, mountpoint, operations.handlers(), mountOptions())
    const before = new Set(await devices())
    await withDeadline(clock, MOUNT_DEADLINE_MS, [], async (signal) => { await withSignal(signal, mounted(session, mountpoint)) })
    const connection = await connectionOf(mountpoint)
    setReadAhead(connection, log)
    const device = (await devices()).find((descriptor) => !before.has(descriptor))
    return new NativeDriver({ mountpoint, connection, device, session, operations, ending, clock })
  }

  get counters (): Record<string, number> {
    return this.#parts.operations.counters
  }

  async serve (operations: Operations): Promise<{ resend: boolean }> {
    this.#parts.operations.begin(operations)
    return { resend: false }
  }

  /** Until the library has closed its device: unmounted, which is later when somebody still has a file open; or aborted. */
  async #untilEnded (): Promise<void> {
    const { device, clock, ending } = this.#parts
    while (device !== undefined && await isDevice(device)) await clock.sleep(LOOK_EVERY_MS)
    ending.abort(new P2pvmError('ERR_ABORTED', 'the mount has ended'))
  }

  // Nobody answers but the main thread, which knows already; and the kernel has nothing that it would have to write back.

  async publish (): Promise<void> {}

  async withdraw (): Promise<void> {}

  async quiesce (): Promise<void> {}

  async flushPages (): Promise<void> {}

  async unmount (): Promise<boolean> {
    return await unmount(this)
  }

  abort (): void {
    abortSync(this)
  }

  /** The library holds the process's event loop until it is told. */
  close (): void {
    this.#parts.session.unmount(() => {})
  }
}

async function mounted (session: Fuse, mountpoint: string): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    session.mount((error) => {
      if (error === null) resolve()
      else reject(new P2pvmError('ERR_NOT_ALLOWED', `fuse-native cannot mount ${mountpoint}: ${error.message}; this user has to be let into ${DEVICE}`, { path: mountpoint }, error))
    })
  })
}

function mountOptions (): string[] {
  return [
    'fsname=p2pvm', 'subtype=p2pvm', // `fuse.p2pvm` in mountinfo, as the other driver's
    'default_permissions',
    'big_writes', // else every write comes in pages
    // Not direct_io, with which small writes take half the time, and which refuses a shared mapping.
    // Others may look in where root mounts. Whoever is not root must be let by /etc/fuse.conf, and has said nothing of the kind.
    ...isRoot() ? ['allow_other'] : ['auto_unmount'] // fusermount waits, and unmounts when this process is killed
  ]
}

function isRoot (): boolean {
  return process.geteuid?.() === 0
}

async function hasFusermount (): Promise<boolean> {
  for (const folder of (process.env['PATH'] ?? '').split(delimiter)) {
    if (await access(join(folder, FUSERMOUNT), constants.X_OK).then(() => true, () => false)) return true
  }
  return false
}

/** Descriptors of this process that are open /dev/fuse. */
async function devices (): Promise<string[]> {
  const found: string[] = []
  for (const descriptor of await readdir(OWN_DESCRIPTORS)) if (await isDevice(descriptor)) found.push(descriptor)
  return found
}

async function isDevice (descriptor: string): Promise<boolean> {
  return await readlink(join(OWN_DESCRIPTORS, descriptor)).catch(() => '') === DEVICE
}

const OWN_DESCRIPTORS = '/proc/self/fd'
