/** A file system of a few megabytes, in memory: the disk that fills up. Needs root. */
import { execFile } from 'node:child_process'
import { cp, mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)

export class SmallDisk {
  readonly path: string

  private constructor (path: string) {
    this.path = path
  }

  /** Mounted over the folder, which is made when it is not there; what was in it is on the new disk, too. */
  static async mount (path: string, bytes: number): Promise<SmallDisk> {
    await mkdir(path, { recursive: true })
    const aside = await mkdtemp(join(tmpdir(), 'p2pvm-small-disk-'))
    try {
      await cp(path, aside, { recursive: true })
      await run('mount', ['-t', 'tmpfs', '-o', `size=${bytes},mode=700`, 'p2pvm-small-disk', path])
      await cp(aside, path, { recursive: true })
    } finally {
      await rm(aside, { recursive: true, force: true })
    }
    return new SmallDisk(path)
  }

  /** Takes all that is free, as another program may. */
  async fill (): Promise<void> {
    await run('dd', ['if=/dev/zero', `of=${this.#filler}`, 'bs=64K', 'status=none']).catch((error: { stderr: string }) => {
      if (!error.stderr.includes('No space left')) throw error
    })
  }

  /** Gives it back. */
  async empty (): Promise<void> {
    await rm(this.#filler)
  }

  get #filler (): string {
    return join(this.path, 'filler')
  }

  async [Symbol.asyncDispose] (): Promise<void> {
    await run('umount', ['--lazy', this.path])
  }
}
