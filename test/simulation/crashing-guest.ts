/**
 * A machine on a working copy, on files that crash: the mount's main thread and one of its workers, and the daemon's half of a
 * commit, all of them the production classes. What is asked of it is told to the model.
 */
import { createHash } from 'node:crypto'
import { Committer } from '../../src/mirror/commit.ts'
import { readCommitIntent } from '../../src/mirror/commit-intent.ts'
import { ChunkFiles } from '../../src/mirror/chunk-files.ts'
import { FileView, type FileViewInit } from '../../src/mirror/file-view.ts'
import { MountedCopy } from '../../src/mirror/mounted-copy.ts'
import type { CopyInode } from '../../src/mirror/namespace.ts'
import type { Sealable } from '../../src/mirror/sealable.ts'
import type { VersionRef } from '../../src/mirror/source.ts'
import { unmountedSealable } from '../../src/mirror/unmounted-copy.ts'
import { VersionTables } from '../../src/mirror/version-tables.ts'
import { baseOf, readWorkingCopy } from '../../src/mirror/working-copy.ts'
import { nodeClock as clock } from '../../src/node/world.ts'
import { chunkPath } from '../../src/dht/chunk-path.ts'
import type { Random } from '../../src/protocols/seams.ts'
import type { Chance } from '../harness/seed.ts'
import type { CrashingFiles } from './crashing-files.ts'
import type { DiskModel } from './disk-model.ts'
import type { Fate, ForkedFabric } from './forked-fabric.ts'
import { ROOT, runOn } from './node-fs.ts'

export const WORKING = `${ROOT}/working`
export const NAME = 'vm1'
const CACHE = `${ROOT}/cache`
const FOLDER = `${WORKING}/${NAME}`
const DEADLINE_MS = 10_000
const quiet = { debug () {}, info () {}, warn () {}, error () {} }
const { signal } = new AbortController()

export interface Surroundings {
  readonly files: CrashingFiles
  readonly fabric: ForkedFabric
  readonly chance: Chance
  readonly model?: DiskModel
}

/** At most 32 bytes at a time. */
export function randomOf (chance: Chance): Random {
  return { bytes: (count: number) => createHash('sha256').update(String(chance.unit())).digest().subarray(0, count), unit: () => chance.unit() }
}

export class CrashingGuest {
  readonly #around: Surroundings
  readonly #random: Random
  readonly #committer: Committer
  #copy: MountedCopy | undefined
  #worker: FileView | undefined
  #lastPid = 100
  /** While the kernel flushes for a seal, and while a fold lets others in. */
  onFlush: () => Promise<void> = async () => {}

  private constructor (around: Surroundings) {
    this.#around = around
    this.#random = randomOf(around.chance)
    const { blobs, chunks, cache } = around.fabric
    this.#committer = new Committer({ blobs, chunks, cache, clock, random: this.#random })
  }

  /** The first process on these files, or the next one. */
  static async start (around: Surroundings): Promise<CrashingGuest> {
    runOn(around.files, around.chance)
    const guest = new CrashingGuest(around)
    await guest.#open()
    return guest
  }

