/**
 * What the kernel knows of a mount and counts on: inodes and how often it was told of each, open files and folders under
 * their handles, commands whose outcome can be asked for. A FUSE server that takes over from a killed one needs it: the kernel
 * goes on with the same numbers.
 *
 * It is the sum of records, one per request that changed it; a request that comes again finds its own record (`answered`), and
 * is answered as it was, or would have been, the first time. Pure: `mount-journal.ts` keeps the records on disk.
 */
import assert from 'node:assert/strict'
import type { VersionRef } from './source.ts'

/** What brings an inode back; sizes of working copies and what they lie on are in their own state.json. */
export type KnownInode =
  | { readonly kind: 'by-name' | 'working' }
  | { readonly kind: 'image', readonly image: string, readonly blob: string }
  | { readonly kind: 'blob', readonly blob: string }
  | { readonly kind: 'version', readonly ref: VersionRef }
  | { readonly kind: 'copy', readonly name: string, readonly ref: VersionRef, readonly unborn: boolean }

export type CommandVerb = 'commit' | 'clone'

export type CommandOutcome =
  | { readonly state: 'running' }
  | { readonly state: 'done', readonly blob: string, readonly version: number }
  | { readonly state: 'failed', readonly code: string, readonly message: string }

/** A commit or clone that was started through an attribute. */
export interface KnownCommand {
  readonly verb: CommandVerb
  readonly workingCopy: string
  /** The name that the image is to have; empty: none. */
  readonly as: string
  /** The same for the same command, asked again by another server. */
  readonly id: string
  readonly outcome: CommandOutcome
}

/** Numbers of 64 bits are decimal text: JSON has none of that size. `unique` is that of the request, without FUSE_UNIQUE_RESEND. */
export type KernelRecord =
  | { readonly kind: 'lookup', readonly unique: string, readonly ino: string, readonly inode: KnownInode }
  | { readonly kind: 'forget', readonly ino: string, readonly nlookup: number }
  | { readonly kind: 'mtime', readonly ino: string, readonly mtimeMs: number }
  | { readonly kind: 'born', readonly ino: string }
  /** From the seal of a commit to its end. */
  | { readonly kind: 'committing', readonly workingCopy: string, readonly on: boolean }
  | { readonly kind: 'open', readonly unique: string, readonly fh: number, readonly ino: string, readonly keepsPages: boolean }
  | { readonly kind: 'release', readonly unique: string, readonly fh: number }
  | { readonly kind: 'opendir', readonly unique: string, readonly fh: number, readonly ino: string }
  | { readonly kind: 'releasedir', readonly unique: string, readonly fh: number }
  | { readonly kind: 'command', readonly unique: string, readonly command: KnownCommand }
  | { readonly kind: 'outcome', readonly command: KnownCommand }

export type AnsweredRecord = Extract<KernelRecord, { readonly unique: string }>

/** All of the state, as one line of JSON. */
export interface KernelSnapshot {
  readonly inodes: ReadonlyArray<readonly [ino: string, InodeEntry]>
  readonly files: ReadonlyArray<readonly [fh: number, FileEntry]>
  readonly folders: ReadonlyArray<readonly [fh: number, ino: string]>
  readonly commands: readonly KnownCommand[]
  readonly committing: readonly string[]
  readonly answered: readonly AnsweredRecord[]
  readonly lastFh: number
  readonly lastFolder: number
}

export interface InodeEntry {
  inode: KnownInode
  nlookup: number
  mtimeMs?: number
}

export interface FileEntry {
  readonly ino: string
  users: number
}

export const NOTHING_KNOWN: KernelSnapshot = { inodes: [], files: [], folders: [], commands: [], committing: [], answered: [], lastFh: 0, lastFolder: 0 }

/**
 * A record is made right before its answer is written, so a killed server leaves a handful of records without one, and each
 * server that dies before it has seen those again leaves a handful more.
 */
const ANSWERED_MAX = 1024

export class KernelState {
  readonly inodes = new Map<string, InodeEntry>()
  readonly files = new Map<number, FileEntry>()
  readonly folders = new Map<number, string>()
  readonly commands = new Map<string, KnownCommand>()
  readonly committing = new Set<string>()
  readonly #answered = new Map<string, AnsweredRecord>()
  /** The highest handles that were ever given out. */
  lastFh: number
  lastFolder: number

