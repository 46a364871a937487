/**
 * What a disk's reads and writes fetch from the fabric under two rules, by arithmetic alone: the talk's, which keeps per chunk the
 * longest prefix that is here (slide "Mirroring algorithm"), and ours, whole chunks on a read and a page map for what was written.
 *
 * Both know holes: a chunk of zeros is never fetched. Neither reads ahead: the talk says nothing of it, and in ours it is not a
 * matter of this rule. A remote operation is one request for a chunk or a part of one, to whoever keeps it.
 */
import { PAGE_BYTES, SECTOR_BYTES } from '../../src/mirror/page-map.ts'

/** Bytes, as they reach the disk. Whole sectors. */
export interface Access {
  readonly kind: 'read' | 'write'
  readonly offset: number
  readonly size: number
}

export interface Disk {
  readonly size: number
  /** Whether all of `[from, to)` is zeros in the image. */
  readonly isZero: (from: number, to: number) => boolean
}

export interface Cost {
  readonly fetchedBytes: number
  readonly operations: number
  /** Reads and writes that were answered only after something had been fetched. */
  readonly readsWaited: number
  readonly writesWaited: number
}

type Mutable<T> = { -readonly [K in keyof T]: T[K] }

interface Piece {
  /** Of the chunk. */
  readonly index: number
  readonly start: number
  readonly end: number
  /** Of the access, in the chunk. */
  readonly from: number
  readonly to: number
}

/**
 * The talk's: n per chunk, where [0, n) is here. A read of more fetches the rest of the chunk ("full chunks only"): what is here
 * need not come again, as it may have been changed. A write beyond n fetches the gap first, and waits for it.
 */
export function talkCost (accesses: Iterable<Access>, disk: Disk, chunkSize: number): Cost {
  const prefixes = new Map<number, number>()
  const cost = nothing()
  for (const access of accesses) {
    let waits = false
    for (const { index, start, end, from, to } of pieces(access, disk, chunkSize)) {
      const prefix = prefixes.get(index) ?? 0
      const wanted = access.kind === 'write' ? from : to > prefix ? end - start : prefix
      if (wanted > prefix && !disk.isZero(start, end)) {
        fetch(cost, wanted - prefix)
        waits = true
      }
      prefixes.set(index, Math.max(prefix, wanted, to))
    }
    if (waits) wait(cost, access)
  }
  return cost
}

/**
 * Ours. `direct`: as with O_DIRECT, where a write is whole sectors and never waits. `buffered`: a page cache lies before it, which
 * is large enough for all and reads a page that is to be written in part and that it has not yet; that read may wait.
 */
export function pageMapCost (accesses: Iterable<Access>, disk: Disk, chunkSize: number, mode: 'direct' | 'buffered'): Cost {
  const cached = new Set<number>()
  const written = new Set<number>() // sectors
  const cost = nothing()

  /** True when it had to be fetched. */
  const read = (offset: number, size: number): boolean => {
    let waits = false
    for (const { index, start, end, from, to } of pieces({ offset, size }, disk, chunkSize)) {
      if (cached.has(index) || disk.isZero(start, end) || allIn(written, start + from, start + to, SECTOR_BYTES)) continue
      cached.add(index)
      fetch(cost, end - start)
      waits = true
    }
    return waits
  }

  for (const access of accesses) {
    const { kind, offset, size } = access
    const end = offset + size
    let waits = false
    if (kind === 'read') waits = read(offset, size)
    else {
      if (mode === 'buffered') {
        for (const page of partialPages(offset, end)) {
          if (read(page * PAGE_BYTES, PAGE_BYTES)) waits = true // of one that is in the page cache nothing is missing
        }
      }
      for (let sector = Math.floor(offset / SECTOR_BYTES); sector * SECTOR_BYTES < end; sector++) written.add(sector)
    }
    if (waits) wait(cost, access)
  }
  return cost
}

function nothing (): Mutable<Cost> {
  return { fetchedBytes: 0, operations: 0, readsWaited: 0, writesWaited: 0 }
}

function fetch (cost: Mutable<Cost>, bytes: number): void {
  cost.fetchedBytes += bytes
  cost.operations += 1
}

function wait (cost: Mutable<Cost>, { kind }: Access): void {
  cost[kind === 'read' ? 'readsWaited' : 'writesWaited'] += 1
}

/** An access, chunk by chunk; the last chunk ends with the disk. */
function * pieces ({ offset, size }: Omit<Access, 'kind'>, disk: Disk, chunkSize: number): Generator<Piece> {
  const accessEnd = Math.min(offset + size, disk.size)
  for (let index = Math.floor(offset / chunkSize); index * chunkSize < accessEnd; index++) {
    const start = index * chunkSize
    const end = Math.min(start + chunkSize, disk.size)
    yield { index, start, end, from: Math.max(offset, start) - start, to: Math.min(accessEnd, end) - start }
  }
}

function allIn (set: ReadonlySet<number>, from: number, to: number, unit: number): boolean {
  for (let at = Math.floor(from / unit); at * unit < to; at++) if (!set.has(at)) return false
  return true
}

/** The first and the last page of `[from, to)`, when it does not cover them. */
function partialPages (from: number, to: number): Set<number> {
  const pages = new Set<number>()
  if (from % PAGE_BYTES !== 0) pages.add(Math.floor(from / PAGE_BYTES))
  if (to % PAGE_BYTES !== 0) pages.add(Math.floor(to / PAGE_BYTES))
  return pages
}
