/**
 * What can be done with an inode of the mount, whichever driver the kernel asks through: names, attributes, sizes, open
 * files, extended attributes. Throwing is an errno (`errno.ts`). A driver only translates: bytes of /dev/fuse
 * (`fuse/handlers.ts`), or paths (`fuse-native/path-operations.ts`).
 *
 * Owns no state. Not for: reading and writing (`mounted-file.ts`).
 */
import { statfs } from 'node:fs/promises'
import { withDeadline } from '../protocols/abort.ts'
import type { Clock } from '../protocols/seams.ts'
import { ERRNO, ErrnoError } from './errno.ts'
import { type Commands, XATTR_BASE, XATTR_CLONE, XATTR_COMMIT } from './fuse/commands.ts'
import type { Attributes, Kstatfs } from './fuse/protocol.ts'
import type { DirectoryInode, Entry, Inode, Namespace } from './namespace.ts'
import type { OpenFiles } from './open-files.ts'
import { readWorkingCopy } from './working-copy.ts'

export interface OperationsComponents {
  readonly namespace: Namespace
  readonly files: OpenFiles
  readonly commands: Commands
  /** Folder of the working copies: its file system is what statfs tells of. */
  readonly working: string
  readonly clock: Clock
  /** Names that the daemon has to be asked for, like chunks that it has to fetch, are waited for so long. */
  readonly missDeadlineMs: number
}

/** What chmod, chown, truncate and utimes ask for. */
export interface Change {
  /** An owner or a mode, whatever it is. */
  readonly ownership?: boolean
  /** Bytes. */
  readonly size?: number | undefined
  readonly mtimeMs?: number | undefined
}

const S_IFDIR = 0o040000
const S_IFREG = 0o100000

export class Operations {
  readonly #components: OperationsComponents
  /** Who mounts owns what is seen. */
  readonly #owner = { uid: process.geteuid?.() ?? 0, gid: process.getegid?.() ?? 0 }

  constructor (components: OperationsComponents) {
    this.#components = components
  }

  get namespace (): Namespace {
    return this.#components.namespace
  }

  get files (): OpenFiles {
    return this.#components.files
  }

  get commands (): Commands {
    return this.#components.commands
  }

  async lookup (parent: Inode, name: string, signal: AbortSignal): Promise<Inode> {
    return await this.#untilDeadline(signal, async (own) => await this.namespace.lookup(parent, name, own))
  }

  async walk (path: readonly string[], signal: AbortSignal): Promise<Inode> {
    return await this.#untilDeadline(signal, async (own) => await this.namespace.walk(path, own))
  }

  async list (directory: Inode, signal: AbortSignal): Promise<Entry[]> {
    return await this.#untilDeadline(signal, async (own) => await this.namespace.list(directory, own))
  }

  attributes (inode: Inode): Attributes {
    const file = isFile(inode)
    return {
      ino: inode.ino,
      size: this.#sizeOf(inode),
      mtimeMs: file ? inode.mtimeMs : 0,
      mode: file ? S_IFREG | (inode.kind === 'copy' ? 0o644 : 0o444) : S_IFDIR | 0o755,
      nlink: file ? 1 : 2,
      ...this.#owner
    }
  }

  #sizeOf (inode: Inode): number {
    if (inode.kind === 'copy') return this.files.sizeOf(inode.ino) ?? inode.size
    return inode.kind === 'version' ? inode.ref.size : 0
  }

  /** Times, and a size that is not smaller. */
  async change (inode: Inode, { ownership = false, size, mtimeMs }: Change): Promise<void> {
    if (inode.kind !== 'copy') throw new ErrnoError(ERRNO.EROFS)
    if (ownership) throw new ErrnoError(ERRNO.EPERM)
    const before = this.#sizeOf(inode)
    if (size !== undefined && size !== before) {
      if (size < before) throw new ErrnoError(ERRNO.EPERM)
      await this.files.withCopy(inode, async (copy) => { await copy.grow(size) })
      inode.size = size
    }
    if (mtimeMs !== undefined) inode.mtimeMs = mtimeMs
  }

  async open (inode: Inode, { writes }: { readonly writes: boolean }): Promise<{ fh: number, keepsPages: boolean }> {
    if (inode.kind === 'version' && writes) throw new ErrnoError(ERRNO.EROFS)
    return await this.files.open(inode)
  }

  async statfs (): Promise<Kstatfs> {
    return await statfs(this.#components.working)
  }

  /** `request`: the kernel's number of it, or another one that no other request of this mount has. */
  async setAttribute (request: bigint, inode: Inode, name: string, value: Buffer): Promise<void> {
    if (name !== XATTR_COMMIT && name !== XATTR_CLONE) throw new ErrnoError(ERRNO.ENOTSUP)
    this.commands.start(request, name, value, await this.copyToCommit(inode))
  }

  async attribute (inode: Inode, name: string): Promise<Buffer> {
    if (name === XATTR_BASE) return Buffer.from(await this.#baseOf(inode))
    // ENOSYS to any other name would end all extended attributes of the mount.
    if (inode.kind !== 'copy' || (name !== XATTR_COMMIT && name !== XATTR_CLONE)) throw new ErrnoError(ERRNO.ENODATA)
    return this.commands.outcome(name, inode.name)
  }

  attributeNames (inode: Inode): string[] {
    return isFile(inode) ? [XATTR_BASE] : []
  }

  async #baseOf (inode: Inode): Promise<string> {
    if (!isFile(inode)) throw new ErrnoError(ERRNO.ENODATA)
    let base: { blob: string, version: number } = inode.ref
    if (inode.kind === 'copy') {
      base = await readWorkingCopy(this.#components.working, inode.name).catch(() => inode.ref) // an alias that is not there yet
    }
    return `${base.blob}@${base.version}`
  }

  /** The name of the working copy, which the daemon will look for: it is there from now on, if it was an alias only. */
  async copyToCommit (inode: Inode): Promise<string> {
    if (inode.kind !== 'copy') throw new ErrnoError(inode.kind === 'version' ? ERRNO.EROFS : ERRNO.ENOTSUP)
    await this.files.withCopy(inode, async (copy) => { await copy.makeWritable() })
    return inode.name
  }

  async #untilDeadline<T> (signal: AbortSignal, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const { clock, missDeadlineMs } = this.#components
    return await withDeadline(clock, missDeadlineMs, [signal], work)
  }
}

function isFile (inode: Inode): inode is Exclude<Inode, DirectoryInode> {
  return inode.kind === 'version' || inode.kind === 'copy'
}
