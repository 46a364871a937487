/**
 * Files that the mirror's own code works on through node:fs, in memory: what a kernel keeps of them when a process is killed,
 * and what a disk may keep when the power goes. `node-fs.ts` puts them in the place of node:fs.
 *
 * Killed: every system call that had returned took effect, of the last write perhaps only its first sectors. Power: what was
 * synced is there; of the rest any subset, sector by sector and name by name, in any order. A rename is one change.
 */
import { posix } from 'node:path'

/** What a disk writes whole. */
const SECTOR_BYTES = 512

type Sectors = Map<number, Uint8Array>

interface Content {
  size: number
  sectors: Sectors
}

/** A change that a power cut may take, or not, and which process made it. Sectors carry all their bytes. */
type Effect = { readonly process: number } & (
  | { readonly kind: 'sector', readonly sector: number, readonly bytes: Uint8Array, readonly size: number }
  | { readonly kind: 'size', readonly size: number })

export interface FileNode {
  readonly kind: 'file'
  now: Content
  safe: Content
  pending: Effect[]
}

/** New entries of one folder that come together; null: gone. */
interface NameChange {
  readonly process: number
  readonly entries: ReadonlyArray<readonly [string, Node | null]>
}

export interface FolderNode {
  readonly kind: 'folder'
  now: Map<string, Node>
  safe: Map<string, Node>
  pending: NameChange[]
}

export type Node = FileNode | FolderNode

export interface CrashingFilesInit {
  /** A disk that skips a sync: what the crash tests must find out. */
  readonly forgets?: 'file' | 'folder' | undefined
  /** Unless it says so, a disk has. */
  readonly hasHoles?: boolean
}

export class CrashingFiles {
  readonly #root: FolderNode
  readonly #init: CrashingFilesInit
  readonly #open = new Map<number, Node>()
  /** Of this boot, and of the process in it. */
  readonly boot: string
  readonly process: number
  /** Told after each effect, and (`torn`) in the middle of a write of several sectors. */
  onEffect: (torn: boolean) => void = () => {}
  /** Ranges that were given back. */
  punches = 0

  constructor (init: CrashingFilesInit = {}, root: FolderNode = newFolder(), boot = 'boot-1', process = 1) {
    this.#init = init
    this.#root = root
    this.boot = boot
    this.process = process
  }

