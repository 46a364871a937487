/** The kernel's requests: one row per opcode. Names as in linux/fuse.h, version 7.38. */

/** Methods of `Handlers`, or what is done without one. */
export type HandlerName =
  | 'lookup' | 'forget' | 'getattr' | 'setattr' | 'open' | 'read' | 'write' | 'statfs' | 'release' | 'fsync' | 'setxattr' | 'getxattr'
  | 'listxattr' | 'flush' | 'init' | 'opendir' | 'readdir' | 'releasedir' | 'interrupt' | 'destroy' | 'ioctl' | 'batchForget' | 'lseek' | 'fallocate'

/** Bytes after the header, from and to. */
export type Sizes = readonly [min: number, max: number]

export interface OpcodeRow {
  readonly opcode: number
  readonly name: string
  /** A handler; 'refuse' is EROFS (this tree is not made by its users); 'unsupported' is ENOSYS (the kernel does not ask again). */
  readonly handler: HandlerName | 'refuse' | 'unsupported'
  /** Bytes after the header, at least; a shorter request is answered EINVAL. */
  readonly bodyBytesMin: number
  /** Of an answer without an error. The kernel takes another size for a protocol error: EIO, or the end of the connection. */
  readonly replyBytes: Sizes
  /** False: the kernel waits for no answer, and one would be an error. */
  readonly replies: boolean
}

export const FUSE_READ = 15
export const FUSE_WRITE = 16

/** fuse_entry_out, fuse_attr_out, fuse_open_out, fuse_write_out, fuse_lseek_out, fuse_statfs_out, fuse_init_out, fuse_ioctl_out. */
const ENTRY: Sizes = [128, 128]
const ATTR: Sizes = [104, 104]
const OPEN: Sizes = [16, 16]
const WRITE: Sizes = [8, 8]
const LSEEK: Sizes = [8, 8]
const STATFS: Sizes = [80, 80]
const INIT: Sizes = [64, 64]
const IOCTL: Sizes = [16, 16 + 2 ** 14 - 1] // the command has 14 bits for the size of its argument
/** As many as were asked for, or fewer at the end. */
const SOME: Sizes = [0, 2 ** 20]
/** fuse_getxattr_out or the bytes themselves, of which the kernel takes XATTR_SIZE_MAX. */
const XATTR: Sizes = [0, 2 ** 16]
const NOTHING: Sizes = [0, 0]

const row = (opcode: number, name: string, handler: OpcodeRow['handler'], bodyBytesMin = 0, replyBytes: Sizes = NOTHING): [number, OpcodeRow] =>
  [opcode, { opcode, name, handler, bodyBytesMin, replyBytes, replies: !SILENT.includes(opcode) }]

/** FUSE_FORGET, FUSE_INTERRUPT, FUSE_BATCH_FORGET. */
const SILENT: readonly number[] = [2, 36, 42]

export const OPCODES: ReadonlyMap<number, OpcodeRow> = new Map([
  row(1, 'FUSE_LOOKUP', 'lookup', 2, ENTRY),
  row(2, 'FUSE_FORGET', 'forget', 8),
  row(3, 'FUSE_GETATTR', 'getattr', 16, ATTR),
  row(4, 'FUSE_SETATTR', 'setattr', 88, ATTR),
  row(5, 'FUSE_READLINK', 'unsupported'),
  row(6, 'FUSE_SYMLINK', 'refuse'),
  row(8, 'FUSE_MKNOD', 'refuse'),
  row(9, 'FUSE_MKDIR', 'refuse'),
  row(10, 'FUSE_UNLINK', 'refuse'),
  row(11, 'FUSE_RMDIR', 'refuse'),
  row(12, 'FUSE_RENAME', 'refuse'),
  row(13, 'FUSE_LINK', 'refuse'),
  row(14, 'FUSE_OPEN', 'open', 8, OPEN),
  row(FUSE_READ, 'FUSE_READ', 'read', 40, SOME),
  row(FUSE_WRITE, 'FUSE_WRITE', 'write', 40, WRITE),
  row(17, 'FUSE_STATFS', 'statfs', 0, STATFS),
  row(18, 'FUSE_RELEASE', 'release', 24),
  row(20, 'FUSE_FSYNC', 'fsync', 16),
  row(21, 'FUSE_SETXATTR', 'setxattr', 10),
  row(22, 'FUSE_GETXATTR', 'getxattr', 10, XATTR),
  row(23, 'FUSE_LISTXATTR', 'listxattr', 8, XATTR),
  row(24, 'FUSE_REMOVEXATTR', 'refuse'),
  row(25, 'FUSE_FLUSH', 'flush', 24),
  row(26, 'FUSE_INIT', 'init', 16, INIT),
  row(27, 'FUSE_OPENDIR', 'opendir', 8, OPEN),
  row(28, 'FUSE_READDIR', 'readdir', 40, SOME),
  row(29, 'FUSE_RELEASEDIR', 'releasedir', 24),
  row(30, 'FUSE_FSYNCDIR', 'unsupported'),
  row(31, 'FUSE_GETLK', 'unsupported'),
  row(32, 'FUSE_SETLK', 'unsupported'),
  row(33, 'FUSE_SETLKW', 'unsupported'),
  row(34, 'FUSE_ACCESS', 'unsupported'), // default_permissions: the kernel checks modes itself
  row(35, 'FUSE_CREATE', 'refuse'),
  row(36, 'FUSE_INTERRUPT', 'interrupt', 8),
  row(37, 'FUSE_BMAP', 'unsupported'),
  row(38, 'FUSE_DESTROY', 'destroy'),
  row(39, 'FUSE_IOCTL', 'ioctl', 32, IOCTL),
  row(40, 'FUSE_POLL', 'unsupported'),
  row(42, 'FUSE_BATCH_FORGET', 'batchForget', 8),
  row(43, 'FUSE_FALLOCATE', 'fallocate', 32),
  row(44, 'FUSE_READDIRPLUS', 'unsupported'), // not asked for at INIT
  row(45, 'FUSE_RENAME2', 'refuse'),
  row(46, 'FUSE_LSEEK', 'lseek', 24, LSEEK),
  row(47, 'FUSE_COPY_FILE_RANGE', 'unsupported'), // the kernel reads and writes instead
  row(50, 'FUSE_SYNCFS', 'unsupported'),
  row(51, 'FUSE_TMPFILE', 'refuse'),
  row(52, 'FUSE_STATX', 'unsupported') // newer than 7.38; the kernel asks with FUSE_GETATTR then
])
