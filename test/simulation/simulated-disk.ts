/**
 * A disk and a key-value store that lose what was not synced when the power goes. The seed decides what of that survives
 * all the same, because a real disk keeps some of it: any subset of the names, any sectors of the contents.
 *
 * Every operation is a step of the `Power` that both share; `crashAfter` cuts it at one of them, which then happens or not,
 * and every later one fails. `recover()` is the same disk at the next start.
 */
import { posix } from 'node:path'
import type { Clock, Disk, DiskFile, DiskStat, KeyValueStore } from '../../src/protocols/seams.ts'
import { Chance } from '../harness/seed.ts'

/** What a disk writes whole. */
const SECTOR_BYTES = 512
/** Operations that were begun together end in an order that the seed decides. */
const TURNS_MAX = 4

export class Power {
  readonly chance: Chance
  #crashAt = Infinity
  #fatal: string | undefined
  steps = 0

  constructor (seed: string | Chance) {
    this.chance = typeof seed === 'string' ? new Chance(seed) : seed
  }

  /** At the nth operation from now. */
  crashAfter (steps: number): this {
    this.#crashAt = this.steps + steps
    return this
  }

  /** At the next operation of this name; undefined: not any more. */
  crashAtNext (operation: string | undefined): void {
    this.#fatal = operation
  }

  cut (): void {
    this.crashAfter(0)
  }

  get isOff (): boolean {
    return this.steps >= this.#crashAt
  }

  /** One operation: at its own time it takes effect, unless the power is off. When the power goes just then, chance decides. */
  async step<T> (effect: () => T, operation = ''): Promise<T> {
    this.assertOn()
    for (let turns = this.chance.below(TURNS_MAX); turns >= 0; turns--) await Promise.resolve()
    this.assertOn()
    if (operation === this.#fatal) this.crashAfter(1)
    this.steps += 1
    if (this.isOff && this.chance.unit() < 0.5) this.assertOn()
    const result = effect()
    this.assertOn()
    return result
  }

  assertOn (): void {
    if (this.isOff) throw new Error('the power is off')
  }
}

interface Inode {
  readonly folder: boolean
  synced: Uint8Array
  written: Uint8Array
  unsynced: Array<{ bytes: Uint8Array, position: number }>
  mtimeMs: number
}

type Names = Map<string, Inode>

/** A change of names: lost in a crash, or not, until `folder` was synced. */
interface NameChange {
  readonly folder: string
  readonly apply: (names: Names) => void
  durable: boolean
}

export interface SimulatedDiskInit {
  readonly power: Power
  readonly clock: Clock
  readonly capacityBytes?: number
  /** A disk, or a store, that skips a sync: what the crash tests must find out. */
  readonly forgets?: 'datasync' | 'syncDirectory' | undefined
  /** Behind the name of each of its operations: one power may have several disks. */
  readonly name?: string
}

export class SimulatedDisk implements Disk {
  readonly #init: SimulatedDiskInit
  readonly #atStart: Names
  readonly #names: Names
  readonly #changes: NameChange[] = []
  /** Calls by operation name. */
  readonly calls = new Map<string, number>()

  constructor (init: SimulatedDiskInit, names: Names = new Map([['/', newInode(true, 0)]])) {
    this.#init = init
    this.#atStart = new Map(names)
    this.#names = new Map(names)
  }

