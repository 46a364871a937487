/**
 * The journal of a mount: what the kernel knows of it (`kernel-state.ts`), on disk for the FUSE server that comes after a
 * killed one. `<mounts>/<id>.inodes`, lines of JSON: the first is a snapshot, each other one a record after it.
 *
 * It has to survive a killed process and not the machine, whose end is that of the mount: nothing is synced. A record is
 * written before the answer that it stands for; a last line without its end is as good as none. When records take more room
 * than they are worth, a snapshot takes their place.
 *
 * On a full disk there is no journal at all until there is room for a snapshot: one that lacks a record would give out a
 * handle twice. A server that is killed then takes the mount with it.
 */
import { closeSync, openSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { P2pvmError } from '../protocols/errors.ts'
import type { Log } from '../protocols/seams.ts'
import { isNodeError, writeFully } from './files.ts'
import { type AnsweredRecord, type KernelRecord, type KernelSnapshot, KernelState, NOTHING_KNOWN } from './kernel-state.ts'

/** Another number: this program cannot take over, and says so. */
const FORMAT = 1
/** Some thousands of records; read in milliseconds. */
const RECORDS_BYTES_MIN = 1024 * 1024

/** What stays the same for as long as the mount lasts, whoever serves it. */
export interface MountIdentity {
  /** See WorkingCopyState.holder: the kernel's pages stay right across servers. */
  readonly holder: string
  /** Of versions the modification time. */
  readonly startedMs: number
}

interface FirstLine {
  readonly format: number
  readonly mount: MountIdentity
  readonly state: KernelSnapshot
}

/** What the FUSE server notes. */
export interface Journal {
  append (record: KernelRecord): void
  answered: KernelState['answered']
}

/** Of a mount that ends with its server. */
export const NO_JOURNAL: Journal = { append () {}, answered: () => undefined }

export class MountJournal implements Journal {
  readonly mount: MountIdentity
  readonly state: KernelState
  readonly #path: string
  readonly #log: Log
  #fd = -1
  #bytes = 0
  #bytesMax = 0

  private constructor (path: string, mount: MountIdentity, state: KernelState, log: Log) {
    this.#path = path
    this.mount = mount
    this.state = state
    this.#log = log
  }

  /** Of a mount that begins. */
  static create (path: string, mount: MountIdentity, log: Log): MountJournal {
    const journal = new MountJournal(path, mount, new KernelState(NOTHING_KNOWN), log)
    journal.#startOver()
    return journal
  }

  /** Of a mount whose server is dead. ERR_NOT_FOUND when there is none, ERR_CORRUPT when this program cannot read it. */
  static open (path: string, log: Log): MountJournal {
    let text
    try {
      text = readFileSync(path, 'utf8')
    } catch (error) {
      if (!isNodeError(error, 'ENOENT')) throw error
      throw new P2pvmError('ERR_NOT_FOUND', `the mount has no journal ${path}: the disk was full`, { path }, error)
    }
    const end = text.lastIndexOf('\n') + 1
    const [first = '', ...records] = text.slice(0, end).trimEnd().split('\n')
    const { mount, state: snapshot } = readFirstLine(first, path)
    const state = new KernelState(snapshot)
    for (const record of records) state.apply(JSON.parse(record) as KernelRecord)
    // What is appended goes over what was cut off.
    const bytes = Buffer.byteLength(text.slice(0, end))
    const journal = new MountJournal(path, mount, state, log)
    journal.#fd = openSync(path, 'r+')
    journal.#bytes = bytes
    journal.#bytesMax = bytes + RECORDS_BYTES_MIN
    return journal
  }

  answered<K extends AnsweredRecord['kind']> (unique: string, kind: K): Extract<AnsweredRecord, { readonly kind: K }> | undefined {
    return this.state.answered(unique, kind)
  }

  /** Returns when another process would find it. */
  append (record: KernelRecord): void {
    this.state.apply(record)
    const line = Buffer.from(`${JSON.stringify(record)}\n`)
    if (this.#fd < 0 || this.#bytes + line.length > this.#bytesMax) {
      this.#startOver()
      return
    }
    try {
      writeFully(this.#fd, line, 0, line.length, this.#bytes)
      this.#bytes += line.length
    } catch (error) {
      this.#giveUp(error)
    }
  }

  /** A snapshot in the place of all records. */
  #startOver (): void {
    const first: FirstLine = { format: FORMAT, mount: this.mount, state: this.state.snapshot() }
    const line = Buffer.from(`${JSON.stringify(first)}\n`)
    try {
      writeFileSync(`${this.#path}.new`, line, { mode: 0o600 })
      const fd = openSync(`${this.#path}.new`, 'r+')
      renameSync(`${this.#path}.new`, this.#path)
      if (this.#fd >= 0) closeSync(this.#fd)
      this.#fd = fd
      this.#bytes = line.length
      this.#bytesMax = 2 * line.length + RECORDS_BYTES_MIN
    } catch (error) {
      this.#giveUp(error)
    }
  }

  #giveUp (error: unknown): void {
    if (this.#fd >= 0) {
      closeSync(this.#fd)
      this.#log.error('the journal of the mount cannot be written: until it can, the mount does not outlive its server', { error })
    }
    this.#fd = -1
    rmSync(this.#path, { force: true })
    try {
      rmSync(`${this.#path}.new`, { force: true }) // it takes room
    } catch {
      // whatever is in its place, the next snapshot finds it, too
    }
  }

  close (): void {
    if (this.#fd >= 0) closeSync(this.#fd)
    this.#fd = -1
  }
}

function readFirstLine (line: string, path: string): FirstLine {
  try {
    const first = JSON.parse(line) as FirstLine
    if (first.format === FORMAT) return first
  } catch {
    // as one of another format
  }
  throw new P2pvmError('ERR_CORRUPT', `this program cannot read the journal ${path}`, { path })
}

/** Throws when a server of this program could not take over. The journal may have its writer. */
export function checkJournal (path: string): void {
  readFirstLine(readFileSync(path, 'utf8').split('\n', 1)[0] ?? '', path)
}
