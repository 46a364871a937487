/**
 * A mount as the process that serves it has it: composes driver, namespace and open files, and ends them in order. One per process
 * is usual; the process's own ways out are in `exits.ts`. One that is *kept* takes the device from its keeper (`keeper.ts`) and
 * writes a journal; one after it takes both over. Without a keeper (`startMount`) the mount ends with its process.
 *
 * Every way out goes through `unmount` or `abort`: a worker that blocks in read on the device survives process.exit.
 */
import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setImmediate } from 'node:timers'
import { withDeadline } from '../../protocols/abort.ts'
import { P2pvmError } from '../../protocols/errors.ts'
import type { Clock, Log, Random } from '../../protocols/seams.ts'
import { ChunkFiles } from '../chunk-files.ts'
import { chooseDriver, type Driver, type DriverChoice, type DriverName } from '../driver.ts'
import { ERRNO, errnoOf } from '../errno.ts'
import { NativeDriver } from '../fuse-native/native-driver.ts'
import type { KernelState } from '../kernel-state.ts'
import { type Journal, MountJournal, type MountIdentity, NO_JOURNAL } from '../mount-journal.ts'
import type { MountedCopy } from '../mounted-copy.ts'
import { Namespace } from '../namespace.ts'
import { OpenFiles } from '../open-files.ts'
import { Operations } from '../operations.ts'
import type { LockOwner } from '../processes.ts'
import { type GroupSealable, sealTogether, type Together } from '../seal-together.ts'
import type { Sealable, Sealed } from '../sealable.ts'
import type { MirrorFolders, MirrorSource } from '../source.ts'
import type { Trace } from '../trace.ts'
import { VersionTables } from '../version-tables.ts'
import { releaseInheritedLocks, sweepWorkingFolder } from '../working-copy.ts'
import { Commands } from './commands.ts'
import { copiesOf, type FuseDevice } from './device.ts'
import { DirectDriver } from './direct-driver.ts'
import { startFsync } from './fsync-process.ts'

export interface ServeInit {
  readonly source: MirrorSource
  readonly folders: MirrorFolders
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
  /** A read that waits for the fabric gets EIO after this. */
  readonly missDeadlineMs?: number
  /** Of the direct driver. */
  readonly workers?: number
  /** Gets a line per request that the main thread has answered. */
  readonly trace?: Trace | undefined
}

export interface MountInit extends ServeInit {
  readonly mountpoint: string
  /** `auto` unless told. */
  readonly driver?: DriverChoice | undefined
}

/** What a keeper hands to each of its servers. */
export interface Kept {
  /** Path of the journal. */
  readonly journal: string
  /** There was a server before this one. */
  readonly successor: boolean
  /** The keeper, and this server of it. */
  readonly owner: LockOwner
}

export interface OpenCopyInfo {
  readonly name: string
  readonly openCount: number
}

export interface Mount {
  /** Absolute, without symbolic links. */
  readonly mountpoint: string
  readonly driver: DriverName
  /** Of fusectl. */
  readonly connection: number
  /** The kernel keeps what a killed server has not answered. Of one that took over: it did. */
  readonly resend: boolean
  /** A working copy of this mount, by name; each call opens it for as long as it lasts. */
  sealable (name: string): Sealable
  /** Working copies of this mount, cut at one moment; see seal-together.ts. */
  sealTogether (names: readonly string[], signal: AbortSignal): Promise<Sealed[]>
  /** The name of the working copy at a path below the mountpoint, brought into being if it is an alias. ERR_NOT_FOUND, ERR_NOT_ALLOWED for a version. */
  workingCopyAt (path: readonly string[]): Promise<string>
  /** Working copies that this mount has open. */
  workingCopies (): OpenCopyInfo[]
  /** Requests that reached the main thread by opcode, and what became of cache files. */
  counters (): Record<string, number>
  /** Resolves when the mount has ended, whoever ended it, and everything is closed. */
  readonly closed: Promise<void>
  /** Flushes, then unmounts. While files are open: ERR_CONFLICT, or with `force` their users get errors from now on. */
  unmount (options?: { force?: boolean }): Promise<void>
  /**
   * Ends what is unmounted here and goes on, because another mount namespace (a container's, say) was made with a copy of it. Returns a process of
   * each of those. ERR_CONFLICT while files are open there, or it is still mounted here.
   */
  leave (): Promise<number[]>
  /** Ends the connection at once, without waiting for anything. What was answered is safe. */
  abort (): void
  /** Only with P2PVM_TEST_HOOKS=1. */
  readonly testHooks?: TestHooks
}

