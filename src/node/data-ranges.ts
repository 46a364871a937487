/**
 * Where a sparse file holds data. Node has no lseek, so qemu-img asks the file system (SEEK_DATA), when it is installed.
 * Only a saving: whoever reads the holes too finds zeros there.
 */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'

export interface Range {
  readonly start: number
  readonly end: number
}

/** It seeks through a terabyte in well under a second; a file on a network may take longer. */
const DEADLINE_MS = 30_000
/** Some 600,000 ranges. */
const MAP_BYTES_MAX = 64 * 1024 * 1024

/** Ascending, apart from each other. All of the file where nobody can tell. Throws only the signal's error. */
export async function dataRanges (fd: number, { size, blocks }: { size: number, blocks: number }, signal: AbortSignal): Promise<Range[]> {
  const all = size === 0 ? [] : [{ start: 0, end: size }]
  if (blocks * 512 >= size) return all
  try {
    // By descriptor: the very file that is read, and no name that qemu-img could take for an address.
    const file = `/proc/${process.pid}/fd/${fd}`
    const { stdout } = await promisify(execFile)('qemu-img', ['map', '--force-share', '-f', 'raw', '--output=json', file], { maxBuffer: MAP_BYTES_MAX, timeout: DEADLINE_MS, signal })
    return rangesOf(JSON.parse(stdout), size) ?? all
  } catch {
    signal.throwIfAborted()
    return all // not installed, or not able
  }
}

/** From what `qemu-img map --output=json` prints; undefined when that is not a map of the whole file. */
export function rangesOf (map: unknown, size: number): Range[] | undefined {
  if (!Array.isArray(map)) return undefined
  const ranges: Range[] = []
  let mappedTo = 0
  for (const { start, length, zero } of map as Array<Record<string, unknown>>) {
    if (start !== mappedTo || !Number.isSafeInteger(length) || typeof zero !== 'boolean') return undefined
    mappedTo += Number(length)
    if (zero) continue
    const last = ranges.at(-1)
    if (last?.end === start) ranges[ranges.length - 1] = { start: last.start, end: mappedTo }
    else ranges.push({ start, end: mappedTo })
  }
  // qemu-img counts whole sectors.
  if (mappedTo < size || mappedTo >= size + 512) return undefined
  return ranges
}

/** Whole chunks around the ranges, in pieces of at most `stepBytes` (a multiple of `chunkSize`), cut at the file's end. */
export function * windowsOf (ranges: Iterable<Range>, { chunkSize, stepBytes, size }: { chunkSize: number, stepBytes: number, size: number }): Generator<Range> {
  let done = 0
  for (const { start, end } of ranges) {
    const last = Math.min(Math.ceil(end / chunkSize) * chunkSize, size)
    for (let at = Math.max(done, Math.floor(start / chunkSize) * chunkSize); at < last; at = done) {
      done = Math.min(at + stepBytes, last)
      yield { start: at, end: done }
    }
  }
}
