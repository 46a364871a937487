/**
 * The real disk: `Disk` over node:fs. Owns no state; not for policy (what to sync when is the stores' business).
 *
 * Each call occupies a thread of libuv's pool, also while it waits for the disk. The pool has four unless
 * UV_THREADPOOL_SIZE says otherwise: durable puts are as fast with four as with 16 (measured), but reads queue behind syncs.
 */
import { constants, mkdir, open, readdir, readFile, rename, stat, statfs, unlink, utimes, type FileHandle } from 'node:fs/promises'
import type { Disk, DiskFile } from '../protocols/seams.ts'

export const nodeDisk: Disk = {
  async mkdir (path) {
    await mkdir(path, { recursive: true })
  },

  read: async (path) => await readFile(path),

  async create (path) {
    return new NodeDiskFile(await open(path, 'wx', 0o644))
  },

  async openWriteThrough (path) {
    // One call into the thread pool, and one into the kernel, instead of two each.
    return new NodeDiskFile(await open(path, constants.O_WRONLY | constants.O_CREAT | constants.O_DSYNC, 0o644))
  },

  rename,

  unlink,

  readdir: async (path) => await readdir(path),

  async stat (path) {
    const found = await stat(path)
    return { sizeBytes: found.size, mtimeMs: found.mtimeMs, directory: found.isDirectory() }
  },

  async touch (path, mtimeMs) {
    // A descriptor open for reading may set times and sync: chunk files stay read-only to whoever has them open.
    const file = await open(path, 'r')
    try {
      await file.utimes(mtimeMs / 1000, mtimeMs / 1000)
      await file.sync()
    } finally {
      await file.close()
    }
  },

  async setMtime (path, mtimeMs) {
    await utimes(path, mtimeMs / 1000, mtimeMs / 1000)
  },

  async syncDirectory (path) {
    const folder = await open(path, 'r')
    try {
      await folder.sync()
    } finally {
      await folder.close()
    }
  },

  async freeBytes (path) {
    const { bavail, bsize } = await statfs(path)
    return bavail * bsize
  }
}

class NodeDiskFile implements DiskFile {
  readonly #file: FileHandle

  constructor (file: FileHandle) {
    this.#file = file
  }

  async write (bytes: Uint8Array, position: number): Promise<void> {
    // A short write is not an error to the kernel: the next one says why (ENOSPC).
    for (let done = 0; done < bytes.length;) {
      const { bytesWritten } = await this.#file.write(bytes, done, bytes.length - done, position + done)
      done += bytesWritten
    }
  }

  async datasync (): Promise<void> {
    await this.#file.datasync()
  }

  async close (): Promise<void> {
    await this.#file.close()
  }
}