  constructor (snapshot: KernelSnapshot) {
    for (const [ino, entry] of snapshot.inodes) this.inodes.set(ino, { ...entry })
    for (const [fh, entry] of snapshot.files) this.files.set(fh, { ...entry })
    for (const [fh, ino] of snapshot.folders) this.folders.set(fh, ino)
    for (const command of snapshot.commands) this.commands.set(keyOfCommand(command), command)
    for (const workingCopy of snapshot.committing) this.committing.add(workingCopy)
    for (const record of snapshot.answered) this.#answered.set(record.unique, record)
    this.lastFh = snapshot.lastFh
    this.lastFolder = snapshot.lastFolder
  }

  snapshot (): KernelSnapshot {
    return {
      inodes: [...this.inodes],
      files: [...this.files],
      folders: [...this.folders],
      commands: [...this.commands.values()],
      committing: [...this.committing],
      answered: [...this.#answered.values()],
      lastFh: this.lastFh,
      lastFolder: this.lastFolder
    }
  }

  /** The record of a request that has been handled, though perhaps not answered. */
  answered<K extends AnsweredRecord['kind']> (unique: string, kind: K): Extract<AnsweredRecord, { readonly kind: K }> | undefined {
    const record = this.#answered.get(unique)
    if (record === undefined) return undefined
    assert.equal(record.kind, kind, 'a request that comes again is the same request')
    return record as Extract<AnsweredRecord, { readonly kind: K }>
  }

  apply (record: KernelRecord): void {
    if ('unique' in record) this.#note(record)
    switch (record.kind) {
      case 'lookup': return this.#lookup(record.ino, record.inode)
      case 'forget': return this.#forget(record.ino, record.nlookup)
      case 'mtime': return this.#change(record.ino, { mtimeMs: record.mtimeMs })
      case 'born': return this.#born(record.ino)
      case 'committing':
        if (record.on) this.committing.add(record.workingCopy)
        else this.committing.delete(record.workingCopy)
        return
      case 'open': return this.#open(record.fh, record.ino)
      case 'release': return this.#release(record.fh)
      case 'opendir':
        this.folders.set(record.fh, record.ino)
        this.lastFolder = Math.max(this.lastFolder, record.fh)
        return
      case 'releasedir':
        this.folders.delete(record.fh)
        return
      case 'command':
      case 'outcome':
        this.commands.set(keyOfCommand(record.command), record.command)
    }
  }

  #note (record: AnsweredRecord): void {
    this.#answered.set(record.unique, record)
    if (this.#answered.size <= ANSWERED_MAX) return
    for (const oldest of this.#answered.keys()) {
      this.#answered.delete(oldest)
      return
    }
  }

  #lookup (ino: string, inode: KnownInode): void {
    const entry = this.inodes.get(ino)
    if (entry === undefined) this.inodes.set(ino, { inode, nlookup: 1 })
    else {
      entry.nlookup++
      entry.inode = inode
    }
  }

  #forget (ino: string, nlookup: number): void {
    const entry = this.inodes.get(ino)
    if (entry !== undefined && (entry.nlookup -= nlookup) <= 0) this.inodes.delete(ino)
  }

  #change (ino: string, changes: Partial<InodeEntry>): void {
    const entry = this.inodes.get(ino)
    if (entry !== undefined) Object.assign(entry, changes)
  }

  #born (ino: string): void {
    const entry = this.inodes.get(ino)
    if (entry?.inode.kind === 'copy') entry.inode = { ...entry.inode, unborn: false }
  }

  #open (fh: number, ino: string): void {
    const entry = this.files.get(fh)
    if (entry === undefined) this.files.set(fh, { ino, users: 1 })
    else entry.users++
    this.lastFh = Math.max(this.lastFh, fh)
  }

  #release (fh: number): void {
    const entry = this.files.get(fh)
    if (entry !== undefined && --entry.users === 0) this.files.delete(fh)
  }
}

export function keyOfCommand ({ verb, workingCopy }: Pick<KnownCommand, 'verb' | 'workingCopy'>): string {
  return `${verb} ${workingCopy}`
}
