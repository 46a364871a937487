/**
 * What the FUSE server does for each request on the main thread: one method per row of opcodes.ts, from the bytes after the
 * header to the bytes of the reply. Throwing is an errno. Knows no device, so tests call it with bytes.
 *
 * State it owns: the listings of open folders, and that INIT has been answered.
 */
import { ErrnoError, ERRNO } from '../errno.ts'
import type { Entry, Inode, Namespace } from '../namespace.ts'
import type { OpenFiles } from '../open-files.ts'
import type { Operations } from '../operations.ts'
import { isOurs } from './commands.ts'
import * as wire from './protocol.ts'

export interface Request {
  readonly header: wire.InHeader
  readonly body: Buffer
  /** Aborts when whoever asked was interrupted, or the mount ends. */
  readonly signal: AbortSignal
}

export interface HandlersComponents {
  readonly operations: Operations
  readonly onInit: () => void
}

/** Answers about names may change at any time; about an inode they never do (sizes of working copies and times are the kernel's). */
const NAME_SECONDS = 1
const FOR_EVER_SECONDS = 24 * 3600

type Answer = Buffer | undefined

export class Handlers {
  readonly #components: HandlersComponents
  readonly #listings = new Map<number, Entry[]>()
  #lastListing = 0

  constructor (components: HandlersComponents) {
    this.#components = components
  }

  get #operations (): Operations {
    return this.#components.operations
  }

  get #namespace (): Namespace {
    return this.#operations.namespace
  }

  get #files (): OpenFiles {
    return this.#operations.files
  }

  #inode (header: wire.InHeader): Inode {
    return this.#namespace.inode(header.nodeid)
  }

  init ({ body }: Request): Answer {
    const out = wire.initOut(wire.readInitIn(body))
    this.#components.onInit()
    return out
  }

  async lookup ({ header, body, signal }: Request): Promise<Answer> {
    const parent = this.#inode(header)
    const inode = await this.#operations.lookup(parent, wire.readLookupName(body), signal)
    this.#namespace.remember(inode)
    const fixed = parent.kind === 'image' || inode.kind === 'by-name' || inode.kind === 'working'
    return wire.entryOut(this.#operations.attributes(inode), { entrySeconds: fixed ? FOR_EVER_SECONDS : NAME_SECONDS, attrSeconds: FOR_EVER_SECONDS })
  }

  forget ({ header, body }: Request): Answer {
    this.#namespace.forget(header.nodeid, wire.readForgetIn(body).nlookup)
    return undefined
  }

  batchForget ({ body }: Request): Answer {
    for (const { nodeid, nlookup } of wire.readBatchForgetIn(body)) this.#namespace.forget(nodeid, nlookup)
    return undefined
  }

  getattr ({ header }: Request): Answer {
    return wire.attrOut(this.#operations.attributes(this.#inode(header)), FOR_EVER_SECONDS)
  }

  /** Times, with which an fsync begins, and a size that is not smaller. */
  async setattr ({ header, body }: Request): Promise<Answer> {
    const inode = this.#inode(header)
    const { valid, size, mtimeMs } = wire.readSetattrIn(body)
    await this.#operations.change(inode, {
      ownership: (valid & wire.FATTR_OWNERSHIP) !== 0,
      size: (valid & wire.FATTR_SIZE) === 0 ? undefined : size,
      mtimeMs: (valid & wire.FATTR_MTIME) === 0 ? undefined : mtimeMs
    })
    return wire.attrOut(this.#operations.attributes(inode), FOR_EVER_SECONDS)
  }

  async open ({ header, body }: Request): Promise<Answer> {
    const { fh, keepsPages } = await this.#operations.open(this.#inode(header), wire.readOpenIn(body))
    return wire.openOut(fh, wire.FOPEN_PARALLEL_DIRECT_WRITES | (keepsPages ? wire.FOPEN_KEEP_CACHE : 0))
  }

  async release ({ body }: Request): Promise<Answer> {
    await this.#files.release(wire.readFh(body))
    return undefined
  }

  async read ({ body }: Request): Promise<Answer> {
    const { fh, offset, size } = wire.readReadIn(body)
    return await this.#files.byFh(fh).read(offset, Math.min(size, wire.MAX_WRITE_BYTES))
  }

  async write ({ body }: Request): Promise<Answer> {
    const { fh, offset, bytes } = wire.readWriteIn(body)
    await this.#files.byFh(fh).write(offset, bytes)
    return wire.writeOut(bytes.length)
  }

  async lseek ({ body }: Request): Promise<Answer> {
    const { fh, offset, whence } = wire.readLseekIn(body)
    return wire.lseekOut(await this.#files.seek(fh, offset, whence))
  }

  async fallocate ({ body }: Request): Promise<Answer> {
    const { fh, offset, length, mode } = wire.readFallocateIn(body)
    await this.#files.fallocate(fh, offset, length, mode)
    return undefined
  }

  async fsync ({ header, body }: Request): Promise<Answer> {
    await this.#files.fsync(wire.readFh(body), header.pid)
    return undefined
  }

  /** The kernel has written back what was dirty before it sends this; durability is for fsync. */
  flush (): Answer {
    return undefined
  }

  async statfs (): Promise<Answer> {
    return wire.statfsOut(await this.#operations.statfs())
  }

  async opendir ({ header, signal }: Request): Promise<Answer> {
    const inode = this.#inode(header)
    const listed = await this.#operations.list(inode, signal)
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
    const { name, value } = wire.readSetxattrIn(body)
    await this.#operations.setAttribute(this.#inode(header), name, value)
    return undefined
  }

  async getxattr ({ header, body }: Request): Promise<Answer> {
    const { name, size } = wire.readGetxattrIn(body)
    return wire.xattrOut(await this.#operations.attribute(this.#inode(header), name), size)
  }

  listxattr ({ header, body }: Request): Answer {
    const names = this.#operations.attributeNames(this.#inode(header)).map((name) => `${name}\0`)
    return wire.xattrOut(Buffer.from(names.join('')), wire.readListxattrIn(body).size)
  }

  async ioctl ({ header, body, signal }: Request): Promise<Answer> {
    const { cmd, bytes } = wire.readIoctlIn(body)
    const inode = this.#inode(header)
    if (!isOurs(cmd)) throw new ErrnoError(ERRNO.ENOTTY) // isatty(3) and the like
    const { result, out } = await this.#operations.commands.ioctl(cmd, bytes, await this.#operations.copyToCommit(inode), signal)
    return wire.ioctlOut(result, out)
  }

  /** Only block-device mounts get it. */
  destroy (): Answer {
    return undefined
  }
}
