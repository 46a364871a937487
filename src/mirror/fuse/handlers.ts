/**
 * What the FUSE server does for each request on the main thread: one method per row of opcodes.ts, from the bytes after the
 * header to the bytes of the reply. Throwing is an errno. Knows no device, so tests call it with bytes.
 *
 * State it owns: the listings of open folders, and that INIT has been answered.
 */
import { statfs } from 'node:fs/promises'
import { withDeadline } from '../../protocols/abort.ts'
import type { Clock } from '../../protocols/seams.ts'
import { ErrnoError, ERRNO } from '../errno.ts'
import type { Entry, Inode, Namespace } from '../namespace.ts'
import type { OpenFiles } from '../open-files.ts'
import { readWorkingCopy } from '../working-copy.ts'
import { type Commands, isOurs, XATTR_BASE, XATTR_CLONE, XATTR_COMMIT } from './commands.ts'
import * as wire from './protocol.ts'

export interface Request {
  readonly header: wire.InHeader
  readonly body: Buffer
  /** Aborts when whoever asked was interrupted, or the mount ends. */
  readonly signal: AbortSignal
}

export interface HandlersComponents {
  readonly namespace: Namespace
  readonly files: OpenFiles
  readonly commands: Commands
  /** Folder of the working copies: its file system is what statfs tells of. */
  readonly working: string
  readonly clock: Clock
  /** Names that the daemon has to be asked for, like chunks that it has to fetch, are waited for so long. */
  readonly missDeadlineMs: number
  readonly onInit: () => void
}

/** Answers about names may change at any time; about an inode they never do (sizes of working copies and times are the kernel's). */
const NAME_SECONDS = 1
const FOR_EVER_SECONDS = 24 * 3600
const S_IFDIR = 0o040000
const S_IFREG = 0o100000

type Answer = Buffer | undefined

export class Handlers {
  readonly #components: HandlersComponents
  readonly #listings = new Map<number, Entry[]>()
  #lastListing = 0

  constructor (components: HandlersComponents) {
    this.#components = components
  }

  init ({ body }: Request): Answer {
    const out = wire.initOut(wire.readInitIn(body))
    this.#components.onInit()
    return out
  }

  async lookup ({ header, body, signal }: Request): Promise<Answer> {
    const { namespace, clock, missDeadlineMs } = this.#components
    const parent = namespace.inode(header.nodeid)
    const inode = await withDeadline(clock, missDeadlineMs, [signal], async (own) =>
      await namespace.lookup(parent, wire.readLookupName(body), own))
    namespace.remember(inode)
    const fixed = parent.kind === 'image' || inode.kind === 'by-name' || inode.kind === 'working'
    return wire.entryOut(attributesOf(inode), { entrySeconds: fixed ? FOR_EVER_SECONDS : NAME_SECONDS, attrSeconds: FOR_EVER_SECONDS })
  }

  forget ({ header, body }: Request): Answer {
    this.#components.namespace.forget(header.nodeid, wire.readForgetIn(body).nlookup)
    return undefined
  }

  batchForget ({ body }: Request): Answer {
    for (const { nodeid, nlookup } of wire.readBatchForgetIn(body)) this.#components.namespace.forget(nodeid, nlookup)
    return undefined
  }

