/**
 * The tree of the mount (design.md, "Namespace"):
 *
 *   /by-name/<image>/<version>   an immutable version
 *   /working/<name>              a working copy
 *   /<blob>/<version>            the talk's: a working copy of that version, named `<blob>.<version>`, that its first write
 *                                brings into being
 *
 * An inode number belongs to a version or to a working copy, never to a path: the first are derived, the second random and
 * kept in state.json. An alias that nobody has written to has its number reserved here, as long as the kernel knows it.
 *
 * State it owns: the inodes that the kernel knows (nlookup), which a server that takes over is told again (`restore`). Not for: open files (`open-files.ts`), the wire (`fuse/`).
 */
import { createHash } from 'node:crypto'
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { errorCodeOf, P2pvmError } from '../protocols/errors.ts'
import type { Clock, Random } from '../protocols/seams.ts'
import { ERRNO, ErrnoError } from './errno.ts'
import type { InodeEntry, KnownInode } from './kernel-state.ts'
import { patiently } from './patience.ts'
import type { MirrorSource, VersionRef } from './source.ts'
import { baseOf, randomIno, readWorkingCopy, workingCopyNames, type WorkingCopyState } from './working-copy.ts'

export const ROOT_INO = 1n

export type Inode =
  | { readonly kind: 'root' | 'by-name' | 'working', readonly ino: bigint }
  | { readonly kind: 'image', readonly ino: bigint, readonly image: string, readonly blob: string }
  | { readonly kind: 'blob', readonly ino: bigint, readonly blob: string }
  | { readonly kind: 'version', readonly ino: bigint, readonly ref: VersionRef, mtimeMs: number }
  | CopyInode

export interface CopyInode {
  readonly kind: 'copy'
  readonly ino: bigint
  readonly name: string
  readonly ref: VersionRef // what it lay on at the lookup
  size: number
  /** Nobody has written to it yet: there is no working copy, only this number. */
  unborn: boolean
  mtimeMs: number
}

export type DirectoryInode = Exclude<Inode, { kind: 'version' | 'copy' }>

export interface Entry {
  readonly name: string
  readonly ino: bigint
  readonly directory: boolean
}

export interface NamespaceComponents {
  readonly source: MirrorSource
  readonly clock: Clock
  readonly random: Random
  /** Folder of the working copies. */
  readonly working: string
  /** When the mount began, the modification time of what never changes; now, unless told. */
  readonly startedMs?: number
}

const BLOB_ID = /^[a-z2-7]{16}$/
const VERSION_NUMBER = /^(?:0|[1-9][0-9]{0,14})$/
const ALIAS_NAME = /^([a-z2-7]{16})\.(.+)$/
/** What is read of bytes that are no UTF-8: no name here has any. */
const NOT_UTF8 = '\ufffd'
/** As everywhere on Linux, and as statfs(2) says. */
export const NAME_BYTES_MAX = 255

export class Namespace {
  readonly #components: NamespaceComponents
  readonly #startedMs: number
  readonly #inodes = new Map<bigint, { readonly inode: Inode, nlookup: number }>()
  readonly #unborn = new Map<string, CopyInode>() // by the name that the working copy will have
  readonly #root: DirectoryInode = { kind: 'root', ino: ROOT_INO }
  readonly #byName: DirectoryInode = { kind: 'by-name', ino: derivedIno('by-name') }
  readonly #working: DirectoryInode = { kind: 'working', ino: derivedIno('working') }

  constructor (components: NamespaceComponents) {
    this.#components = components
    this.#startedMs = components.startedMs ?? components.clock.now()
    this.#inodes.set(ROOT_INO, { inode: this.#root, nlookup: Infinity })
  }

  /** ESTALE when the kernel has forgotten it. */
  inode (ino: bigint): Inode {
    const known = this.#inodes.get(ino)
    if (known === undefined) throw new ErrnoError(ERRNO.ESTALE)
    return known.inode
  }

  /** Before anything is looked up: what the kernel knows from a server before this one. */
  async restore (inodes: Iterable<readonly [ino: string, InodeEntry]>): Promise<void> {
    for (const [number, { inode: known, nlookup, mtimeMs }] of inodes) {
      const ino = BigInt(number)
      const inode = await this.#restored(ino, known, mtimeMs)
      this.#inodes.set(ino, { inode, nlookup })
      if (inode.kind === 'copy' && inode.unborn) this.#unborn.set(inode.name, inode)
    }
  }

