/**
 * The file of a trace: what a machine read from its disk and wrote to it, in order, and where that disk's image was not zeros.
 *
 *     p2pvm disk trace 1
 *     what    <one line: which machine did what>
 *     size    <bytes of the disk>
 *     data    <gap>+<length> …       runs that are not all zeros, in units of 16 KiB, each gap counted from the end of the run before
 *     access  <count>
 *     r <µs> <distance> <length>     one line per access, r or w; µs since the access before; the distance, from the end of the
 *                                    access before to the beginning of this one, and the length in sectors of 512 bytes
 *
 * Small, as most accesses follow one another, and still text: it can be read, and compared, as it is.
 */
import { SECTOR_BYTES } from '../../src/mirror/page-map.ts'
import type { Access, Disk } from './policies.ts'

/** The smallest chunk that is looked at: zeros are known no finer. */
export const ZERO_UNIT_BYTES = 16 * 1024
const HEAD = 'p2pvm disk trace 1'

export interface TimedAccess extends Access {
  /** Since the first one. */
  readonly us: number
}

/** In units of ZERO_UNIT_BYTES, `[from, to)`, ascending, apart. */
export interface DataRun {
  readonly from: number
  readonly to: number
}

export interface Trace {
  readonly what: string
  readonly size: number
  readonly data: readonly DataRun[]
  readonly accesses: readonly TimedAccess[]
}

export function encodeTrace ({ what, size, data, accesses }: Trace): string {
  let dataEnd = 0
  const runs = data.map(({ from, to }) => {
    const run = `${from - dataEnd}+${to - from}`
    dataEnd = to
    return run
  })
  let [us, end] = [0, 0]
  const lines = accesses.map((access) => {
    const line = `${access.kind === 'read' ? 'r' : 'w'} ${access.us - us} ${(access.offset - end) / SECTOR_BYTES} ${access.size / SECTOR_BYTES}`
    us = access.us
    end = access.offset + access.size
    return line
  })
  return [HEAD, `what    ${what}`, `size    ${size}`, `data    ${runs.join(' ')}`, `access  ${accesses.length}`, ...lines, ''].join('\n')
}

/** Throws when it is not such a file, or not whole. */
export function decodeTrace (text: string): Trace {
  const [head, what, size, data, access, ...lines] = text.split('\n')
  if (head !== HEAD) throw new Error('not a disk trace')
  let dataEnd = 0
  const runs = field(data, 'data').split(' ').filter((run) => run !== '').map((run) => {
    const [gap, length] = run.split('+').map(Number)
    const from = dataEnd + whole(gap)
    dataEnd = from + whole(length)
    return { from, to: dataEnd }
  })
  let [us, end] = [0, 0]
  const accesses = lines.slice(0, whole(Number(field(access, 'access')))).map((line): TimedAccess => {
    const [kind, later, distance, length] = line.split(' ')
    if (kind !== 'r' && kind !== 'w') throw new Error(`not an access: '${line}'`)
    us += whole(Number(later))
    const offset = end + whole(Number(distance)) * SECTOR_BYTES
    end = offset + whole(Number(length)) * SECTOR_BYTES
    return { kind: kind === 'r' ? 'read' : 'write', offset, size: end - offset, us }
  })
  return { what: field(what, 'what'), size: whole(Number(field(size, 'size'))), data: runs, accesses }
}

function field (line: string | undefined, name: string): string {
  if (line?.startsWith(name.padEnd(8)) !== true) throw new Error(`the trace has no line '${name}'`)
  return line.slice(8)
}

function whole (value: number | undefined): number {
  if (!Number.isSafeInteger(value)) throw new Error(`not a whole number in a trace: ${value}`)
  return value as number
}

/** The disk of a trace. A question is about whole units; parts of one count as the whole. */
export function diskOf ({ size, data }: Pick<Trace, 'size' | 'data'>): Disk {
  const units = new Uint8Array(Math.ceil(size / ZERO_UNIT_BYTES))
  for (const { from, to } of data) units.fill(1, from, to)
  return { size, isZero: (from, to) => !units.subarray(Math.floor(from / ZERO_UNIT_BYTES), Math.ceil(to / ZERO_UNIT_BYTES)).includes(1) }
}