  /** The disk at the next start, with power of its own. */
  recover (init: SimulatedDiskInit): SimulatedDisk {
    const { chance } = this.#init.power
    const names = new Map(this.#atStart)
    for (const { durable, apply } of this.#changes) if (durable || chance.unit() < 0.5) apply(names)
    for (const path of [...names.keys()].sort()) if (path !== '/' && names.get(posix.dirname(path))?.folder !== true) names.delete(path)
    const after = new Map<Inode, Inode>()
    for (const inode of names.values()) after.set(inode, afterCrash(inode, chance))
    return new SimulatedDisk(init, new Map([...names].map(([path, inode]) => [path, after.get(inode) as Inode])))
  }

  /** Bit rot: one byte of the file turns over, on disk and in memory. */
  corrupt (path: string): void {
    const inode = this.#inode(path)
    inode.written = inode.written.slice()
    inode.written[0] = (inode.written[0] ?? 0) ^ 0xff
    inode.synced = inode.written
  }

  /** Of a file, what a power cut at this moment would leave at the least. undefined: it is not there. */
  durable (path: string): Uint8Array | undefined {
    return this.#names.get(path)?.synced
  }

  paths (): string[] {
    return [...this.#names].filter(([, { folder }]) => !folder).map(([path]) => path).sort()
  }

  async mkdir (path: string): Promise<void> {
    await this.#step('mkdir', () => {
      while (!this.#names.has(path)) {
        const folder = this.#firstMissing(path)
        this.#change(posix.dirname(folder), setName(folder, newInode(true, this.#init.clock.now())))
      }
    })
  }

  async read (path: string): Promise<Uint8Array> {
    return await this.#step('read', () => this.#inode(path).written.slice())
  }

  async create (path: string): Promise<DiskFile> {
    return await this.#step('create', () => {
      this.#inode(posix.dirname(path))
      if (this.#names.has(path)) throw systemError('EEXIST', path)
      const inode = newInode(false, this.#init.clock.now())
      this.#change(posix.dirname(path), setName(path, inode))
      return this.#open(inode, path)
    })
  }

  async openWriteThrough (path: string): Promise<DiskFile> {
    const inode = await this.#step('openWriteThrough', () => {
      this.#inode(posix.dirname(path))
      if (!this.#names.has(path)) this.#change(posix.dirname(path), setName(path, newInode(false, this.#init.clock.now())))
      return this.#inode(path)
    })
    return {
      ...this.#open(inode, path),
      write: async (bytes, position) => {
        await this.#step('append', () => { this.#write(inode, path, bytes, position) })
        await this.#step('write', () => { this.#sync(inode) })
      }
    }
  }

  async rename (from: string, to: string): Promise<void> {
    await this.#step('rename', () => {
      const inode = this.#inode(from)
      this.#inode(posix.dirname(to))
      this.#change(posix.dirname(to), (names) => {
        names.delete(from)
        names.set(to, inode)
      })
    })
  }

  async unlink (path: string): Promise<void> {
    await this.#step('unlink', () => {
      this.#inode(path)
      this.#change(posix.dirname(path), (names) => { names.delete(path) })
    })
  }

  async readdir (path: string): Promise<string[]> {
    return await this.#step('readdir', () => {
      this.#inode(path)
      return [...this.#names.keys()].filter((one) => one !== '/' && posix.dirname(one) === path).map((one) => posix.basename(one))
    })
  }

  async stat (path: string): Promise<DiskStat> {
    return await this.#step('stat', () => {
      const { written, mtimeMs, folder } = this.#inode(path)
      return { sizeBytes: written.length, mtimeMs, directory: folder }
    })
  }

  async touch (path: string, mtimeMs: number): Promise<void> {
    await this.#step('touch', () => {
      const inode = this.#inode(path)
      inode.mtimeMs = mtimeMs
      sync(inode)
    })
  }

  async setMtime (path: string, mtimeMs: number): Promise<void> {
    await this.#step('setMtime', () => { this.#inode(path).mtimeMs = mtimeMs })
  }

  async syncDirectory (path: string): Promise<void> {
    // Only what was there when it began: names that come while it runs may have missed it.
    const begun = this.#changes.filter(({ folder }) => folder === path)
    await this.#step('syncDirectory', () => {
      this.#inode(path)
      if (this.#init.forgets !== 'syncDirectory') for (const change of begun) change.durable = true
    })
  }

  async freeBytes (): Promise<number> {
    return await this.#step('freeBytes', () => this.#freeBytes())
  }

  #open (inode: Inode, path: string): DiskFile {
    return {
      write: async (bytes, position) => {
        await this.#step('write', () => { this.#write(inode, path, bytes, position) })
      },
      datasync: async () => {
        await this.#step('datasync', () => { this.#sync(inode) })
      },
      close: async () => {
        await this.#step('close', () => {})
      }
    }
  }

  #write (inode: Inode, path: string, bytes: Uint8Array, position: number): void {
    const room = Math.min(bytes.length, this.#freeBytes())
    const written = bytes.slice(0, room)
    inode.unsynced.push({ bytes: written, position })
    inode.written = overwrite(inode.written, written, position)
    inode.mtimeMs = this.#init.clock.now()
    if (room < bytes.length) throw systemError('ENOSPC', path)
  }

  #sync (inode: Inode): void {
    if (this.#init.forgets !== 'datasync') sync(inode)
  }

  async #step<T> (name: string, effect: () => T): Promise<T> {
    this.calls.set(name, (this.calls.get(name) ?? 0) + 1)
    return await this.#init.power.step(effect, this.#init.name === undefined ? name : `${name} ${this.#init.name}`)
  }

  #change (folder: string, apply: (names: Names) => void): void {
    apply(this.#names)
    this.#changes.push({ folder, apply, durable: false })
  }

  #inode (path: string): Inode {
    const inode = this.#names.get(path)
    if (inode === undefined) throw systemError('ENOENT', path)
    return inode
  }

  #firstMissing (path: string): string {
    const parent = posix.dirname(path)
    return this.#names.has(parent) ? path : this.#firstMissing(parent)
  }

  #freeBytes (): number {
    const used = new Set(this.#names.values())
    return [...used].reduce((free, { written }) => free - written.length, this.#init.capacityBytes ?? Infinity)
  }
}

