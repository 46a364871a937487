/**
 * A mount: composes device, server, namespace and open files, and ends them in order. One per process is usual; the
 * process's own ways out are in `exits.ts`.
 *
 * Every way out goes through `unmount` or `abortSync`: a worker that blocks in read on the device survives process.exit.
 */
import { closeSync, mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setImmediate } from 'node:timers'
import { withDeadline } from '../../protocols/abort.ts'
import { P2pvmError } from '../../protocols/errors.ts'
import type { Clock, Log, Random } from '../../protocols/seams.ts'
import { ChunkFiles } from '../chunk-files.ts'
import type { MountedCopy } from '../mounted-copy.ts'
import { Namespace } from '../namespace.ts'
import { OpenFiles } from '../open-files.ts'
import { withSignal } from '../patience.ts'
import type { Sealable } from '../sealable.ts'
import type { MirrorFolders, MirrorSource } from '../source.ts'
import { VersionTables } from '../version-tables.ts'
import { sweepWorkingFolder } from '../working-copy.ts'
import { Commands } from './commands.ts'
import { abortSync, type FuseDevice, mountDevice, unmount } from './device.ts'
import { startFsync } from './fsync-process.ts'
import { Handlers } from './handlers.ts'
import { FuseServer } from './server.ts'

export interface MountInit {
  readonly mountpoint: string
  readonly source: MirrorSource
  readonly folders: MirrorFolders
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
  /** A read that waits for the fabric gets EIO after this. */
  readonly missDeadlineMs?: number
  readonly workers?: number
}

export interface OpenCopyInfo {
  readonly name: string
  readonly openCount: number
}

export interface Mount {
  /** Absolute, without symbolic links. */
  readonly mountpoint: string
  /** Of fusectl. */
  readonly connection: number
  /** A working copy of this mount, by name; each call opens it for as long as it lasts. */
  sealable (name: string): Sealable
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
/** INIT is the kernel's first request after mount(2). */
const INIT_DEADLINE_MS = 10_000
/** On the way out dirty pages are flushed for so long, then the connection is ended all the same. */
const FLUSH_DEADLINE_MS = 3_000

export async function startMount (init: MountInit): Promise<Mount> {
  const { clock, random, log, folders, source } = init
  mkdirSync(folders.working, { recursive: true })
  await sweepWorkingFolder(folders.working)
  const device = await mountDevice(init.mountpoint, clock, log)
  try {
    const ending = new AbortController()
    const server = new FuseServer({ deviceFd: device.fd, workers: init.workers ?? WORKERS }, { clock, log })
    const missDeadlineMs = init.missDeadlineMs ?? MISS_DEADLINE_MS
    const chunkFiles = new ChunkFiles(
      { source, clock, log, quiesce: async () => { await server.quiesce() }, signal: ending.signal },
      { folder: folders.cache, openMax: openChunksMax(), missDeadlineMs })
    const tables = new VersionTables({ source, clock, folder: join(folders.mounts, 'versions') }, chunkFiles)
    const namespace = new Namespace({ source, clock, random, working: folders.working })
    const files = new OpenFiles({
      clock, random, log, chunkFiles, tables, missDeadlineMs,
      working: folders.working,
      holder: Buffer.from(random.bytes(8)).toString('hex'),
      signal: ending.signal,
      publish: async (view) => { await server.publish(view) },
      withdraw: async (fh) => { await server.withdraw(fh) },
      flushPages: async (ino, from, to) => { await server.flushPages(ino, from, to) },
      startFsync: (name, signal) => startFsync(join(device.mountpoint, 'working', name), signal)
    })
    const mount = new RunningMount({ device, server, namespace, files, tables, chunkFiles, clock, log, ending })
    await mount.start(source, folders.working, missDeadlineMs)
    void chunkFiles.keepNotingUses()
    return mount
  } catch (error) {
    abortSync(device)
    throw error
  }
}

interface MountParts {
  readonly device: FuseDevice
  readonly server: FuseServer
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
  readonly connection: number
  readonly closed: Promise<void>
  readonly testHooks?: TestHooks
  readonly #parts: MountParts
  #ended = false

  constructor (parts: MountParts) {
    this.#parts = parts
    this.mountpoint = parts.device.mountpoint
    this.connection = parts.device.connection
    this.closed = parts.server.ended.then(async () => {
      this.#ended = true // from now on the connection's number may be another one's
      await this.#close()
    })
    if (process.env.P2PVM_TEST_HOOKS === '1') this.testHooks = TEST_HOOKS
  }

  /** Returns when the kernel has been answered its INIT. */
  async start (source: MirrorSource, working: string, missDeadlineMs: number): Promise<void> {
    const { server, namespace, files, clock, ending } = this.#parts
    const commands = new Commands(source, ending.signal)
    const initialised = new Promise<void>((resolve) => {
      server.start(new Handlers({ namespace, files, commands, working, clock, missDeadlineMs, onInit: resolve }))
    })
    await withDeadline(clock, INIT_DEADLINE_MS, [], async (signal) => { await withSignal(signal, initialised) })
  }

  sealable (name: string): Sealable {
    const withCopy = async <T> (signal: AbortSignal, work: (copy: MountedCopy) => Promise<T>): Promise<T> => {
      const inode = await this.#parts.namespace.walk(['working', name], signal)
      return await this.#parts.files.withCopy(inode, work)
    }
    return {
      seal: async (signal) => await withCopy(signal, async (copy) => await copy.seal(signal)),
      rebase: async (version, signal) => { await withCopy(signal, async (copy) => { await copy.rebase(version, signal) }) },
      unseal: async (signal) => { await withCopy(signal, async (copy) => { await copy.unseal(signal) }) },
      reassign: async (version, signal) => { await withCopy(signal, async (copy) => { await copy.reassign(version, signal) }) },
      revert: async (signal) => { await withCopy(signal, async (copy) => { await copy.revert(signal) }) }
    }
  }

  async workingCopyAt (path: readonly string[]): Promise<string> {
    const { clock, ending, namespace, files } = this.#parts
    const inode = await withDeadline(clock, MISS_DEADLINE_MS, [ending.signal], async (signal) => await namespace.walk(path, signal))
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
    return { ...this.#parts.server.counters, ...Object.fromEntries(chunks) as Record<string, number> }
  }

  async unmount (options: { force?: boolean } = {}): Promise<void> {
    await this.#flush()
    if (!await unmount(this.#parts.device)) {
      if (options.force !== true) throw new P2pvmError('ERR_CONFLICT', `files are open under ${this.mountpoint}`, { path: this.mountpoint })
      this.abort()
    }
    await this.closed
  }

  abort (): void {
    if (!this.#ended) abortSync(this.#parts.device)
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
    const { files, tables, device, ending } = this.#parts
    ending.abort(new P2pvmError('ERR_ABORTED', 'the mount has ended'))
    await files.close()
    await tables.close()
    closeSync(device.fd)
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
