/** The image that a benchmark works on, and what it holds. */
import { execFile } from 'node:child_process'
import { open, stat } from 'node:fs/promises'
import { resolve } from 'node:path'
import { promisify } from 'node:util'
import { isZero } from '../../src/protocols/cid.ts'

const SCRIPT = new URL('../../scripts/make-debian-image', import.meta.url).pathname
/** Several at a time: one small read each would measure the system call. */
const READ_BYTES = 4 * 1024 * 1024
const PAGE_BYTES = 4096

export interface BenchImage {
  readonly path: string
  readonly sizeBytes: number
  /** In pages of 4 KiB: what any store has to keep, before compression. */
  readonly nonZeroBytes: number
}

/** The image that the command line names; without one the Debian image of the tests, made when it is not there. */
export async function benchImage (argument: string | undefined): Promise<BenchImage> {
  const path = argument === undefined ? await debianImage() : resolve(argument)
  return { path, sizeBytes: (await stat(path)).size, nonZeroBytes: await countNonZero(path) }
}

async function debianImage (): Promise<string> {
  const { stdout } = await promisify(execFile)(SCRIPT, { encoding: 'utf8' })
  return (JSON.parse(stdout) as { image: string }).image
}

async function countNonZero (path: string): Promise<number> {
  const file = await open(path, 'r')
  const buffer = Buffer.alloc(READ_BYTES)
  let bytes = 0
  try {
    for (;;) {
      const { bytesRead } = await file.read(buffer, 0, READ_BYTES, null)
      if (bytesRead === 0) return bytes
      for (let at = 0; at < bytesRead; at += PAGE_BYTES) {
        const page = buffer.subarray(at, Math.min(at + PAGE_BYTES, bytesRead))
        if (!isZero(page)) bytes += page.length
      }
    }
  } finally {
    await file.close()
  }
}
