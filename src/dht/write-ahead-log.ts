/**
 * A log of writes, in order, each whole or not there. Two files in turn: while what one of them holds is brought to where it stays, the
 * other takes what comes; so neither grows beyond what its owner lets it, and the blocks of both are used again.
 *
 *     PATH.log-0, PATH.log-1      entries, from the start of the file
 *     entry        u32 bytes of its payload | u32 CRC-32 of all that follows | u64 sequence | payload          (big-endian)
 *     payload      per operation: u16 bytes of the key | u32 bytes of the value, or 2^32 - 1: removed | key | value
 *
 * Each entry's sequence is one more than that of the one before it, over both files. Behind the last entry of a file lies what is left of
 * its earlier use: its sequences are smaller. State it owns: the two files, which of them is used, and how far. Not for: reading what was
 * written, nor what survives without the log (`logged-store.ts`).
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
const KEY_BYTES_MAX = 2 ** 16 - 1

export interface WriteAheadLogInit {
  readonly disk: Disk
  readonly path: string
  /** Everything up to this sequence is elsewhere. undefined: nothing was ever logged, the files need not be there. */
  readonly applied: number | undefined
}

export class WriteAheadLog {
  readonly #files: readonly [DiskFile, DiskFile]
  #current: 0 | 1 = 0
  #bytes = 0
  #last: number

  private constructor (files: readonly [DiskFile, DiskFile], last: number) {
    this.#files = files
    this.#last = last
  }

  /**
   * `entries` is what was logged after `applied`. They must be elsewhere before the first `append`, which overwrites them. ERR_CORRUPT when
   * a file is gone, or what comes after `applied` is.
   */
  static async open ({ disk, path, applied }: WriteAheadLogInit): Promise<{ log: WriteAheadLog, entries: LogEntry[] }> {
    const paths = [`${path}.log-0`, `${path}.log-1`] as const
    const contents = await Promise.all(paths.map(async (one) => await readIfThere(disk, one)))
    const missing = contents.indexOf(undefined)
    if (applied !== undefined && missing >= 0) throw new P2pvmError('ERR_CORRUPT', `${paths[missing]} is gone, and with it what was written last`)
    const files = [await disk.openWriteThrough(paths[0]), await disk.openWriteThrough(paths[1])] as const
    await disk.syncDirectory(posix.dirname(path))
    const entries = contents.flatMap((content) => content === undefined ? [] : [...entriesOf(content)])
      .filter(({ sequence }) => sequence > (applied ?? 0))
      .sort((a, b) => a.sequence - b.sequence)
    for (const [at, { sequence }] of entries.entries()) {
      if (sequence !== (applied ?? 0) + 1 + at) throw new P2pvmError('ERR_CORRUPT', `${path}.log-0 and .log-1 lack entry ${(applied ?? 0) + 1 + at}`)
    }
    return { log: new WriteAheadLog(files, entries.at(-1)?.sequence ?? applied ?? 0), entries }
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
    const { bytes, entry } = encodeEntry(this.#last + 1, operations)
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
    for (const file of this.#files) await file.close()
  }
}

function encodeEntry (sequence: number, operations: readonly Operation[]): { readonly bytes: Buffer, readonly entry: LogEntry } {
  let size = HEADER_BYTES
  for (const { key, value } of operations) size += OPERATION_HEADER_BYTES + Buffer.byteLength(key) + (value?.length ?? 0)
  const bytes = Buffer.allocUnsafeSlow(size)
  bytes.writeUInt32BE(size - HEADER_BYTES, 0)
  bytes.writeBigUInt64BE(BigInt(sequence), CHECKED_FROM)
  let at = HEADER_BYTES
  const written = operations.map(({ key, value }): Operation => {
    const keyBytes = bytes.write(key, at + OPERATION_HEADER_BYTES)
    assert(keyBytes <= KEY_BYTES_MAX, 'a key that is too long')
    bytes.writeUInt16BE(keyBytes, at)
    bytes.writeUInt32BE(value?.length ?? REMOVED, at + 2)
    const start = at + OPERATION_HEADER_BYTES + keyBytes
    at = start + (value?.length ?? 0)
    if (value === null) return { key, value }
    bytes.set(value, start)
    return { key, value: bytes.subarray(start, at) }
  })
  bytes.writeUInt32BE(crc32(bytes.subarray(CHECKED_FROM)), 4)
  return { bytes, entry: { sequence, operations: written } }
}

/** Those at the start of a file, up to what is left of an earlier use or was torn by a crash. */
function * entriesOf (content: Uint8Array): Generator<LogEntry> {
  const bytes = Buffer.from(content.buffer, content.byteOffset, content.length)
  let last: number | undefined
  for (let at = 0; at + HEADER_BYTES <= bytes.length;) {
    const end = at + HEADER_BYTES + bytes.readUInt32BE(at)
    if (end > bytes.length || crc32(bytes.subarray(at + CHECKED_FROM, end)) !== bytes.readUInt32BE(at + 4)) return
    const sequence = Number(bytes.readBigUInt64BE(at + CHECKED_FROM))
    if (last !== undefined && sequence !== last + 1) return
    yield { sequence, operations: operationsOf(bytes.subarray(at + HEADER_BYTES, end)) }
    last = sequence
    at = end
  }
}

function operationsOf (payload: Buffer): Operation[] {
  const operations: Operation[] = []
  for (let at = 0; at < payload.length;) {
    const keyEnd = at + OPERATION_HEADER_BYTES + payload.readUInt16BE(at)
    const size = payload.readUInt32BE(at + 2)
    const key = payload.toString('utf8', at + OPERATION_HEADER_BYTES, keyEnd)
    at = keyEnd + (size === REMOVED ? 0 : size)
    operations.push({ key, value: size === REMOVED ? null : payload.subarray(keyEnd, at) })
  }
  return operations
}

async function readIfThere (disk: Disk, path: string): Promise<Uint8Array | undefined> {
  try {
    return await disk.read(path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}
