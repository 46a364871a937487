/**
 * What the FUSE server does for each request on the main thread: one method per row of opcodes.ts, from the bytes after the
 * header to the bytes of the reply. Throwing is an errno. Knows no device, so tests call it with bytes.
 *
 * What changes what the kernel counts on is in the journal before its answer goes out (`kernel-state.ts`). A request that comes
 * again, from the hands of a killed server, finds its own record there and is answered as that; without one it is handled as if it
 * were new, which changes nothing that was done already:
 *
 *   - WRITE and FALLOCATE: the same bytes in the same place. A later write of the same bytes cannot have been answered meanwhile: the
 *     kernel writes back a page again only when its last writeback was answered, and holds the file's lock for the others. Only programs
 *     that have several O_DIRECT writes of the same bytes under way at once may find any of them last, as they may on a disk.
 *   - FSYNC: the writes before it were answered before it was sent. The cut of a seal is lost with its server; the daemon asks again.
 *   - SETATTR, READ, GETATTR and their kind follow from what is on disk.
 *   - FORGET is never sent again: one that a killed server had read is lost, and the inode stays known until the mount ends.
 *
 * State it owns: the listings of open folders.
 */
import { ErrnoError, ERRNO } from '../errno.ts'
import type { KernelState } from '../kernel-state.ts'
import type { Journal } from '../mount-journal.ts'
import { type Entry, type Inode, knownInode, type Namespace } from '../namespace.ts'
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
  readonly journal: Journal
  /** The server may be replaced by another one: the kernel is to keep what it has not answered. */
  readonly resend: boolean
  /** `resend`: the kernel does that. */
  readonly onInit: (resend: boolean) => void
}

/** Answers about names may change at any time; about an inode they never do (sizes of working copies and times are the kernel's). */
const NAME_SECONDS = 1
const FOR_EVER_SECONDS = 24 * 3600

type Answer = Buffer | undefined

export class Handlers {
  readonly #components: HandlersComponents
  /** Those that a server before this one has listed are listed again when they are read. */
  readonly #listings = new Map<number, { readonly ino: bigint, entries: Entry[] | undefined }>()
  #lastListing = 0

  constructor (components: HandlersComponents) {
    this.#components = components
  }

  /** What the kernel has open from a server before this one. */
  restore ({ folders, lastFolder }: Pick<KernelState, 'folders' | 'lastFolder'>): void {
    for (const [fh, ino] of folders) this.#listings.set(fh, { ino: BigInt(ino), entries: undefined })
    this.#lastListing = lastFolder
  }

