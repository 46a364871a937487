/**
 * Images that no fabric has seen before: a sparse file with runs of random bytes, and the same kind of runs as changes to
 * it. All bytes follow from the runs, so that a test applies them to a mounted file and to a plain one, and compares sums.
 */
import { createCipheriv, createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { open } from 'node:fs/promises'
import type { Chance } from './seed.ts'

export interface Run {
  readonly offset: number
  readonly size: number
  /** What its bytes are made of: equal keys give equal bytes. */
  readonly key: string
}

export interface RunsInit {
  readonly count: number
  readonly bytesEach: number
  /** Size of the file that they lie in. */
  readonly within: number
}

/** One run at a chance place in each of `count` equal stripes of the file: they do not overlap. */
export function randomRuns (chance: Chance, { count, bytesEach, within }: RunsInit): Run[] {
  const stripe = Math.floor(within / count)
  if (bytesEach > stripe) throw new Error(`${count} runs of ${bytesEach} bytes do not fit in ${within}`)
  return Array.from({ length: count }, (_, index) => {
    return { offset: index * stripe + chance.below(stripe - bytesEach + 1), size: bytesEach, key: `${chance.seed}:${index}` }
  })
}

/** The key stream of a cipher: random bytes at a gigabyte per second. */
export function bytesOf ({ key, size }: Run): Buffer {
  const secret = createHash('sha256').update(key).digest().subarray(0, 16)
  return createCipheriv('aes-128-ctr', secret, Buffer.alloc(16)).update(Buffer.alloc(size))
}

export async function makeImage (path: string, sizeBytes: number, runs: readonly Run[]): Promise<void> {
  const file = await open(path, 'wx')
  try {
    await file.truncate(sizeBytes)
  } finally {
    await file.close()
  }
  await writeRuns(path, runs)
}

/** Writes the runs into an existing file, and syncs it. */
export async function writeRuns (path: string, runs: readonly Run[]): Promise<void> {
  const file = await open(path, 'r+')
  try {
    for (const run of runs) {
      const bytes = bytesOf(run)
      for (let at = 0; at < bytes.length;) at += (await file.write(bytes, at, bytes.length - at, run.offset + at)).bytesWritten
    }
    await file.sync()
  } finally {
    await file.close()
  }
}

export async function sha256Of (path: string): Promise<string> {
  const hash = createHash('sha256')
  for await (const part of createReadStream(path, { highWaterMark: 1024 * 1024 })) hash.update(part as Buffer)
  return hash.digest('hex')
}
