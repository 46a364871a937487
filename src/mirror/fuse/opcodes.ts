/** The kernel's requests: one row per opcode. Names as in linux/fuse.h, version 7.38. */

/** Methods of `Handlers`, or what is done without one. */
export type HandlerName =
  | 'lookup' | 'forget' | 'getattr' | 'setattr' | 'open' | 'read' | 'write' | 'statfs' | 'release' | 'fsync' | 'setxattr' | 'getxattr'
  | 'listxattr' | 'flush' | 'init' | 'opendir' | 'readdir' | 'releasedir' | 'interrupt' | 'destroy' | 'ioctl' | 'batchForget' | 'lseek' | 'fallocate'

export interface OpcodeRow {
  readonly opcode: number
  readonly name: string
  /** A handler; 'refuse' is EROFS (this tree is not made by its users); 'unsupported' is ENOSYS (the kernel does not ask again). */
  readonly handler: HandlerName | 'refuse' | 'unsupported'
  /** Bytes after the header, at least; a shorter request is answered EINVAL. */
  readonly bodyBytesMin: number
  /** False: the kernel waits for no answer, and one would be an error. */
  readonly replies: boolean
}

export const FUSE_READ = 15
export const FUSE_WRITE = 16

const row = (opcode: number, name: string, handler: OpcodeRow['handler'], bodyBytesMin = 0, replies = true): [number, OpcodeRow] =>
  [opcode, { opcode, name, handler, bodyBytesMin, replies }]

export const OPCODES: ReadonlyMap<number, OpcodeRow> = new Map([
  row(1, 'FUSE_LOOKUP', 'lookup', 2),
  row(2, 'FUSE_FORGET', 'forget', 8, false),
  row(3, 'FUSE_GETATTR', 'getattr', 16),
  row(4, 'FUSE_SETATTR', 'setattr', 88),
  row(5, 'FUSE_READLINK', 'unsupported'),
  row(6, 'FUSE_SYMLINK', 'refuse'),
  row(8, 'FUSE_MKNOD', 'refuse'),
  row(9, 'FUSE_MKDIR', 'refuse'),
  row(10, 'FUSE_UNLINK', 'refuse'),
  row(11, 'FUSE_RMDIR', 'refuse'),
  row(12, 'FUSE_RENAME', 'refuse'),
  row(13, 'FUSE_LINK', 'refuse'),
  row(14, 'FUSE_OPEN', 'open', 8),
  row(FUSE_READ, 'FUSE_READ', 'read', 40),
  row(FUSE_WRITE, 'FUSE_WRITE', 'write', 40),
  row(17, 'FUSE_STATFS', 'statfs'),
  row(18, 'FUSE_RELEASE', 'release', 24),
  row(20, 'FUSE_FSYNC', 'fsync', 16),
  row(21, 'FUSE_SETXATTR', 'setxattr', 10),
  row(22, 'FUSE_GETXATTR', 'getxattr', 10),
  row(23, 'FUSE_LISTXATTR', 'listxattr', 8),
  row(24, 'FUSE_REMOVEXATTR', 'refuse'),
  row(25, 'FUSE_FLUSH', 'flush', 24),
  row(26, 'FUSE_INIT', 'init', 16),
  row(27, 'FUSE_OPENDIR', 'opendir', 8),
  row(28, 'FUSE_READDIR', 'readdir', 40),
  row(29, 'FUSE_RELEASEDIR', 'releasedir', 24),
  row(30, 'FUSE_FSYNCDIR', 'unsupported'),
  row(31, 'FUSE_GETLK', 'unsupported'),
  row(32, 'FUSE_SETLK', 'unsupported'),
  row(33, 'FUSE_SETLKW', 'unsupported'),
  row(34, 'FUSE_ACCESS', 'unsupported'), // default_permissions: the kernel checks modes itself
  row(35, 'FUSE_CREATE', 'refuse'),
  row(36, 'FUSE_INTERRUPT', 'interrupt', 8, false),
  row(37, 'FUSE_BMAP', 'unsupported'),
  row(38, 'FUSE_DESTROY', 'destroy'),
  row(39, 'FUSE_IOCTL', 'ioctl', 32),
  row(40, 'FUSE_POLL', 'unsupported'),
  row(42, 'FUSE_BATCH_FORGET', 'batchForget', 8, false),
  row(43, 'FUSE_FALLOCATE', 'fallocate', 32),
  row(44, 'FUSE_READDIRPLUS', 'unsupported'), // not asked for at INIT
  row(45, 'FUSE_RENAME2', 'refuse'),
  row(46, 'FUSE_LSEEK', 'lseek', 24),
  row(47, 'FUSE_COPY_FILE_RANGE', 'unsupported'), // the kernel reads and writes instead
  row(50, 'FUSE_SYNCFS', 'unsupported'),
  row(51, 'FUSE_TMPFILE', 'refuse'),
  row(52, 'FUSE_STATX', 'unsupported') // newer than 7.38; the kernel asks with FUSE_GETATTR then
])
