/**
 * Extents of one write: sorted, disjoint, few. The version manager keeps them for every version, and sends those in
 * flight to every writer, so a write of many runs says less exactly where it writes (design: extents may over-approximate).
 */
import type { Extent } from './blobs.ts'

/**
 * A commit of 2 GB with 256 KiB chunks has at most 4,096 runs, so that even the most scattered one is exact; of a larger image
 * the closest runs are taken together. 4,096 extents are at most 74 KB, which fits a record and an answer.
 */
export const EXTENTS_MAX = 4096

/** Sorted and disjoint, empty ones left out, neighbours taken together; when there are more than `countMax`, so are the closest. */
export function coalesce (extents: readonly Extent[], countMax: number = EXTENTS_MAX): Extent[] {
  const sorted = extents.filter(({ size }) => size > 0).sort((a, b) => a.offset - b.offset)
  const runs: Array<{ offset: number, end: number }> = []
  for (const { offset, size } of sorted) {
    const last = runs.at(-1)
    if (last !== undefined && offset <= last.end) last.end = Math.max(last.end, offset + size)
    else runs.push({ offset, end: offset + size })
  }
  return joinClosest(runs, countMax).map(({ offset, end }) => ({ offset, size: end - offset }))
}

/** Keeps the widest `countMax - 1` gaps. Ties fall by position: the same write has the same extents, always. */
function joinClosest (runs: ReadonlyArray<{ offset: number, end: number }>, countMax: number): ReadonlyArray<{ offset: number, end: number }> {
  if (runs.length <= countMax) return runs
  const gapBefore = (at: number): number => runs[at]!.offset - runs[at - 1]!.end
  const kept = new Set(
    Array.from({ length: runs.length - 1 }, (_, at) => at + 1)
      .sort((a, b) => gapBefore(b) - gapBefore(a) || a - b)
      .slice(0, countMax - 1)
  )
  const joined: Array<{ offset: number, end: number }> = []
  for (const [at, run] of runs.entries()) {
    if (at === 0 || kept.has(at)) joined.push({ ...run })
    else joined.at(-1)!.end = run.end
  }
  return joined
}

/** The extents of whole chunks, given by their indices in any order. */
export function extentsOfChunks (indices: Iterable<number>, chunkSize: number, countMax: number = EXTENTS_MAX): Extent[] {
  return coalesce(Array.from(indices, (index) => ({ offset: index * chunkSize, size: chunkSize })), countMax)
}

export function sameExtents (a: readonly Extent[], b: readonly Extent[]): boolean {
  return a.length === b.length && a.every(({ offset, size }, at) => b[at]!.offset === offset && b[at]!.size === size)
}