  async #restored (ino: bigint, known: KnownInode, mtimeMs: number | undefined): Promise<Inode> {
    const startedMs = this.#startedMs
    switch (known.kind) {
      case 'by-name': return this.#byName
      case 'working': return this.#working
      case 'version': return { ...known, ino, mtimeMs: startedMs }
      case 'image':
      case 'blob': return { ...known, ino }
      case 'copy': {
        const state = await this.#readCopy(known.name)
        // Its server may have died between bringing it into being and saying so; or it was removed, and opening it says so.
        const inode = state !== undefined && BigInt(state.ino) === ino
          ? await this.#newCopyInode(state)
          : { ...known, ino, size: known.ref.size, mtimeMs: startedMs }
        return mtimeMs === undefined ? inode : { ...inode, mtimeMs }
      }
    }
  }

  /** The kernel is told of this inode once more. */
  remember (inode: Inode): void {
    const known = this.#inodes.get(inode.ino)
    if (known === undefined) this.#inodes.set(inode.ino, { inode, nlookup: 1 })
    else known.nlookup++
  }

  forget (ino: bigint, nlookup: number): void {
    const known = this.#inodes.get(ino)
    if (known === undefined || (known.nlookup -= nlookup) > 0) return
    this.#inodes.delete(ino)
    if (known.inode.kind === 'copy' && this.#unborn.get(known.inode.name) === known.inode) this.#unborn.delete(known.inode.name)
  }

  /** The inode of a name. ENOENT, or why the daemon could not say. The kernel asks for longer names than a file may have. */
  async lookup (parent: Inode, name: string, signal: AbortSignal): Promise<Inode> {
    if (name.includes(NOT_UTF8)) throw new ErrnoError(ERRNO.ENOENT)
    if (Buffer.byteLength(name) > NAME_BYTES_MAX) throw new ErrnoError(ERRNO.ENAMETOOLONG)
    switch (parent.kind) {
      case 'root': return await this.#lookupRoot(name, signal)
      case 'by-name': return await this.#lookupImage(name, signal)
      case 'image': return await this.#lookupVersion(parent.blob, name, signal)
      case 'working': return await this.#lookupCopy(name, signal)
      case 'blob': return await this.#lookupAlias(parent.blob, name, signal)
      default: throw new ErrnoError(ERRNO.ENOTDIR)
    }
  }

  /** The inode of a path below the mountpoint. */
  async walk (path: readonly string[], signal: AbortSignal): Promise<Inode> {
    let inode: Inode = this.#root
    for (const name of path) inode = await this.lookup(inode, name, signal)
    return inode
  }

  async #lookupRoot (name: string, signal: AbortSignal): Promise<Inode> {
    if (name === 'by-name') return this.#byName
    if (name === 'working') return this.#working
    if (!BLOB_ID.test(name)) throw new ErrnoError(ERRNO.ENOENT)
    // A blob with a working copy is there, whether or not somebody can be asked. Else its version 0 is, which every blob has
    // from the start, and which is found without the version manager.
    const known = (await workingCopyNames(this.#components.working)).some((copy) => copy.startsWith(`${name}.`))
    if (!known && (await this.#resolve(`${name}@0`, signal)).blob !== name) throw new ErrnoError(ERRNO.ENOENT)
    return { kind: 'blob', ino: derivedIno(`blob:${name}`), blob: name }
  }

  async #lookupImage (name: string, signal: AbortSignal): Promise<Inode> {
    const { blob } = await this.#resolve(`${name}@latest`, signal)
    // An image name that is given to another blob one day is another folder.
    return { kind: 'image', ino: derivedIno(`image:${name}:${blob}`), image: name, blob }
  }

  async #lookupVersion (blob: string, name: string, signal: AbortSignal): Promise<Inode> {
    if (!VERSION_NUMBER.test(name)) throw new ErrnoError(ERRNO.ENOENT)
    const ref = await this.#resolve(`${blob}@${name}`, signal)
    const ino = derivedIno(`version:${ref.blob}@${ref.version}`)
    return this.#known(ino) ?? { kind: 'version', ino, ref, mtimeMs: this.#startedMs }
  }

  async #lookupCopy (name: string, signal: AbortSignal): Promise<Inode> {
    const state = await this.#readCopy(name)
    if (state !== undefined) return await this.#copyInode(state)
    // One that the first write to an alias will bring into being is there by its own name, too: it is not listed yet.
    const [, blob, version] = ALIAS_NAME.exec(name) ?? []
    if (blob === undefined || version === undefined) throw new ErrnoError(ERRNO.ENOENT)
    return await this.#lookupAlias(blob, version, signal)
  }

  async #lookupAlias (blob: string, name: string, signal: AbortSignal): Promise<Inode> {
    if (!VERSION_NUMBER.test(name)) throw new ErrnoError(ERRNO.ENOENT)
    const copyName = aliasName(blob, name)
    const state = await this.#readCopy(copyName)
    if (state !== undefined) {
      // Somebody gave another working copy that name.
      if (state.origin?.blob !== blob || state.origin.version !== Number(name)) throw new ErrnoError(ERRNO.EBUSY)
      return await this.#copyInode(state)
    }
    const ref = await this.#resolve(`${blob}@${name}`, signal)
    const reserved = this.#unborn.get(copyName)
    if (reserved?.unborn === true) return reserved // else that one was removed, and its number with it
    const inode: CopyInode = { kind: 'copy', ino: randomIno(this.#components.random), name: copyName, ref, size: ref.size, unborn: true, mtimeMs: this.#startedMs }
    this.#unborn.set(copyName, inode)
    return inode
  }

  async #copyInode (state: WorkingCopyState): Promise<Inode> {
    return this.#known(BigInt(state.ino)) ?? await this.#newCopyInode(state)
  }

  async #newCopyInode (state: WorkingCopyState): Promise<CopyInode> {
    // The end of a commit may take that overlay away just now.
    const pages = await stat(join(this.#components.working, state.name, state.top, 'pages')).catch(() => undefined)
    return { kind: 'copy', ino: BigInt(state.ino), name: state.name, ref: baseOf(state), size: state.size, unborn: false, mtimeMs: pages?.mtimeMs ?? this.#startedMs }
  }

  #known (ino: bigint): Inode | undefined {
    return this.#inodes.get(ino)?.inode
  }

  async #readCopy (name: string): Promise<WorkingCopyState | undefined> {
    try {
      return await readWorkingCopy(this.#components.working, name)
    } catch (error) {
      const code = errorCodeOf(error)
      if (code === 'ERR_NOT_FOUND' || code === 'ERR_USAGE') return undefined
      throw error
    }
  }

  async #resolve (ref: string, signal: AbortSignal): Promise<VersionRef> {
    const { source, clock } = this.#components
    try {
      return await patiently(clock, signal, async () => await source.resolve(ref, signal))
    } catch (error) {
      // A name that can be no image's is simply not there.
      if (errorCodeOf(error) === 'ERR_USAGE') throw new P2pvmError('ERR_NOT_FOUND', `there is no ${ref}`, {}, error)
      throw error
    }
  }

  async list (directory: Inode, signal: AbortSignal): Promise<Entry[]> {
    const { source, working, clock } = this.#components
    switch (directory.kind) {
      case 'root': return [{ name: 'by-name', ino: this.#byName.ino, directory: true }, { name: 'working', ino: this.#working.ino, directory: true }]
      case 'by-name': return (await patiently(clock, signal, async () => await source.images(signal))).map((name) => ({ name, ino: UNKNOWN_INO, directory: true }))
      case 'working': return (await workingCopyNames(working)).map((name) => ({ name, ino: UNKNOWN_INO, directory: false }))
      case 'image':
      case 'blob': {
        const ref = directory.kind === 'image' ? directory.image : directory.blob
        const versions = await patiently(clock, signal, async () => await source.versions(ref, signal))
        return versions.map((version) => ({ name: String(version), ino: UNKNOWN_INO, directory: false }))
      }
      default: throw new ErrnoError(ERRNO.ENOTDIR)
    }
  }
}

/** What a server that comes later needs to know this inode again. The root is always known. */
export function knownInode (inode: Inode): KnownInode {
  switch (inode.kind) {
    case 'by-name':
    case 'working': return { kind: inode.kind }
    case 'image': return { kind: 'image', image: inode.image, blob: inode.blob }
    case 'blob': return { kind: 'blob', blob: inode.blob }
    case 'version': return { kind: 'version', ref: refOf(inode.ref) }
    case 'copy': return { kind: 'copy', name: inode.name, ref: refOf(inode.ref), unborn: inode.unborn }
    case 'root': throw new P2pvmError('ERR_INTERNAL', 'the root is never looked up')
  }
}

/** Whatever else came with it. */
function refOf ({ blob, version, size, chunkSize }: VersionRef): VersionRef {
  return { blob, version, size, chunkSize }
}

/** The kernel replaces it by what a lookup says; libfuse's FUSE_UNKNOWN_INO. */
const UNKNOWN_INO = 0xffff_ffffn

export function aliasName (blob: string, version: string | number): string {
  return `${blob}.${version}`
}

/** 63 bits of a hash; never one of the small numbers that the kernel reserves. */
function derivedIno (identity: string): bigint {
  const digest = createHash('sha256').update(identity).digest()
  return (digest.readBigUInt64LE(0) & (2n ** 63n - 1n)) | 2n ** 32n
}
