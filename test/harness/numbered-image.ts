/**
 * Reads what `numbered-blocks.py` has written: how many of its writes an image holds, and whether it holds exactly those.
 *
 * Write n (from 0) went to block n % slots and says n + 1, 512 times. An image that holds a prefix of the writes has in each slot
 * the last one of the prefix that went there; in a slot that the prefix does not reach, and beyond the slots, it has the base.
 */
import { readFile } from 'node:fs/promises'

export const BLOCK_BYTES = 4096

/** The number of writes in the prefix that the image holds. Throws, naming the block, when what it holds is no prefix. */
export async function prefixOfWrites (image: string, base: string, slots: number): Promise<number> {
  const [blocks, baseBlocks] = [await readFile(image), await readFile(base)]
  if (!blocks.subarray(slots * BLOCK_BYTES).equals(baseBlocks.subarray(slots * BLOCK_BYTES))) throw new Error(`${image}: differs behind the blocks, where nobody wrote`)
  let count = 0
  for (let slot = 0; slot < slots; slot++) count = Math.max(count, writeOf(blocks, slot, slots) + 1)
  for (let slot = 0; slot < slots; slot++) {
    const last = lastWriteTo(slot, count, slots)
    const found = block(blocks, slot)
    if (last === undefined) {
      if (!found.equals(block(baseBlocks, slot))) throw new Error(`${image}: block ${slot} is not the base's, with ${count} writes in the image`)
    } else if (writeOf(blocks, slot, slots) !== last) {
      const holds = writeOf(blocks, slot, slots)
      throw new Error(`${image}: block ${slot} should hold write ${last} of ${count}, and holds ${holds === -1 ? 'something else' : `write ${holds}`}`)
    }
  }
  return count
}

/** The last of `count` writes that went to the slot. */
function lastWriteTo (slot: number, count: number, slots: number): number | undefined {
  return slot >= count ? undefined : slot + Math.floor((count - 1 - slot) / slots) * slots
}

/** The write that a block is from; -1 when it is not from any, or not as a whole. */
function writeOf (blocks: Buffer, slot: number, slots: number): number {
  const bytes = block(blocks, slot)
  const number = bytes.readBigUInt64LE(0)
  for (let at = 8; at < BLOCK_BYTES; at += 8) {
    if (bytes.readBigUInt64LE(at) !== number) return -1
  }
  const write = Number(number) - 1
  return Number.isSafeInteger(write) && write >= 0 && write % slots === slot ? write : -1
}

function block (blocks: Buffer, slot: number): Buffer {
  return blocks.subarray(slot * BLOCK_BYTES, (slot + 1) * BLOCK_BYTES)
}
