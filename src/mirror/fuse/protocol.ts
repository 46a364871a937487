/**
 * The kernel's FUSE protocol (linux/fuse.h, version 7.38, and RESEND of 7.41) as pure functions on bytes: readers of requests, writers of
 * replies. Field names are the kernel's. Little-endian hosts only, as Node's are. Owns no state, does no I/O.
 *
 * Inode numbers and unique ids have 64 bits: `bigint`. File handles are ours and small, offsets stay below 2^53.
 */
import { constants } from 'node:fs'
import { ErrnoError, ERRNO } from '../errno.ts'

export const FUSE_ROOT_ID = 1n
export const IN_HEADER_BYTES = 40
export const OUT_HEADER_BYTES = 16
/** The largest READ and WRITE: the kernel's own limit of 256 pages. */
export const MAX_WRITE_BYTES = 1024 * 1024
const MAX_PAGES = 256
/** The largest request: a WRITE. A page more than its data, as the kernel wants it. */
export const READ_BUFFER_BYTES = MAX_WRITE_BYTES + 4096
export const FUSE_WRITE_IN_BYTES = 40

const FUSE_KERNEL_VERSION = 7
const FUSE_KERNEL_MINOR_VERSION = 38
/** The reply to INIT has MAX_PAGES from here on; every kernel since 5.4 offers it. */
const FUSE_MINOR_MIN = 31

const FUSE_ASYNC_READ = 1 << 0
const FUSE_BIG_WRITES = 1 << 5
const FUSE_ASYNC_DIO = 1 << 15
const FUSE_WRITEBACK_CACHE = 1 << 16
const FUSE_PARALLEL_DIROPS = 1 << 18
const FUSE_MAX_PAGES = 1 << 22
/** Our files have no suid bit to kill: without this flag the kernel asks for security.capability before each write(2). */
const FUSE_HANDLE_KILLPRIV_V2 = 1 << 28
const INIT_FLAGS = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO | FUSE_WRITEBACK_CACHE | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES | FUSE_HANDLE_KILLPRIV_V2
/** There are `flags2`, in the request and in the reply. */
const FUSE_INIT_EXT = 1 << 30
/** Bit 39 of both flags: what was not answered can be asked for again (Linux 6.9). */
const FUSE_HAS_RESEND_2 = 1 << 7
/** Marks the unique of a request that is sent again; it is answered under that unique, as it came. */
const FUSE_UNIQUE_RESEND = 1n << 63n
/** Requests in the background (readahead, writeback) before the kernel holds back; its default of 12 starves parallel misses. */
const MAX_BACKGROUND = 64
const CONGESTION_THRESHOLD = 48
/**
 * How far the kernel may read ahead of somebody who reads in order: two chunks of the default size. Its own 128 KiB is half of one: never
 * more than one is then on its way. A boot through the page cache fetches 21.7 % of its image with this, 24.2 % with 1 MiB.
 */
export const READ_AHEAD_BYTES = 512 * 1024
/**
 * Of what programs may have written and the kernel has not, as much may be for one mount: 2 % of the memory, as the kernel comes. Its own
 * 1 % is 44 MB of 24 GB: whoever writes much is put to sleep every few milliseconds, and the server with him.
 */
export const DIRTY_PERCENT_MAX = 10

/** FATTR_MODE, FATTR_UID, FATTR_GID. */
export const FATTR_OWNERSHIP = 0b111
export const FATTR_SIZE = 1 << 3
export const FATTR_MTIME = 1 << 5
export const FOPEN_KEEP_CACHE = 1 << 1
export const FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6

export interface InHeader {
  readonly len: number
  readonly opcode: number
  readonly unique: bigint
  readonly nodeid: bigint
  readonly uid: number
  readonly gid: number
  readonly pid: number
}

export function readInHeader (bytes: Buffer): InHeader {
  return {
    len: bytes.readUInt32LE(0),
    opcode: bytes.readUInt32LE(4),
    unique: bytes.readBigUInt64LE(8),
    nodeid: bytes.readBigUInt64LE(16),
    uid: bytes.readUInt32LE(24),
    gid: bytes.readUInt32LE(28),
    pid: bytes.readUInt32LE(32)
  }
}

/** The same for a request and for the same one sent again. */
export function originalUnique (unique: bigint): bigint {
  return unique & ~FUSE_UNIQUE_RESEND
}

export function isResent (unique: bigint): boolean {
  return (unique & FUSE_UNIQUE_RESEND) !== 0n
}

/** 64 bits that stay below 2^53: offsets, sizes, our own handles. EINVAL beyond. */
export function readNumber64 (bytes: Buffer, at: number): number {
  const value = bytes.readUInt32LE(at) + bytes.readUInt32LE(at + 4) * 2 ** 32
  if (!Number.isSafeInteger(value)) throw new ErrnoError(ERRNO.EINVAL)
  return value
}

