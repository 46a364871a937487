/** A disk image with real content: an ext4 file system of 1 GiB, filled from the files of this machine, bounded. */
import { execFile } from 'node:child_process'
import { copyFileSync, type Dirent, linkSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'

const SOURCES = ['/usr/bin', '/usr/sbin', '/usr/lib', '/usr/share', '/etc']
const SIZE = '1G'
/** Half of the image is content, the other half holes, much as in a fresh installation. */
const CONTENT_BYTES_MAX = 450 * 2 ** 20
/** A few huge files would make the image less like a system's disk. */
const FILE_BYTES_MAX = 16 * 2 ** 20
const FILES_MAX = 40_000

export interface SampleImage {
  readonly files: number
  readonly contentBytes: number
}

export async function makeSampleImage (path: string, signal: AbortSignal): Promise<SampleImage> {
  const staging = `${path}.files`
  try {
    const staged = stage(staging, signal)
    // A user's PATH often lacks the folder where mkfs lives.
    const env = { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin` }
    await promisify(execFile)('mkfs.ext4', ['-q', '-F', '-d', staging, path, SIZE], { env, signal })
    return staged
  } finally {
    rmSync(staging, { recursive: true, force: true })
  }
}

function stage (staging: string, signal: AbortSignal): SampleImage {
  let files = 0
  let contentBytes = 0
  const visit = (folder: string): void => {
    for (const entry of readable(folder)) {
      if (files >= FILES_MAX || contentBytes >= CONTENT_BYTES_MAX) return
      signal.throwIfAborted()
      const source = join(folder, entry.name)
      if (entry.isDirectory()) visit(source)
      if (!entry.isFile()) continue
      const { size } = statSync(source)
      if (size > FILE_BYTES_MAX || !taken(source, join(staging, source))) continue
      files += 1
      contentBytes += size
    }
  }
  mkdirSync(staging, { recursive: true })
  for (const source of SOURCES) visit(source)
  return { files, contentBytes }
}

function readable (folder: string): Dirent[] {
  try {
    return readdirSync(folder, { withFileTypes: true })
  } catch {
    return [] // not for us to read
  }
}

/** A link costs nothing; across file systems, or where links to others' files are forbidden, a copy. */
function taken (source: string, target: string): boolean {
  mkdirSync(dirname(target), { recursive: true })
  try {
    linkSync(source, target)
    return true
  } catch {
    try {
      copyFileSync(source, target)
      return true
    } catch {
      return false
    }
  }
}