  getattr ({ header }: Request): Answer {
    return wire.attrOut(attributesOf(this.#components.namespace.inode(header.nodeid)), FOR_EVER_SECONDS)
  }

  /** Times, with which an fsync begins, and a size that is not smaller. */
  async setattr ({ header, body }: Request): Promise<Answer> {
    const inode = this.#components.namespace.inode(header.nodeid)
    const { valid, size, mtimeMs } = wire.readSetattrIn(body)
    if (inode.kind !== 'copy') throw new ErrnoError(ERRNO.EROFS)
    if ((valid & wire.FATTR_OWNERSHIP) !== 0) throw new ErrnoError(ERRNO.EPERM)
    if ((valid & wire.FATTR_SIZE) !== 0 && size !== inode.size) {
      if (size < inode.size) throw new ErrnoError(ERRNO.EPERM)
      await this.#components.files.withCopy(inode, async (copy) => { await copy.grow(size) })
    }
    if ((valid & wire.FATTR_MTIME) !== 0) inode.mtimeMs = mtimeMs
    return wire.attrOut(attributesOf(inode), FOR_EVER_SECONDS)
  }

  async open ({ header, body }: Request): Promise<Answer> {
    const inode = this.#components.namespace.inode(header.nodeid)
    if (inode.kind === 'version' && wire.readOpenIn(body).writes) throw new ErrnoError(ERRNO.EROFS)
    const { fh, keepsPages } = await this.#components.files.open(inode)
    return wire.openOut(fh, wire.FOPEN_PARALLEL_DIRECT_WRITES | (keepsPages ? wire.FOPEN_KEEP_CACHE : 0))
  }

  async release ({ body }: Request): Promise<Answer> {
    await this.#components.files.release(wire.readFh(body))
    return undefined
  }

  async read ({ body }: Request): Promise<Answer> {
    const { fh, offset, size } = wire.readReadIn(body)
    return await this.#components.files.byFh(fh).read(offset, Math.min(size, wire.MAX_WRITE_BYTES))
  }

  async write ({ body }: Request): Promise<Answer> {
    const { fh, offset, bytes } = wire.readWriteIn(body)
    await this.#components.files.byFh(fh).write(offset, bytes)
    return wire.writeOut(bytes.length)
  }

  async lseek ({ body }: Request): Promise<Answer> {
    const { fh, offset, whence } = wire.readLseekIn(body)
    return wire.lseekOut(await this.#components.files.seek(fh, offset, whence))
  }

  async fallocate ({ body }: Request): Promise<Answer> {
    const { fh, offset, length, mode } = wire.readFallocateIn(body)
    await this.#components.files.fallocate(fh, offset, length, mode)
    return undefined
  }

  async fsync ({ header, body }: Request): Promise<Answer> {
    await this.#components.files.fsync(wire.readFh(body), header.pid)
    return undefined
  }

  /** The kernel has written back what was dirty before it sends this; durability is for fsync. */
  flush (): Answer {
    return undefined
  }

  async statfs (): Promise<Answer> {
    return wire.statfsOut(await statfs(this.#components.working))
  }

  async opendir ({ header, signal }: Request): Promise<Answer> {
    const { namespace, clock, missDeadlineMs } = this.#components
    const inode = namespace.inode(header.nodeid)
    const listed = await withDeadline(clock, missDeadlineMs, [signal], async (own) => await namespace.list(inode, own))
    const entries = [
      { name: '.', ino: inode.ino, directory: true },
      { name: '..', ino: wire.FUSE_ROOT_ID, directory: true }, // every folder is at most two levels down; nobody goes by it
      ...listed
    ]
    const listing = ++this.#lastListing
    this.#listings.set(listing, entries)
    return wire.openOut(listing, 0)
  }

  readdir ({ body }: Request): Answer {
    const { fh, offset, size } = wire.readReadIn(body)
    const entries = this.#listings.get(fh)
    if (entries === undefined) throw new ErrnoError(ERRNO.EBADF)
    return wire.direntsOut(entries, offset, size)
  }

  releasedir ({ body }: Request): Answer {
    this.#listings.delete(wire.readFh(body))
    return undefined
  }

  async setxattr ({ header, body }: Request): Promise<Answer> {
    const inode = this.#components.namespace.inode(header.nodeid)
    const { name, value } = wire.readSetxattrIn(body)
    if (name !== XATTR_COMMIT && name !== XATTR_CLONE) throw new ErrnoError(ERRNO.ENOTSUP)
    this.#components.commands.start(name, value, await this.#copyToCommit(inode))
    return undefined
  }

  async getxattr ({ header, body }: Request): Promise<Answer> {
    const inode = this.#components.namespace.inode(header.nodeid)
    const { name, size } = wire.readGetxattrIn(body)
    if (name === XATTR_BASE) return wire.xattrOut(Buffer.from(await this.#baseOf(inode)), size)
    // ENOSYS to any other name would end all extended attributes of the mount.
    if (inode.kind !== 'copy' || (name !== XATTR_COMMIT && name !== XATTR_CLONE)) throw new ErrnoError(ERRNO.ENODATA)
    return wire.xattrOut(this.#components.commands.outcome(name, inode.name), size)
  }

  listxattr ({ header, body }: Request): Answer {
    const inode = this.#components.namespace.inode(header.nodeid)
    const names = inode.kind === 'copy' || inode.kind === 'version' ? `${XATTR_BASE}\0` : ''
    return wire.xattrOut(Buffer.from(names), wire.readListxattrIn(body).size)
  }

  async #baseOf (inode: Inode): Promise<string> {
    if (inode.kind !== 'version' && inode.kind !== 'copy') throw new ErrnoError(ERRNO.ENODATA)
    let base: { blob: string, version: number } = inode.ref
    if (inode.kind === 'copy') {
      base = await readWorkingCopy(this.#components.working, inode.name).catch(() => inode.ref) // an alias that is not there yet
    }
    return `${base.blob}@${base.version}`
  }

  async ioctl ({ header, body, signal }: Request): Promise<Answer> {
    const { cmd, bytes } = wire.readIoctlIn(body)
    const inode = this.#components.namespace.inode(header.nodeid)
    if (!isOurs(cmd)) throw new ErrnoError(ERRNO.ENOTTY) // isatty(3) and the like
    const { result, out } = await this.#components.commands.ioctl(cmd, bytes, await this.#copyToCommit(inode), signal)
    return wire.ioctlOut(result, out)
  }

  /** The name of the working copy, which the daemon will look for: it is there from now on, if it was an alias only. */
  async #copyToCommit (inode: Inode): Promise<string> {
    if (inode.kind !== 'copy') throw new ErrnoError(inode.kind === 'version' ? ERRNO.EROFS : ERRNO.ENOTSUP)
    await this.#components.files.withCopy(inode, async (copy) => { await copy.makeWritable() })
    return inode.name
  }

  /** Only block-device mounts get it. */
  destroy (): Answer {
    return undefined
  }
}

function sizeOf (inode: Inode): number {
  if (inode.kind === 'copy') return inode.size
  return inode.kind === 'version' ? inode.ref.size : 0
}

function attributesOf (inode: Inode): wire.Attributes {
  const file = inode.kind === 'version' || inode.kind === 'copy'
  return {
    ino: inode.ino,
    size: sizeOf(inode),
    mtimeMs: file ? inode.mtimeMs : 0,
    mode: file ? S_IFREG | (inode.kind === 'copy' ? 0o644 : 0o444) : S_IFDIR | 0o755,
    nlink: file ? 1 : 2,
    uid: 0,
    gid: 0
  }
}
