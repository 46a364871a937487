/**
 * Small things that every file format here needs: whole reads and writes on descriptors, and replacing a file so that a
 * crash leaves the old one or the new one. Owns no state.
 */
import { readSync, writeSync } from 'node:fs'
import { mkdir, open, rename } from 'node:fs/promises'
import { dirname } from 'node:path'

/** Fills `buffer[at, at + length)` from the file; zeros where the file ends early. */
export function readFully (fd: number, buffer: Uint8Array, at: number, length: number, position: number): void {
  for (let done = 0; done < length;) {
    const count = readSync(fd, buffer, at + done, length - done, position + done)
    if (count === 0) {
      buffer.fill(0, at + done, at + length)
      return
    }
    done += count
  }
}

export function writeFully (fd: number, buffer: Uint8Array, at: number, length: number, position: number): void {
  for (let done = 0; done < length;) done += writeSync(fd, buffer, at + done, length - done, position + done)
}

/** Durable names: everything created in or renamed into the folder before survives a power cut. */
export async function syncFolder (folder: string): Promise<void> {
  const handle = await open(folder, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/** Old content or new, also after a power cut; never half of it. `mode` is for a file that is not there yet. */
export async function replaceFile (path: string, content: string | Uint8Array, { mode = 0o666 } = {}): Promise<void> {
  const aside = `${path}.new`
  const handle = await open(aside, 'w', mode)
  try {
    await handle.writeFile(content)
    await handle.sync()
  } finally {
    await handle.close()
  }
  await rename(aside, path)
  await syncFolder(dirname(path))
}

export async function makeFolder (path: string): Promise<void> {
  await mkdir(path, { recursive: true })
}

export function isNodeError (error: unknown, ...codes: string[]): boolean {
  return error instanceof Error && codes.includes((error as NodeJS.ErrnoException).code ?? '')
}