export interface TestHooks {
  blockMainThread (ms: number): void
  throwInMainThread (): void
}

const MISS_DEADLINE_MS = 30_000
/** As many as evidence.md measured: one reads the next request while the other answers. */
const WORKERS = 2
/** Descriptors left for overlays, sockets and Node itself. */
const DESCRIPTORS_RESERVED = 512
const CHUNKS_OPEN_MAX = 16 * 1024
const CHUNKS_OPEN_MIN = 64
/** On the way out dirty pages are flushed for so long, then the connection is ended all the same. */
const FLUSH_DEADLINE_MS = 3_000

export async function startMount (init: MountInit): Promise<Mount> {
  const { mountpoint, clock, log, trace, workers = WORKERS } = init
  const components = { clock, log, trace }
  const driver = await chooseDriver<Driver>(init.driver ?? 'auto', {
    direct: async () => await DirectDriver.open(mountpoint, workers, components),
    'fuse-native': async () => await NativeDriver.open(mountpoint, components)
  })
  try {
    return await serveDriver(driver, init)
  } catch (error) {
    driver.abort()
    throw error
  }
}

/**
 * Serves what is mounted, or goes on serving it. When this throws the device is left as it is, and a worker may be blocked on it:
 * the mount is to be aborted, or the process to be killed and followed by another one.
 */
export async function serveDevice (device: FuseDevice, init: ServeInit, kept: Kept): Promise<Mount> {
  const { clock, log, trace, workers = WORKERS } = init
  return await serveDriver(new DirectDriver(device, workers, { clock, log, trace }), init, kept)
}

async function serveDriver (driver: Driver, init: ServeInit, kept?: Kept): Promise<Mount> {
  const { clock, random, log, folders, source, missDeadlineMs = MISS_DEADLINE_MS } = init
  mkdirSync(folders.working, { recursive: true })
  await sweepWorkingFolder(folders.working)
  const { journal, identity: { holder, startedMs }, before } = journalOf(kept, init)
  const ending = new AbortController()
  const chunkFiles = new ChunkFiles(
    { source, clock, log, quiesce: async () => { await driver.quiesce() }, signal: ending.signal },
    { folder: folders.cache, openMax: openChunksMax(), missDeadlineMs })
  const tables = new VersionTables({ source, clock, folder: join(folders.mounts, 'versions') }, chunkFiles)
  const namespace = new Namespace({ source, clock, random, working: folders.working, startedMs })
  const files = new OpenFiles({
    clock, random, log, chunkFiles, tables, missDeadlineMs, holder, journal,
    working: folders.working,
    writeback: driver.writeback,
    owner: kept?.owner,
    signal: ending.signal,
    publish: async (view) => { await driver.publish(view) },
    withdraw: async (fh) => { await driver.withdraw(fh) },
    flushPages: async (ino, from, to) => { await driver.flushPages(ino, from, to) },
    startFsync: (name, signal) => startFsync(join(driver.mountpoint, 'working', name), signal)
  })
  const commands = new Commands({ source, journal, mount: holder, signal: ending.signal })
  const operations = new Operations({ namespace, files, commands, working: folders.working, clock, missDeadlineMs })
  const mount = new RunningMount({ driver, namespace, files, tables, chunkFiles, clock, log, ending })
  if (before !== undefined) await mount.restore(before)
  mount.resend = (await driver.serve(operations, { journal, resend: kept !== undefined, before })).resend
  if (before !== undefined) {
    await files.publish()
    commands.restore(before.commands.values())
  }
  if (kept !== undefined) await releaseInheritedLocks(folders.working, kept.owner)
  void chunkFiles.keepNotingUses()
  return mount
}