  /** The same disk and page cache under a process of their own: a crash that did not happen, or not yet. */
  fork (): CrashingFiles {
    return new CrashingFiles(this.#init, copied(this.#root, new Map()) as FolderNode, this.boot, this.process)
  }

  /** As the next process finds them after this one was killed. */
  killed (): CrashingFiles {
    return new CrashingFiles(this.#init, copied(this.#root, new Map()) as FolderNode, this.boot, this.process + 1)
  }

  /** How many changes a power cut may take. */
  get unsynced (): number {
    let count = 0
    visit(this.#root, (node) => { count += node.pending.length })
    return count
  }

  /** As the next boot finds them: `keeps` decides on each of the `unsynced`, by its number and the process that made it. */
  powerCut (keeps: (change: number, process: number) => boolean): CrashingFiles {
    let change = 0
    const kept = new Set<Effect | NameChange>()
    visit(this.#root, (node) => {
      for (const pending of node.pending) if (keeps(change++, pending.process)) kept.add(pending)
    })
    const root = afterPowerCut(this.#root, kept, new Map()) as FolderNode
    return new CrashingFiles(this.#init, root, `boot-${Number(this.boot.slice(5)) + 1}`, this.process + 1)
  }

  /** A durable file that somebody else made. */
  plant (path: string, bytes: Uint8Array): void {
    const folder = this.#plantFolder(posix.dirname(path))
    const node: FileNode = { kind: 'file', now: contentOf(bytes), safe: contentOf(bytes), pending: [] }
    folder.now.set(posix.basename(path), node)
    folder.safe.set(posix.basename(path), node)
  }

  #plantFolder (path: string): FolderNode {
    if (path === '/') return this.#root
    const parent = this.#plantFolder(posix.dirname(path))
    const name = posix.basename(path)
    const node = parent.now.get(name) ?? newFolder()
    parent.now.set(name, node)
    parent.safe.set(name, node)
    if (node.kind !== 'folder') throw systemError('ENOTDIR', path)
    return node
  }

  // What follows is called as the system calls are, on descriptors that `open` has given out.

  open (path: string, flags: { create?: boolean, exclusive?: boolean, truncate?: boolean }, fd: number): void {
    let node = this.#find(path)
    if (node === undefined) {
      if (flags.create !== true) throw systemError('ENOENT', path)
      node = { kind: 'file', now: { size: 0, sectors: new Map() }, safe: { size: 0, sectors: new Map() }, pending: [] }
      this.#name(posix.dirname(path), [[posix.basename(path), node]])
    } else if (flags.exclusive === true) throw systemError('EEXIST', path)
    else if (flags.truncate === true && node.kind === 'file') this.truncate(node, 0)
    this.#open.set(fd, node)
  }

  close (fd: number): void {
    this.node(fd)
    this.#open.delete(fd)
  }

  /** The file or folder of a descriptor. */
  node (fd: number): Node {
    const node = this.#open.get(fd)
    if (node === undefined) throw systemError('EBADF', String(fd))
    return node
  }

  file (fd: number): FileNode {
    const node = this.node(fd)
    if (node.kind !== 'file') throw systemError('EISDIR', String(fd))
    return node
  }

  read (file: FileNode, buffer: Uint8Array, at: number, length: number, position: number): number {
    const count = Math.max(0, Math.min(length, file.now.size - position))
    for (let done = 0; done < count;) {
      const sector = Math.floor((position + done) / SECTOR_BYTES)
      const within = (position + done) % SECTOR_BYTES
      const part = Math.min(count - done, SECTOR_BYTES - within)
      const bytes = file.now.sectors.get(sector)
      if (bytes === undefined) buffer.fill(0, at + done, at + done + part)
      else buffer.set(bytes.subarray(within, within + part), at + done)
      done += part
    }
    return count
  }

  write (file: FileNode, buffer: Uint8Array, at: number, length: number, position: number): number {
    for (let done = 0; done < length;) {
      const sector = Math.floor((position + done) / SECTOR_BYTES)
      const within = (position + done) % SECTOR_BYTES
      const part = Math.min(length - done, SECTOR_BYTES - within)
      const bytes = file.now.sectors.get(sector)?.slice() ?? new Uint8Array(SECTOR_BYTES)
      bytes.set(buffer.subarray(at + done, at + done + part), within)
      done += part
      this.#change(file, { process: this.process, kind: 'sector', sector, bytes, size: Math.max(file.now.size, position + done) })
      if (done < length) this.onEffect(true)
    }
    this.onEffect(false)
    return length
  }

  truncate (file: FileNode, size: number): void {
    if (size === file.now.size) return
    this.#change(file, { process: this.process, kind: 'size', size })
    this.onEffect(false)
  }

  /** fallocate(2), FALLOC_FL_PUNCH_HOLE: whole sectors, one change for each. False: this disk has no holes. */
  punch (file: FileNode, from: number, to: number): boolean {
    if (this.#init.hasHoles === false) return false
    this.punches++
    for (let sector = from / SECTOR_BYTES; sector < to / SECTOR_BYTES; sector++) {
      if (file.now.sectors.has(sector)) this.#change(file, { process: this.process, kind: 'sector', sector, bytes: new Uint8Array(SECTOR_BYTES), size: file.now.size })
    }
    this.onEffect(false)
    return true
  }

  #change (file: FileNode, effect: Effect): void {
    apply(effect, file.now)
    file.pending.push(effect)
  }

  /** A sync that has begun: what was there then is durable when the returned function is called. */
  beginSync (node: Node): () => void {
    const begun: ReadonlySet<unknown> = new Set<unknown>(node.pending)
    return () => {
      if (this.#init.forgets !== node.kind) {
        if (node.kind === 'file') {
          for (const effect of node.pending) if (begun.has(effect)) apply(effect, node.safe)
          node.pending = node.pending.filter((effect) => !begun.has(effect))
        } else {
          for (const change of node.pending) if (begun.has(change)) rename(change, node.safe)
          node.pending = node.pending.filter((change) => !begun.has(change))
        }
      }
      this.onEffect(false)
    }
  }

  mkdir (path: string): void {
    if (this.#find(path) !== undefined) return
    this.mkdir(posix.dirname(path))
    this.#name(posix.dirname(path), [[posix.basename(path), newFolder()]])
  }

  rename (from: string, to: string): void {
    if (posix.dirname(from) !== posix.dirname(to)) throw new Error('renames across folders are not simulated')
    const there = this.#find(to)
    if (there?.kind === 'folder' && there.now.size > 0) throw systemError('ENOTEMPTY', to)
    this.#name(posix.dirname(from), [[posix.basename(from), null], [posix.basename(to), this.find(from)]])
  }

  unlink (path: string): void {
    this.find(path)
    this.#name(posix.dirname(path), [[posix.basename(path), null]])
  }

  names (path: string): string[] {
    const node = this.find(path)
    if (node.kind !== 'folder') throw systemError('ENOTDIR', path)
    return [...node.now.keys()].sort()
  }

  find (path: string): Node {
    const node = this.#find(path)
    if (node === undefined) throw systemError('ENOENT', path)
    return node
  }

  #find (path: string): Node | undefined {
    let node: Node | undefined = this.#root
    for (const name of path.split('/').filter(Boolean)) node = node?.kind === 'folder' ? node.now.get(name) : undefined
    return node
  }

  #name (path: string, entries: NameChange['entries']): void {
    const folder = this.find(path)
    if (folder.kind !== 'folder') throw systemError('ENOTDIR', path)
    const change = { process: this.process, entries }
    rename(change, folder.now)
    folder.pending.push(change)
    this.onEffect(false)
  }
}

function newFolder (): FolderNode {
  return { kind: 'folder', now: new Map(), safe: new Map(), pending: [] }
}

function contentOf (bytes: Uint8Array): Content {
  const sectors: Sectors = new Map()
  for (let at = 0; at < bytes.length; at += SECTOR_BYTES) {
    const sector = new Uint8Array(SECTOR_BYTES)
    sector.set(bytes.subarray(at, at + SECTOR_BYTES))
    sectors.set(at / SECTOR_BYTES, sector)
  }
  return { size: bytes.length, sectors }
}

function apply (effect: Effect, content: Content): void {
  if (effect.kind === 'sector') {
    content.sectors.set(effect.sector, effect.bytes)
    content.size = Math.max(content.size, Math.min(effect.size, (effect.sector + 1) * SECTOR_BYTES))
    return
  }
  if (effect.size < content.size) {
    for (const [sector, bytes] of content.sectors) {
      const left = effect.size - sector * SECTOR_BYTES
      if (left <= 0) content.sectors.delete(sector)
      else if (left < SECTOR_BYTES) content.sectors.set(sector, bytes.slice().fill(0, left))
    }
  }
  content.size = effect.size
}

function rename ({ entries }: NameChange, names: Map<string, Node>): void {
  for (const [name, node] of entries) {
    if (node === null) names.delete(name)
    else names.set(name, node)
  }
}

/** Every node once, in an order that does not change: also those that only a lost or an unsynced name leads to. */
function visit (node: Node, see: (node: Node) => void, seen = new Set<Node>()): void {
  if (seen.has(node)) return
  seen.add(node)
  see(node)
  if (node.kind === 'file') return
  for (const below of [...node.safe.values(), ...node.pending.flatMap((change) => change.entries.flatMap(([, one]) => one ?? []))]) visit(below, see, seen)
}

function copied (node: Node, copies: Map<Node, Node>): Node {
  const known = copies.get(node)
  if (known !== undefined) return known
  if (node.kind === 'file') {
    const copy: FileNode = { kind: 'file', now: copyOf(node.now), safe: copyOf(node.safe), pending: [...node.pending] }
    copies.set(node, copy)
    return copy
  }
  const folder = newFolder()
  copies.set(node, folder)
  for (const [name, below] of node.now) folder.now.set(name, copied(below, copies))
  for (const [name, below] of node.safe) folder.safe.set(name, copied(below, copies))
  folder.pending = node.pending.map(({ process, entries }) =>
    ({ process, entries: entries.map(([name, below]) => [name, below === null ? null : copied(below, copies)] as const) }))
  return folder
}

function afterPowerCut (node: Node, kept: ReadonlySet<Effect | NameChange>, done: Map<Node, Node>): Node {
  const known = done.get(node)
  if (known !== undefined) return known
  if (node.kind === 'file') {
    const safe = copyOf(node.safe)
    for (const effect of node.pending) if (kept.has(effect)) apply(effect, safe)
    const after: FileNode = { kind: 'file', now: copyOf(safe), safe, pending: [] }
    done.set(node, after)
    return after
  }
  const names = new Map(node.safe)
  for (const change of node.pending) if (kept.has(change)) rename(change, names)
  const after = newFolder()
  done.set(node, after)
  for (const [name, below] of names) after.safe.set(name, afterPowerCut(below, kept, done))
  after.now = new Map(after.safe)
  return after
}

function copyOf ({ size, sectors }: Content): Content {
  return { size, sectors: new Map(sectors) }
}

export function systemError (code: string, path: string): Error {
  return Object.assign(new Error(`${code}: ${path}`), { code })
}