/** A name up to its NUL, and where the next field begins. */
function readName (body: Buffer, at: number): { name: string, next: number } {
  const end = body.indexOf(0, at)
  if (end < 0) throw new ErrnoError(ERRNO.EINVAL)
  return { name: body.toString('utf8', at, end), next: end + 1 }
}

// Readers take the bytes after the header; the table in opcodes.ts has made sure of their smallest size.

export function readLookupName (body: Buffer): string {
  return readName(body, 0).name
}

export function readForgetIn (body: Buffer): { nlookup: number } {
  return { nlookup: readNumber64(body, 0) }
}

export function readBatchForgetIn (body: Buffer): Array<{ nodeid: bigint, nlookup: number }> {
  const count = Math.min(body.readUInt32LE(0), Math.floor((body.length - 8) / 16))
  return Array.from({ length: count }, (_, index) => ({
    nodeid: body.readBigUInt64LE(8 + index * 16),
    nlookup: readNumber64(body, 16 + index * 16)
  }))
}

export interface SetattrIn {
  readonly valid: number
  readonly size: number
  readonly mtimeMs: number
}

export function readSetattrIn (body: Buffer): SetattrIn {
  return {
    valid: body.readUInt32LE(0),
    size: readNumber64(body, 16),
    mtimeMs: readNumber64(body, 40) * 1000 + Math.floor(body.readUInt32LE(60) / 1e6)
  }
}

export function readOpenIn (body: Buffer): { writes: boolean } {
  return { writes: (body.readUInt32LE(0) & (constants.O_WRONLY | constants.O_RDWR)) !== 0 }
}

/** The handle is the first field of RELEASE, READ, WRITE, FSYNC, FLUSH, IOCTL, READDIR, RELEASEDIR. */
export function readFh (body: Buffer): number {
  return readNumber64(body, 0)
}

/** Also fuse_write_in, whose fields of interest lie in the same places. */
export function readReadIn (body: Buffer): { fh: number, offset: number, size: number } {
  return { fh: readNumber64(body, 0), offset: readNumber64(body, 8), size: body.readUInt32LE(16) }
}

export function readWriteIn (body: Buffer): { fh: number, offset: number, size: number, bytes: Buffer } {
  const { fh, offset, size } = readReadIn(body)
  if (body.length < FUSE_WRITE_IN_BYTES + size) throw new ErrnoError(ERRNO.EINVAL)
  return { fh, offset, size, bytes: body.subarray(FUSE_WRITE_IN_BYTES, FUSE_WRITE_IN_BYTES + size) }
}

export function readSetxattrIn (body: Buffer): { name: string, value: Buffer } {
  const size = body.readUInt32LE(0)
  const { name, next } = readName(body, 8)
  if (body.length < next + size) throw new ErrnoError(ERRNO.EINVAL)
  return { name, value: body.subarray(next, next + size) }
}

export function readGetxattrIn (body: Buffer): { size: number, name: string } {
  return { size: body.readUInt32LE(0), name: readName(body, 8).name }
}

export function readListxattrIn (body: Buffer): { size: number } {
  return { size: body.readUInt32LE(0) }
}

/** The offset comes out imprecise beyond 2^53, and beyond the size of any file: ENXIO there, not EINVAL. */
export function readLseekIn (body: Buffer): { fh: number, offset: number, whence: number } {
  return { fh: readNumber64(body, 0), offset: Number(body.readBigUInt64LE(8)), whence: body.readUInt32LE(16) }
}

export interface FallocateIn {
  readonly fh: number
  readonly offset: number
  readonly length: number
  readonly mode: number
}

export function readFallocateIn (body: Buffer): FallocateIn {
  return { fh: readNumber64(body, 0), offset: readNumber64(body, 8), length: readNumber64(body, 16), mode: body.readUInt32LE(24) }
}

export interface IoctlIn {
  readonly fh: number
  readonly cmd: number
  readonly outSize: number
  readonly bytes: Buffer
}

export function readIoctlIn (body: Buffer): IoctlIn {
  const inSize = body.readUInt32LE(24)
  if (body.length < 32 + inSize) throw new ErrnoError(ERRNO.EINVAL)
  return { fh: readNumber64(body, 0), cmd: body.readUInt32LE(12), outSize: body.readUInt32LE(28), bytes: body.subarray(32, 32 + inSize) }
}

export function readInterruptIn (body: Buffer): { unique: bigint } {
  return { unique: body.readBigUInt64LE(0) }
}

export interface InitIn {
  readonly major: number
  readonly minor: number
  readonly maxReadahead: number
  readonly flags: number
  /** 0 from a kernel that knows none. */
  readonly flags2: number
}

