/**
 * A log of writes, in order, each whole or not there. Two files in turn: while what one of them holds is brought to where it stays, the
 * other takes what comes; so neither grows beyond what its owner lets it, and the blocks of both are used again.
 *
 *     PATH.log-0, PATH.log-1      entries, from the start of the file
 *     entry        u32 bytes of its payload | u32 CRC-32 of all that follows, from a seed | u64 sequence | payload          (big-endian)
 *     payload      per operation: u16 bytes of the key | u32 bytes of the value, or 2^32 - 1: removed | key | value
 *
 * Each entry's sequence is one more than that of the one before it, over both files. Behind the last entry of a file lies what is left of
 * its earlier use, which is elsewhere by now. Only the last entry of all can have been torn by a crash. So where entries end and one with
 * a later sequence follows, or the other file goes on, something is lost: ERR_CORRUPT. (A last entry that has rotted cannot be told from one
 * that was torn.) Nobody but the owner knows the seed of the checks: what somebody has put into a value and looks like an entry is none.
 *
 * State it owns: the two files, which of them is used, and how far. Not for: reading what was written, nor what survives without the log
 * (`logged-store.ts`).
 */
import assert from 'node:assert/strict'
import { posix } from 'node:path'
import { crc32 } from 'node:zlib'
import { P2pvmError } from '../protocols/errors.ts'
import type { Disk, DiskFile, KeyValueStore } from '../protocols/seams.ts'

export type Operation = Parameters<KeyValueStore['write']>[0][number]

/** As it lies in the log: values are views of it. */
export interface LogEntry {
  readonly sequence: number
  readonly operations: readonly Operation[]
}

const HEADER_BYTES = 16
/** Of the header, what the check covers: the sequence. */
const CHECKED_FROM = 8
const OPERATION_HEADER_BYTES = 6
const REMOVED = 2 ** 32 - 1

export interface WriteAheadLogInit {
  readonly disk: Disk
  readonly path: string
  /** Everything up to this sequence is elsewhere. undefined: nothing was ever logged, the files need not be there. */
  readonly applied: number | undefined
  /** Start value of every check, 32 bits. */
  readonly seed: number
}

/** Where the next entry goes: behind the last one. */
interface End {
  readonly current: 0 | 1
  readonly bytes: number
  /** Sequence of the last entry. */
  readonly last: number
}

/** A file as it was found. */
interface Found {
  readonly bytes: Buffer
  readonly entries: readonly LogEntry[]
  /** Of the last entry. */
  readonly end: number
}

export class WriteAheadLog {
  readonly #files: readonly [DiskFile, DiskFile]
  readonly #seed: number
  #current: 0 | 1
  #bytes: number
  #last: number

  private constructor (files: readonly [DiskFile, DiskFile], seed: number, { current, bytes, last }: End) {
    this.#files = files
    this.#seed = seed
    this.#current = current
    this.#bytes = bytes
    this.#last = last
  }

  /**
   * With what was logged after `applied`, in order: in the file that is used, and before that in the other one. All of it survives a power
   * cut from now on, also what a process that was killed had not synced. ERR_CORRUPT when a file is gone, or what comes after `applied` is; or
   * when there is a log, and nothing was ever logged.
   */
  static async open (init: WriteAheadLogInit): Promise<{ log: WriteAheadLog, before: LogEntry[], current: LogEntry[] }> {
    const { disk, path, applied, seed } = init
    const paths = [`${path}.log-0`, `${path}.log-1`] as const
    const contents = await Promise.all(paths.map(async (one) => await readIfThere(disk, one)))
    const missing = contents.indexOf(undefined)
    if (applied !== undefined && missing >= 0) throw new P2pvmError('ERR_CORRUPT', `${paths[missing]} is gone, and with it what was written last`)
    const used = contents.findIndex((content) => content !== undefined && content.length > 0)
    if (applied === undefined && used >= 0) throw new P2pvmError('ERR_CORRUPT', `${paths[used]} is the log of another ${path}`)
    const found = contents.map((content) => entriesOf(content ?? new Uint8Array(0), seed))
    const entries = laterThan(applied ?? 0, found, init)
    const end = endOf(found, entries) ?? { current: 0, bytes: 0, last: applied ?? 0 }
    const opened: DiskFile[] = []
    try {
      for (const one of paths) opened.push(await disk.openWriteThrough(one))
      await disk.syncDirectory(posix.dirname(path))
      if (entries.length > 0) for (const file of opened) await file.datasync()
    } catch (error) {
      for (const file of opened) await file.close()
      throw error
    }
    const [first, second] = opened
    assert(first !== undefined && second !== undefined)
    const begin = found[end.current]?.entries[0]?.sequence ?? Infinity
    return {
      log: new WriteAheadLog([first, second], seed, end),
      before: entries.filter(({ sequence }) => sequence < begin),
      current: entries.filter(({ sequence }) => sequence >= begin)
    }
  }

  /** Bytes in the file that is used now. */
  get bytes (): number {
    return this.#bytes
  }

  /** Sequence of the last entry; 0 before the first. */
  get last (): number {
    return this.#last
  }