/** A key-value store over the same power. Like lmdb's, its writes reach the disk in order, each of them whole. */
export class SimulatedKeyValueStore implements KeyValueStore {
  readonly #power: Power
  readonly #operation: string
  readonly #visible: Map<string, Uint8Array>
  readonly #durable: Map<string, Uint8Array>
  readonly #pending: Array<ReadonlyArray<{ key: string, value: Uint8Array | null }>> = []

  /** `operation` is what the power calls a write: one power may have several stores. */
  constructor (power: Power, content: ReadonlyMap<string, Uint8Array> = new Map(), operation = 'write entries') {
    this.#power = power
    this.#operation = operation
    this.#visible = new Map(content)
    this.#durable = new Map(content)
  }

  recover (power: Power): SimulatedKeyValueStore {
    const content = new Map(this.#durable)
    for (const operations of this.#pending.slice(0, this.#power.chance.below(this.#pending.length + 1))) apply(operations, content)
    return new SimulatedKeyValueStore(power, content, this.#operation)
  }

  /** What a power cut at this moment would leave at the least. */
  get durable (): ReadonlyMap<string, Uint8Array> {
    return this.#durable
  }

  get (key: string): Uint8Array | undefined {
    return this.#visible.get(key)
  }

  * range ({ start, end, limit = Infinity, reverse = false }: Parameters<KeyValueStore['range']>[0]): Generator<{ key: string, value: Uint8Array }> {
    const keys = [...this.#visible.keys()].filter((key) => key >= start && key < end).sort()
    if (reverse) keys.reverse()
    for (const key of keys.slice(0, limit)) yield { key, value: this.#visible.get(key) as Uint8Array }
  }

  async write (operations: ReadonlyArray<{ key: string, value: Uint8Array | null }>): Promise<void> {
    if (this.#power.isOff) return await this.#power.step(() => {}, this.#operation)
    apply(operations, this.#visible)
    this.#pending.push(operations)
    await this.#power.step(() => {
      // Whatever came before it is on disk with it.
      const index = this.#pending.indexOf(operations)
      for (const earlier of this.#pending.splice(0, index + 1)) apply(earlier, this.#durable)
    }, this.#operation)
  }

  async close (): Promise<void> {}
}

function apply (operations: ReadonlyArray<{ key: string, value: Uint8Array | null }>, map: Map<string, Uint8Array>): void {
  for (const { key, value } of operations) {
    if (value === null) map.delete(key)
    else map.set(key, value.slice())
  }
}

function newInode (folder: boolean, mtimeMs: number): Inode {
  return { folder, mtimeMs, synced: new Uint8Array(0), written: new Uint8Array(0), unsynced: [] }
}

function setName (path: string, inode: Inode): (names: Names) => void {
  return (names) => { names.set(path, inode) }
}

function sync (inode: Inode): void {
  inode.synced = inode.written
  inode.unsynced = []
}

/** Each sector that was written and not synced is there or not. */
function afterCrash (inode: Inode, chance: Chance): Inode {
  let content = inode.synced
  for (const { bytes, position } of inode.unsynced) {
    for (let at = 0; at < bytes.length; at += SECTOR_BYTES) {
      if (chance.unit() < 0.5) content = overwrite(content, bytes.subarray(at, at + SECTOR_BYTES), position + at)
    }
  }
  return { ...inode, synced: content, written: content, unsynced: [] }
}

function overwrite (content: Uint8Array, bytes: Uint8Array, position: number): Uint8Array {
  const result = new Uint8Array(Math.max(content.length, position + bytes.length))
  result.set(content)
  result.set(bytes, position)
  return result
}

function systemError (code: string, path: string): Error {
  return Object.assign(new Error(`${code}: ${path}`), { code })
}