export function readInitIn (body: Buffer): InitIn {
  const flags = body.readUInt32LE(12)
  const flags2 = (flags & FUSE_INIT_EXT) !== 0 && body.length >= 20 ? body.readUInt32LE(16) : 0
  return { major: body.readUInt32LE(0), minor: body.readUInt32LE(4), maxReadahead: body.readUInt32LE(8), flags, flags2 }
}

/** The kernel keeps requests whose server died, and sends them again when it is asked to. */
export function offersResend (init: InitIn): boolean {
  return (init.flags2 & FUSE_HAS_RESEND_2) !== 0
}

export interface Attributes {
  readonly ino: bigint
  readonly size: number
  readonly mtimeMs: number
  readonly mode: number
  readonly nlink: number
  readonly uid: number
  readonly gid: number
}

const ATTR_BYTES = 88
/** st_blksize: what a program reads at once; the unit of the kernel's page cache. */
const BLKSIZE = 4096

/**
 * st_blocks, in sectors. How much of a file is holes nobody knows before its tree is read; cp and tar look for holes only in one
 * with fewer blocks than bytes, and take one without any to be all hole. So: a little less than its bytes, and never none.
 */
function blocksOf (size: number): number {
  return Math.ceil((size > BLKSIZE ? size - BLKSIZE : size) / 512)
}

function writeAttr (bytes: Buffer, at: number, attributes: Attributes): void {
  const seconds = BigInt(Math.floor(attributes.mtimeMs / 1000))
  const nanoseconds = Math.floor(attributes.mtimeMs % 1000) * 1e6
  bytes.writeBigUInt64LE(attributes.ino, at)
  bytes.writeBigUInt64LE(BigInt(attributes.size), at + 8)
  bytes.writeBigUInt64LE(BigInt(blocksOf(attributes.size)), at + 16)
  for (const [index] of ['atime', 'mtime', 'ctime'].entries()) {
    bytes.writeBigUInt64LE(seconds, at + 24 + index * 8)
    bytes.writeUInt32LE(nanoseconds, at + 48 + index * 4)
  }
  bytes.writeUInt32LE(attributes.mode, at + 60)
  bytes.writeUInt32LE(attributes.nlink, at + 64)
  bytes.writeUInt32LE(attributes.uid, at + 68)
  bytes.writeUInt32LE(attributes.gid, at + 72)
  bytes.writeUInt32LE(BLKSIZE, at + 80)
}

export function entryOut (attributes: Attributes, valid: { entrySeconds: number, attrSeconds: number }): Buffer {
  const bytes = Buffer.alloc(40 + ATTR_BYTES)
  bytes.writeBigUInt64LE(attributes.ino, 0) // nodeid; numbers are never used again, so the generation stays 0
  bytes.writeBigUInt64LE(BigInt(valid.entrySeconds), 16)
  bytes.writeBigUInt64LE(BigInt(valid.attrSeconds), 24)
  writeAttr(bytes, 40, attributes)
  return bytes
}

export function attrOut (attributes: Attributes, attrSeconds: number): Buffer {
  const bytes = Buffer.alloc(16 + ATTR_BYTES)
  bytes.writeBigUInt64LE(BigInt(attrSeconds), 0)
  writeAttr(bytes, 16, attributes)
  return bytes
}

export function openOut (fh: number, openFlags: number): Buffer {
  const bytes = Buffer.alloc(16)
  bytes.writeBigUInt64LE(BigInt(fh), 0)
  bytes.writeUInt32LE(openFlags, 8)
  return bytes
}

export function writeOut (size: number): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeUInt32LE(size, 0)
  return bytes
}

export function lseekOut (offset: number): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(BigInt(offset), 0)
  return bytes
}

const FUSE_NOTIFY_INVAL_INODE = 2
const FUSE_NOTIFY_RESEND = 7

/** A whole message that answers nothing: the kernel sends again what was read from the device and not answered. */
export function notifyResend (): Buffer {
  const bytes = Buffer.alloc(OUT_HEADER_BYTES)
  bytes.writeUInt32LE(bytes.length, 0)
  bytes.writeInt32LE(FUSE_NOTIFY_RESEND, 4)
  return bytes
}

/** A whole message that answers nothing: the kernel writes back and drops its pages of `[from, to)` of the inode. */
export function notifyInvalInode (ino: bigint, from: number, to: number): Buffer {
  const bytes = Buffer.alloc(OUT_HEADER_BYTES + 24)
  bytes.writeUInt32LE(bytes.length, 0)
  bytes.writeInt32LE(FUSE_NOTIFY_INVAL_INODE, 4)
  bytes.writeBigUInt64LE(ino, OUT_HEADER_BYTES)
  bytes.writeBigInt64LE(BigInt(from), OUT_HEADER_BYTES + 8)
  bytes.writeBigInt64LE(BigInt(to - from), OUT_HEADER_BYTES + 16)
  return bytes
}

