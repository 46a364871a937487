/** Reads what `append-blocks.py` has written, and its account of it. */
import { open, readFile } from 'node:fs/promises'
import { BLOCK_BYTES } from './numbered-image.ts'

/** Writes that had returned, and those of them that an fsync had covered, at a moment. */
export interface Account {
  readonly returned: number
  readonly synced: number
}

export async function accountIn (path: string): Promise<Account> {
  const bytes = await readFile(path)
  return { returned: Number(bytes.readBigUInt64LE(0)), synced: Number(bytes.readBigUInt64LE(8)) }
}

export interface Snapshot {
  /** Blocks from the first on that are all there. */
  readonly prefix: number
  /** One behind the last that is there; more than `prefix` when some in between are not. */
  readonly end: number
}

/** What an image of zeros holds of the blocks. Throws when it holds anything else, a half of one, or one of another place. */
export async function snapshotIn (path: string): Promise<Snapshot> {
  const file = await open(path, 'r')
  const zeros = Buffer.alloc(BLOCK_BYTES)
  const piece = Buffer.alloc(1024 * BLOCK_BYTES)
  let prefix: number | undefined
  let end = 0
  try {
    for (let first = 0; ; first += piece.length / BLOCK_BYTES) {
      const { bytesRead } = await file.read(piece, 0, piece.length, first * BLOCK_BYTES)
      if (bytesRead === 0) break
      for (let at = 0; at < bytesRead; at += BLOCK_BYTES) {
        const number = first + at / BLOCK_BYTES
        const block = piece.subarray(at, at + BLOCK_BYTES)
        if (block.readBigUInt64LE(0) === BigInt(number + 1)) {
          if (!block.subarray(8).equals(block.subarray(0, -8))) throw new Error(`${path}: block ${number} is torn`)
          end = number + 1
        } else if (block.equals(zeros)) prefix ??= number
        else throw new Error(`${path}: block ${number} is not a block`)
      }
    }
  } finally {
    await file.close()
  }
  return { prefix: prefix ?? end, end }
}
