/**
 * A MirrorSource over local image files, for tests of the mount without a daemon: chunks are cut from the files, "fetched"
 * by writing them to the cache folder, and commits make a new image file. Not for: anything about the fabric.
 */
import { closeSync, copyFileSync, existsSync, ftruncateSync, mkdirSync, openSync, readdirSync, readSync, renameSync, statSync, writeFileSync, writeSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { chunkPath } from '../../src/dht/chunk-path.ts'
import type { Sealable } from '../../src/mirror/sealable.ts'
import { openSealedOverlay } from '../../src/mirror/sealed-overlay.ts'
import type { MirrorFolders, MirrorSource, VersionRef } from '../../src/mirror/source.ts'
import { workingCopyInfo } from '../../src/mirror/working-copy.ts'
import { type ChunkId, chunkIdOf, isZero } from '../../src/protocols/cid.ts'
import { P2pvmError } from '../../src/protocols/errors.ts'

export interface FileSourceInit {
  readonly image: string // name
  readonly blob: string
  readonly file: string // of version 1
  readonly chunkSize: number
  readonly folders: MirrorFolders
}

interface ImageFile {
  readonly ref: VersionRef
  readonly file: string
  readonly ids: Array<ChunkId | null>
}

export class FileSource implements MirrorSource {
  readonly #init: FileSourceInit
  readonly #versions = new Map<string, ImageFile>()
  readonly #latest = new Map<string, number>()
  /** Set by the test. */
  unavailable = false
  stalled = false
  badBytes = 0
  failCommits = false
  sealable: (name: string) => Sealable = () => { throw new Error('no mount yet') }
  /** Looked at by the test. */
  fetched: ChunkId[] = []
  asked = 0
  lastFreezeMs = -1

  constructor (init: FileSourceInit) {
    this.#init = init
    // As every blob that was not cloned: empty at first.
    this.#versions.set(`${init.blob}@0`, { ref: { blob: init.blob, version: 0, size: 0, chunkSize: init.chunkSize }, file: init.file, ids: [] })
    this.#add(init.blob, 1, init.file)
    this.#findEarlier()
  }

  /** What mounts before this one have committed and cloned. */
  #findEarlier (): void {
    const { file } = this.#init
    for (const name of readdirSync(dirname(file))) {
      const [, blob, version] = /\.([a-z2-7]{16})\.(\d+)$/.exec(name) ?? []
      if (blob !== undefined && join(dirname(file), name).startsWith(`${file}.`)) this.#add(blob, Number(version), join(dirname(file), name))
    }
  }

  #fileOfNew (blob: string, version: number): string {
    return `${this.#init.file}.${blob}.${version}`
  }

  #add (blob: string, version: number, file: string): VersionRef {
    const { chunkSize } = this.#init
    const ref = { blob, version, size: statSync(file).size, chunkSize }
    const ids: Array<ChunkId | null> = []
    const fd = openSync(file, 'r')
    for (let at = 0; at < ref.size; at += chunkSize) {
      const bytes = Buffer.alloc(Math.min(chunkSize, ref.size - at))
      readSync(fd, bytes, 0, bytes.length, at)
      ids.push(isZero(bytes) ? null : chunkIdOf(bytes))
    }
    closeSync(fd)
    this.#versions.set(`${blob}@${version}`, { ref, file, ids })
    this.#latest.set(blob, Math.max(version, this.#latest.get(blob) ?? 0))
    return ref
  }

  #gate (): void {
    if (this.unavailable) throw new P2pvmError('ERR_UNAVAILABLE', 'the daemon is gone')
  }

  async images (): Promise<string[]> {
    this.#gate()
    return [this.#init.image]
  }

  async versions (image: string): Promise<number[]> {
    this.#gate()
    const blob = image === this.#init.image ? this.#init.blob : image
    return [...this.#versions.values()].filter(({ ref }) => ref.blob === blob).map(({ ref }) => ref.version)
  }

  async resolve (ref: string): Promise<VersionRef> {
    this.#gate()
    const [name = '', version = 'latest'] = ref.split('@')
    const blob = name === this.#init.image ? this.#init.blob : name
    const found = this.#versions.get(`${blob}@${version === 'latest' ? this.#latest.get(blob) : version}`)
    if (found === undefined) throw new P2pvmError('ERR_NOT_FOUND', `there is no ${ref}`)
    return found.ref
  }

  async chunkIds (version: VersionRef, first: number, count: number): Promise<Array<ChunkId | null>> {
    this.#gate()
    this.asked++
    return this.#versions.get(`${version.blob}@${version.version}`)?.ids.slice(first, first + count) ?? []
  }

  async fetch (chunks: readonly ChunkId[], signal: AbortSignal): Promise<ChunkId[]> {
    this.#gate()
    const verified: ChunkId[] = []
    if (this.stalled) await new Promise((_resolve, reject) => { signal.addEventListener('abort', () => { reject(signal.reason as Error) }) })
    for (const id of chunks) {
      this.fetched.push(id)
      const bytes = this.#bytesOf(id)
      const isBad = this.badBytes-- > 0
      if (isBad) bytes.writeUInt8(bytes.readUInt8(0) ^ 1, 0)
      const path = chunkPath(this.#init.folders.cache, id)
      if (existsSync(path)) continue
      mkdirSync(dirname(path), { recursive: true })
      writeFileSync(`${path}.new`, bytes)
      renameSync(`${path}.new`, path)
      if (!isBad) verified.push(id)
    }
    return verified
  }

  #bytesOf (id: ChunkId): Buffer {
    for (const { file, ids, ref } of this.#versions.values()) {
      const index = ids.indexOf(id)
      if (index < 0) continue
      const bytes = Buffer.alloc(Math.min(ref.chunkSize, ref.size - index * ref.chunkSize))
      const fd = openSync(file, 'r')
      readSync(fd, bytes, 0, bytes.length, index * ref.chunkSize)
      closeSync(fd)
      return bytes
    }
    throw new P2pvmError('ERR_MISSING', `nobody has ${id}`)
  }

  async clone (workingCopy: string, { name }: { name: string | undefined }, signal: AbortSignal): Promise<VersionRef> {
    this.#gate()
    const sealable = this.sealable(workingCopy)
    const info = await workingCopyInfo(this.#init.folders.working, workingCopy)
    const base = this.#versions.get(`${info.blob}@${info.version}`)
    const blob = (name ?? 'clone').replace(/[^a-z2-7]/g, 'a').padEnd(16, 'a')
    const file = this.#fileOfNew(blob, 0)
    copyFileSync(base?.file ?? '', file)
    const version = this.#add(blob, 0, file)
    await sealable.reassign(version, signal)
    return version
  }

  async commit (workingCopy: string, _init: unknown, signal: AbortSignal): Promise<VersionRef> {
    this.#gate()
    const sealable = this.sealable(workingCopy)
    const sealed = await sealable.seal(signal)
    this.lastFreezeMs = sealed.freezeMs
    if (this.failCommits) {
      await sealable.unseal(signal)
      throw new P2pvmError('ERR_UNAVAILABLE', 'the version manager is gone')
    }
    const { blob, version, chunkSize } = sealed.base
    const next = (this.#latest.get(blob) ?? version) + 1
    const base = this.#versions.get(`${blob}@${version}`)
    const file = this.#fileOfNew(blob, next)
    copyFileSync(base?.file ?? '', file)
    const overlay = await openSealedOverlay(sealed.overlay, { chunkSize, size: sealed.size })
    const fd = openSync(file, 'r+')
    ftruncateSync(fd, sealed.size)
    for (const index of overlay.dirtyChunks()) {
      const bytes = Buffer.alloc(overlay.chunkBytes(index))
      readSync(fd, bytes, 0, bytes.length, index * chunkSize)
      await overlay.readOver(index, bytes)
      writeSync(fd, bytes, 0, bytes.length, index * chunkSize)
    }
    closeSync(fd)
    await overlay.close()
    const ref = this.#add(blob, next, file)
    await sealable.rebase(ref, signal)
    return ref
  }

  fileOf (blob: string, version: number): string | undefined {
    return this.#versions.get(`${blob}@${version}`)?.file
  }
}