interface OpenedJournal {
  readonly journal: Journal
  readonly identity: MountIdentity
  /** What there was before this server. */
  readonly before: KernelState | undefined
}

function journalOf (kept: Kept | undefined, { random, clock, log }: ServeInit): OpenedJournal {
  if (kept?.successor === true) {
    const journal = MountJournal.open(kept.journal, log)
    return { journal, identity: journal.mount, before: journal.state }
  }
  const identity = { holder: Buffer.from(random.bytes(8)).toString('hex'), startedMs: clock.now() }
  return { journal: kept === undefined ? NO_JOURNAL : MountJournal.create(kept.journal, identity, log), identity, before: undefined }
}

interface MountParts {
  readonly driver: Driver
  readonly namespace: Namespace
  readonly files: OpenFiles
  readonly tables: VersionTables
  readonly chunkFiles: ChunkFiles
  readonly clock: Clock
  readonly log: Log
  readonly ending: AbortController
}

class RunningMount implements Mount {
  readonly mountpoint: string
  readonly driver: DriverName
  readonly closed: Promise<void>
  readonly testHooks?: TestHooks
  resend = false
  readonly #parts: MountParts
  #ended = false

  constructor (parts: MountParts) {
    this.#parts = parts
    this.mountpoint = parts.driver.mountpoint
    this.driver = parts.driver.name
    this.closed = parts.driver.ended.then(async () => {
      this.#ended = true // from now on the connection's number may be another one's
      await this.#close()
    })
    if (process.env.P2PVM_TEST_HOOKS === '1') this.testHooks = TEST_HOOKS
  }

  get connection (): number {
    return this.#parts.driver.connection
  }

  /** All that the kernel takes for known, before it is answered anything. */
  async restore (before: KernelState): Promise<void> {
    const { namespace, files, clock, ending } = this.#parts
    await namespace.restore(before.inodes)
    await files.restore(before.files, before.lastFh, (ino) => namespace.inode(ino))
    for (const name of before.committing) {
      const inode = await withDeadline(clock, MISS_DEADLINE_MS, [ending.signal], async (signal) => await namespace.walk(['working', name], signal)).catch(() => undefined)
      if (inode !== undefined) await files.resumeCommit(inode)
    }
  }