  async #open (): Promise<void> {
    const { files, fabric } = this.#around
    const source = {
      chunkIds: async (ref: VersionRef, first: number, count: number) => fabric.idsOf(ref).slice(first, first + count),
      fetch: async (ids: readonly string[]) => {
        for (const id of ids) files.plant(chunkPath(CACHE, id), fabric.chunk(id))
        return []
      }
    }
    const chunkFiles = new ChunkFiles({ source, clock, log: quiet, quiesce: async () => {}, signal }, { folder: CACHE, openMax: 100, missDeadlineMs: DEADLINE_MS })
    const state = await readWorkingCopy(WORKING, NAME)
    const inode: CopyInode = { kind: 'copy', ino: BigInt(state.ino), name: NAME, ref: baseOf(state), size: state.size, unborn: false, mtimeMs: 0 }
    this.#copy = await MountedCopy.open(inode, 1, {
      clock, random: this.#random, log: quiet, signal, chunkFiles,
      tables: new VersionTables({ source, clock, folder: `${ROOT}/versions` }, chunkFiles),
      working: WORKING,
      holder: 'this mount',
      missDeadlineMs: DEADLINE_MS,
      publish: async (view: FileViewInit) => { this.#worker = new FileView(view) },
      writeback: true,
      startFsync: () => this.#startFsync()
    })
  }

  #startFsync (): { pid: number, done: Promise<void> } {
    const pid = ++this.#lastPid
    const done = async (): Promise<void> => {
      await this.onFlush()
      await this.copy.fsync(pid)
    }
    return { pid, done: done() }
  }

  get copy (): MountedCopy {
    if (this.#copy === undefined) throw new Error('nobody has it open')
    return this.#copy
  }

  /** As a worker does it, or the main thread. */
  async write (offset: number, bytes: Buffer): Promise<void> {
    const end = offset + bytes.length
    const answered = this.#around.model?.write(offset, bytes)
    if (this.#worker?.takesWrite(offset, end) === true) this.#worker.writeFrom(bytes, 0, offset, end)
    else await this.copy.file.write(offset, bytes)
    answered?.()
  }

  async zero (from: number, to: number): Promise<void> {
    const answered = this.#around.model?.write(from, new Uint8Array(to - from))
    await this.copy.file.zero(from, to)
    answered?.()
  }

  async grow (size: number): Promise<void> {
    const answered = this.#around.model?.grow(size)
    await this.copy.grow(size)
    answered?.()
  }

  async fsync (): Promise<void> {
    const synced = this.#around.model?.sync()
    await this.copy.fsync(1)
    synced?.()
  }

  /** The whole file. */
  async read (): Promise<Buffer> {
    return await this.copy.file.read(0, this.copy.file.size)
  }

  /** The version; undefined when it failed, as it was to. With nobody having it open when it is `unmounted`. */
  async commit ({ fate = 'answered', unmounted = false }: { fate?: Fate, unmounted?: boolean } = {}): Promise<VersionRef | undefined> {
    const { fabric, model } = this.#around
    const durable = model?.sync()
    try {
      return await this.#with(unmounted, async (sealable) => {
        fabric.fate = fate
        const [committed] = await this.#committer.commit({ members: [{ folder: FOLDER, sealable }], seal: async (signal) => [await sealable.seal(signal)] })
        durable?.()
        return committed!.version
      })
    } catch (error) {
      if (fate === 'answered') throw error
      return undefined
    }
  }

  async clone (): Promise<void> {
    await this.#committer.clone(async () => await readWorkingCopy(WORKING, NAME), { member: { folder: FOLDER, sealable: this.copy } })
  }

  /** Back to the version that it lies on, or to the one that an unfinished commit has made. */
  async revert (): Promise<void> {
    const { fabric, model } = this.#around
    const intent = await readCommitIntent(FOLDER)
    const base = (intent === undefined ? undefined : fabric.published(intent.request.requestId)) ?? baseOf(await readWorkingCopy(WORKING, NAME))
    const reverted = model?.revert(fabric.bytesOf(base))
    await this.#committer.revert({ folder: FOLDER, sealable: this.copy })
    reverted?.()
  }

  async remount (): Promise<void> {
    await this.#close()
    await this.#open()
  }

  async #close (): Promise<void> {
    await this.copy.close()
    this.#copy = undefined
    this.#worker = undefined
  }

  async #with<T> (unmounted: boolean, work: (sealable: Sealable) => Promise<T>): Promise<T> {
    if (!unmounted) return await work(this.copy)
    await this.#close()
    try {
      return await work(unmountedSealable(WORKING, NAME, this.#random))
    } finally {
      await this.#open()
    }
  }
}