  /**
   * Resolves with the entry when it survives a power cut. One at a time. When it fails (the disk's own error), the entry is there after a
   * crash or is not, until the next one has taken its place.
   */
  async append (operations: readonly Operation[]): Promise<LogEntry> {
    const { bytes, entry } = encodeEntry(this.#last + 1, operations, this.#seed)
    await this.#files[this.#current].write(bytes, this.#bytes)
    this.#bytes += bytes.length
    this.#last += 1
    return entry
  }

  /** What comes next overwrites the other file: all that it holds must be elsewhere. */
  turnOver (): void {
    this.#current = this.#current === 0 ? 1 : 0
    this.#bytes = 0
  }

  async close (): Promise<void> {
    await Promise.all(this.#files.map(async (file) => { await file.close() }))
  }
}

function encodeEntry (sequence: number, operations: readonly Operation[], seed: number): { readonly bytes: Buffer, readonly entry: LogEntry } {
  let size = HEADER_BYTES
  for (const { key, value } of operations) size += OPERATION_HEADER_BYTES + key.length + (value?.length ?? 0)
  const bytes = Buffer.allocUnsafeSlow(size)
  bytes.writeUInt32BE(size - HEADER_BYTES, 0)
  bytes.writeBigUInt64BE(BigInt(sequence), CHECKED_FROM)
  let at = HEADER_BYTES
  const written = operations.map(({ key, value }): Operation => {
    const keyBytes = bytes.write(key, at + OPERATION_HEADER_BYTES, 'latin1')
    bytes.writeUInt16BE(keyBytes, at)
    bytes.writeUInt32BE(value?.length ?? REMOVED, at + 2)
    const start = at + OPERATION_HEADER_BYTES + keyBytes
    at = start + (value?.length ?? 0)
    if (value === null) return { key, value }
    bytes.set(value, start)
    return { key, value: bytes.subarray(start, at) }
  })
  bytes.writeUInt32BE(crc32(bytes.subarray(CHECKED_FROM), seed), 4)
  return { bytes, entry: { sequence, operations: written } }
}

/** Those at the start of a file, up to what is left of an earlier use or was torn by a crash. ERR_CORRUPT. */
function entriesOf (content: Uint8Array, seed: number): Found {
  const bytes = Buffer.from(content.buffer, content.byteOffset, content.length)
  const entries: LogEntry[] = []
  let end = 0
  for (let next; (next = entryAt(bytes, end, seed)) !== undefined; end = next.end) {
    const last = entries.at(-1)
    if (last !== undefined && next.sequence !== last.sequence + 1) break
    entries.push({ sequence: next.sequence, operations: operationsOf(bytes.subarray(end + HEADER_BYTES, next.end)) })
  }
  return { bytes, entries, end }
}

/** Of both files, those after `applied`, in order. ERR_CORRUPT when there are others that cannot be read. */
export function entriesAfter (applied: number, contents: readonly Uint8Array[], { path, seed }: Pick<WriteAheadLogInit, 'path' | 'seed'>): LogEntry[] {
  return laterThan(applied, contents.map((content) => entriesOf(content, seed)), { path, seed })
}

function laterThan (applied: number, files: readonly Found[], { path, seed }: Pick<WriteAheadLogInit, 'path' | 'seed'>): LogEntry[] {
  const entries = files.flatMap((file) => file.entries).filter(({ sequence }) => sequence > applied).sort((a, b) => a.sequence - b.sequence)
  const lacking = entries.findIndex(({ sequence }, at) => sequence !== applied + 1 + at)
  const expected = applied + 1 + (lacking >= 0 ? lacking : entries.length)
  if (lacking >= 0 || files.some((file) => hasEntryFrom(file, expected, seed))) {
    throw new P2pvmError('ERR_CORRUPT', `entry ${expected} in ${path}.log-0 and .log-1 cannot be read, and later ones can`, { entry: expected })
  }
  return entries
}

/** undefined: there are none. */
function endOf (files: readonly Found[], entries: readonly LogEntry[]): End | undefined {
  const last = entries.at(-1)
  if (last === undefined) return undefined
  const current = files[0]?.entries.at(-1) === last ? 0 : 1
  return { current, bytes: files[current]?.end ?? 0, last: last.sequence }
}

/** Whether there is one somewhere behind those that were read. */
function hasEntryFrom ({ bytes, end }: Found, sequence: number, seed: number): boolean {
  // No more than there is room for: of all places in a file few are looked at closely.
  const beyond = sequence + bytes.length / HEADER_BYTES
  for (let at = end; at + HEADER_BYTES <= bytes.length; at++) {
    const one = bytes.readUInt32BE(at + CHECKED_FROM) * 2 ** 32 + bytes.readUInt32BE(at + CHECKED_FROM + 4)
    if (one >= sequence && one <= beyond && entryAt(bytes, at, seed) !== undefined) return true
  }
  return false
}

function entryAt (bytes: Buffer, at: number, seed: number): { readonly sequence: number, readonly end: number } | undefined {
  if (at + HEADER_BYTES > bytes.length) return undefined
  const end = at + HEADER_BYTES + bytes.readUInt32BE(at)
  if (end > bytes.length || crc32(bytes.subarray(at + CHECKED_FROM, end), seed) !== bytes.readUInt32BE(at + 4)) return undefined
  return { sequence: Number(bytes.readBigUInt64BE(at + CHECKED_FROM)), end }
}

/** ERR_CORRUPT when it does not add up. */
function operationsOf (payload: Buffer): Operation[] {
  const operations: Operation[] = []
  for (let at = 0; at < payload.length;) {
    const start = at + OPERATION_HEADER_BYTES
    if (start > payload.length) throw malformed()
    const keyEnd = start + payload.readUInt16BE(at)
    const size = payload.readUInt32BE(at + 2)
    at = keyEnd + (size === REMOVED ? 0 : size)
    if (at > payload.length) throw malformed()
    operations.push({ key: payload.toString('latin1', start, keyEnd), value: size === REMOVED ? null : payload.subarray(keyEnd, at) })
  }
  return operations
}

function malformed (): P2pvmError {
  return new P2pvmError('ERR_CORRUPT', 'an entry of the log is malformed')
}

async function readIfThere (disk: Disk, path: string): Promise<Uint8Array | undefined> {
  try {
    return await disk.read(path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}