  async sealTogether (names: readonly string[], signal: AbortSignal): Promise<Sealed[]> {
    return await sealTogether(names.map((name) => this.#copyNamed(name)), this.#parts.clock, signal)
  }

  sealable (name: string): Sealable {
    return this.#copyNamed(name)
  }

  #copyNamed (name: string): Sealable & GroupSealable {
    const withCopy = async <T> (signal: AbortSignal, work: (copy: MountedCopy) => Promise<T>): Promise<T> => {
      const inode = await this.#parts.namespace.walk(['working', name], signal)
      return await this.#parts.files.withCopy(inode, work)
    }
    return {
      seal: async (signal, together?: Together) => await withCopy(signal, async (copy) => await copy.seal(signal, together)),
      rebase: async (version, signal) => { await withCopy(signal, async (copy) => { await copy.rebase(version, signal) }) },
      unseal: async (signal) => { await withCopy(signal, async (copy) => { await copy.unseal(signal) }) },
      reassign: async (version, signal) => { await withCopy(signal, async (copy) => { await copy.reassign(version, signal) }) },
      revert: async (signal) => { await withCopy(signal, async (copy) => { await copy.revert(signal) }) }
    }
  }

  async workingCopyAt (path: readonly string[]): Promise<string> {
    const { clock, ending, namespace, files } = this.#parts
    const inode = await withDeadline(clock, MISS_DEADLINE_MS, [ending.signal], async (signal) => await namespace.walk(path, signal))
      .catch((error: unknown) => { throw errnoOf(error) === ERRNO.ENOENT ? new P2pvmError('ERR_NOT_FOUND', `there is no ${path.join('/')}`, {}, error) : error })
    return await files.withCopy(inode, async (copy) => {
      await copy.makeWritable()
      return copy.inode.name
    })
  }

  workingCopies (): OpenCopyInfo[] {
    return this.#parts.files.copies().map(({ inode, openCount }) => ({ name: inode.name, openCount }))
  }

  counters (): Record<string, number> {
    const chunks = Object.entries(this.#parts.chunkFiles.counters).map(([name, value]) => [`chunks_${name}`, value])
    return { ...this.#parts.driver.counters, ...Object.fromEntries(chunks) as Record<string, number> }
  }

  async unmount (options: { force?: boolean } = {}): Promise<void> {
    await this.#flush()
    if (!await this.#parts.driver.unmount()) {
      if (options.force !== true) throw new P2pvmError('ERR_CONFLICT', `files are open under ${this.mountpoint}`, { path: this.mountpoint })
      this.abort()
    }
    await this.closed
  }

  async leave (): Promise<number[]> {
    const { mountpoint, connection } = this
    const { files, log } = this.#parts
    const { places, pids } = await copiesOf(connection)
    if (this.#ended) return []
    if (places.length > 0) throw new P2pvmError('ERR_CONFLICT', `what was at ${mountpoint} is still mounted at ${places.join(', ')}`, { path: places[0] ?? '' })
    if (files.openCount > 0) {
      const where = pids.length === 0 ? 'where it was mounted before' : `in the mount namespace of process ${pids.join(', ')}`
      throw new P2pvmError('ERR_CONFLICT',
        `nothing is mounted at ${mountpoint} any more, but ${where} files of it are open (${files.openCount}): close them, and unmount again, or use --force`, { path: mountpoint, ...pids[0] === undefined ? {} : { pid: pids[0] } })
    }
    log.warn('ending a mount that only other mount namespaces have', { mountpoint, pids })
    // Of files that nobody has open the kernel keeps nothing back: their last close brought it.
    this.abort()
    return pids
  }

  abort (): void {
    if (!this.#ended) this.#parts.driver.abort()
  }

  /** What programs have written and the kernel still has. */
  async #flush (): Promise<void> {
    const { files, clock, log, ending } = this.#parts
    const open = files.copies().filter(({ openCount }) => openCount > 0)
    await withDeadline(clock, FLUSH_DEADLINE_MS, [ending.signal], async (signal) => {
      await Promise.all(open.map(async ({ inode }) => {
        try {
          await startFsync(join(this.mountpoint, 'working', inode.name), signal).done
        } catch (error) {
          log.warn('cannot flush a working copy before unmounting', { name: inode.name, error: String(error) })
        }
      }))
    })
  }

  async #close (): Promise<void> {
    const { files, tables, driver, ending } = this.#parts
    ending.abort(new P2pvmError('ERR_ABORTED', 'the mount has ended'))
    await files.close()
    await tables.close()
    driver.close()
  }
}

function openChunksMax (): number {
  const [, soft] = /^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8')) ?? []
  return Math.max(CHUNKS_OPEN_MIN, Math.min(CHUNKS_OPEN_MAX, Number(soft ?? 1024) - DESCRIPTORS_RESERVED))
}

const TEST_HOOKS: TestHooks = {
  blockMainThread (ms) {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)
  },
  throwInMainThread () {
    setImmediate(() => { throw new Error('thrown by a test hook') })
  }
}