export interface Kstatfs {
  readonly blocks: number
  readonly bfree: number
  readonly bavail: number
  readonly files: number
  readonly ffree: number
  readonly bsize: number
}

export function statfsOut (statfs: Kstatfs): Buffer {
  const bytes = Buffer.alloc(80)
  for (const [index, field] of (['blocks', 'bfree', 'bavail', 'files', 'ffree'] as const).entries()) {
    bytes.writeBigUInt64LE(BigInt(statfs[field]), index * 8)
  }
  bytes.writeUInt32LE(statfs.bsize, 40)
  bytes.writeUInt32LE(255, 44) // namelen, as everywhere on Linux
  bytes.writeUInt32LE(statfs.bsize, 48)
  return bytes
}

/** The answer to GETXATTR and LISTXATTR: the bytes, or their number when the caller only asks for that. ERANGE when too small. */
export function xattrOut (value: Buffer, size: number): Buffer {
  if (size === 0) {
    const bytes = Buffer.alloc(8)
    bytes.writeUInt32LE(value.length, 0)
    return bytes
  }
  if (value.length > size) throw new ErrnoError(ERRNO.ERANGE)
  return value
}

/** `result` is what ioctl(2) returns, a negative errno included; the bytes reach the caller either way. */
export function ioctlOut (result: number, out: Buffer): Buffer {
  const bytes = Buffer.alloc(16 + out.length)
  bytes.writeInt32LE(result, 0)
  out.copy(bytes, 16)
  return bytes
}

export interface Dirent {
  readonly ino: bigint
  readonly name: string
  readonly directory: boolean
}

const DIRENT_BYTES = 24
const DT_DIR = 4
const DT_REG = 8

/** As many entries from `first` on as fit in `size` bytes. An entry's `off` is the index of the one after it. */
export function direntsOut (entries: readonly Dirent[], first: number, size: number): Buffer {
  const parts: Buffer[] = []
  let room = size
  for (let index = first; index < entries.length; index++) {
    const entry = entries[index]
    if (entry === undefined) break
    const name = Buffer.from(entry.name)
    const bytes = Buffer.alloc(Math.ceil((DIRENT_BYTES + name.length) / 8) * 8)
    if (bytes.length > room) break
    bytes.writeBigUInt64LE(entry.ino, 0)
    bytes.writeBigUInt64LE(BigInt(index + 1), 8)
    bytes.writeUInt32LE(name.length, 16)
    bytes.writeUInt32LE(entry.directory ? DT_DIR : DT_REG, 20)
    name.copy(bytes, DIRENT_BYTES)
    parts.push(bytes)
    room -= bytes.length
  }
  return Buffer.concat(parts)
}

const INIT_OUT_BYTES = 64

/** `resend`: to be taken, if it is offered. EPROTO when the kernel is too old to be served. */
export function initOut (init: InitIn, { resend }: { readonly resend: boolean }): Buffer {
  if (init.major !== FUSE_KERNEL_VERSION || init.minor < FUSE_MINOR_MIN) throw new ErrnoError(ERRNO.EPROTO)
  const bytes = Buffer.alloc(INIT_OUT_BYTES)
  bytes.writeUInt32LE(FUSE_KERNEL_VERSION, 0)
  bytes.writeUInt32LE(Math.min(FUSE_KERNEL_MINOR_VERSION, init.minor), 4)
  // The kernel takes the lesser of this and what the mount's read-ahead is set to (device.ts).
  bytes.writeUInt32LE(Math.max(init.maxReadahead, READ_AHEAD_BYTES), 8)
  const extended = resend && offersResend(init)
  bytes.writeUInt32LE((init.flags & (extended ? INIT_FLAGS | FUSE_INIT_EXT : INIT_FLAGS)) >>> 0, 12)
  bytes.writeUInt16LE(MAX_BACKGROUND, 16)
  bytes.writeUInt16LE(CONGESTION_THRESHOLD, 18)
  bytes.writeUInt32LE(MAX_WRITE_BYTES, 20)
  bytes.writeUInt32LE(1, 24) // time_gran, ns
  bytes.writeUInt16LE(MAX_PAGES, 28)
  if (extended) bytes.writeUInt32LE(FUSE_HAS_RESEND_2, 32)
  return bytes
}

/** A whole message to the kernel: header and payload. `error` is a positive errno, or 0. */
export function reply (unique: bigint, error: number, payload: Buffer = Buffer.alloc(0)): Buffer {
  const bytes = Buffer.allocUnsafe(OUT_HEADER_BYTES + (error === 0 ? payload.length : 0)) // all of it is written
  bytes.writeUInt32LE(bytes.length, 0)
  bytes.writeInt32LE(-error, 4)
  bytes.writeBigUInt64LE(unique, 8)
  if (error === 0) payload.copy(bytes, OUT_HEADER_BYTES)
  return bytes
}