  get #journal (): Journal {
    return this.#components.journal
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
    const { resend, onInit } = this.#components
    const init = wire.readInitIn(body)
    const out = wire.initOut(init, { resend })
    onInit(resend && wire.offersResend(init))
    return out
  }

  async lookup ({ header, body, signal }: Request): Promise<Answer> {
    const parent = this.#inode(header)
    const unique = uniqueOf(header)
    const answered = this.#journal.answered(unique, 'lookup')
    const inode = answered !== undefined
      ? this.#namespace.inode(BigInt(answered.ino))
      : await this.#operations.lookup(parent, wire.readLookupName(body), signal)
    if (answered === undefined) {
      this.#namespace.remember(inode)
      this.#journal.append({ kind: 'lookup', unique, ino: String(inode.ino), inode: knownInode(inode) })
    }
    const fixed = parent.kind === 'image' || inode.kind === 'by-name' || inode.kind === 'working'
    return wire.entryOut(this.#operations.attributes(inode), { entrySeconds: fixed ? FOR_EVER_SECONDS : NAME_SECONDS, attrSeconds: FOR_EVER_SECONDS })
  }

  forget ({ header, body }: Request): Answer {
    this.#forget(header.nodeid, wire.readForgetIn(body).nlookup)
    return undefined
  }

  batchForget ({ body }: Request): Answer {
    for (const { nodeid, nlookup } of wire.readBatchForgetIn(body)) this.#forget(nodeid, nlookup)
    return undefined
  }

  #forget (ino: bigint, nlookup: number): void {
    this.#namespace.forget(ino, nlookup)
    this.#journal.append({ kind: 'forget', ino: String(ino), nlookup })
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
    if ((valid & wire.FATTR_MTIME) !== 0) this.#journal.append({ kind: 'mtime', ino: String(inode.ino), mtimeMs })
    return wire.attrOut(this.#operations.attributes(inode), FOR_EVER_SECONDS)
  }

  async open ({ header, body }: Request): Promise<Answer> {
    const inode = this.#inode(header)
    const unique = uniqueOf(header)
    let open: { readonly fh: number, readonly keepsPages: boolean } | undefined = this.#journal.answered(unique, 'open')
    if (open === undefined) {
      const { fh, keepsPages } = await this.#operations.open(inode, wire.readOpenIn(body))
      // A killed server may have said on disk that this mount's pages are right, and not yet to the kernel that they were not.
      open = { fh, keepsPages: keepsPages && !wire.isResent(header.unique) }
      this.#journal.append({ kind: 'open', unique, ino: String(inode.ino), ...open })
    }
    return wire.openOut(open.fh, wire.FOPEN_PARALLEL_DIRECT_WRITES | (open.keepsPages ? wire.FOPEN_KEEP_CACHE : 0))
  }

  async release ({ header, body }: Request): Promise<Answer> {
    const unique = uniqueOf(header)
    if (this.#journal.answered(unique, 'release') !== undefined) return undefined
    const fh = wire.readFh(body)
    await this.#files.release(fh)
    this.#journal.append({ kind: 'release', unique, fh })
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

  /** Workers have written much to a file. */
  written (fh: number): void {
    this.#files.writeBack(fh)
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
    const unique = uniqueOf(header)
    const answered = this.#journal.answered(unique, 'opendir')
    if (answered !== undefined) return wire.openOut(answered.fh, 0)
    const ino = header.nodeid
    const entries = await this.#list(ino, signal)
    const fh = ++this.#lastListing
    this.#listings.set(fh, { ino, entries })
    this.#journal.append({ kind: 'opendir', unique, fh, ino: String(ino) })
    return wire.openOut(fh, 0)
  }

  async #list (ino: bigint, signal: AbortSignal): Promise<Entry[]> {
    const listed = await this.#operations.list(this.#namespace.inode(ino), signal)
    return [
      { name: '.', ino, directory: true },
      { name: '..', ino: wire.FUSE_ROOT_ID, directory: true }, // every folder is at most two levels down; nobody goes by it
      ...listed
    ]
  }

  async readdir ({ body, signal }: Request): Promise<Answer> {
    const { fh, offset, size } = wire.readReadIn(body)
    const listing = this.#listings.get(fh)
    if (listing === undefined) throw new ErrnoError(ERRNO.EBADF)
    listing.entries ??= await this.#list(listing.ino, signal)
    return wire.direntsOut(listing.entries, offset, size)
  }

  releasedir ({ header, body }: Request): Answer {
    const fh = wire.readFh(body)
    this.#listings.delete(fh)
    this.#journal.append({ kind: 'releasedir', unique: uniqueOf(header), fh })
    return undefined
  }

  async setxattr ({ header, body }: Request): Promise<Answer> {
    const { name, value } = wire.readSetxattrIn(body)
    await this.#operations.setAttribute(header.unique, this.#inode(header), name, value)
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
    const { result, out } = await this.#operations.commands.ioctl(header.unique, cmd, bytes, await this.#operations.copyToCommit(inode), signal)
    return wire.ioctlOut(result, out)
  }

  /** Only block-device mounts get it. */
  destroy (): Answer {
    return undefined
  }
}

/** As the journal has it. */
function uniqueOf ({ unique }: wire.InHeader): string {
  return String(wire.originalUnique(unique))
}
