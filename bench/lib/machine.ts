/** On what a benchmark ran: the first line of every report, because figures mean nothing without it. */
import { readFileSync } from 'node:fs'
import { availableParallelism, cpus, release, totalmem } from 'node:os'
import { formatBytes } from '../../src/node/units.ts'

export function machine (): string {
  const model = cpus()[0]?.model.trim() ?? 'unknown processor'
  return `${availableParallelism()} cores (${model}), ${formatBytes(totalmem())} memory, Linux ${release()}, Node ${process.version}, ` +
    `file system ${fileSystemOf(process.env['TMPDIR'] ?? '/tmp')}, load ${loadAverage()}`
}

/** What others were doing while it ran: a shared machine explains many a spread. */
function loadAverage (): string {
  return readFileSync('/proc/loadavg', 'utf8').split(' ').slice(0, 3).join(' ')
}

/** The type of the file system with the longest mountpoint that the path lies below. */
function fileSystemOf (path: string): string {
  const mounts = readFileSync('/proc/self/mounts', 'utf8').trim().split('\n').map((line) => line.split(' '))
  const holding = mounts.filter(([, mountpoint = '']) => path === mountpoint || path.startsWith(mountpoint.endsWith('/') ? mountpoint : `${mountpoint}/`))
  return holding.sort(([, a = ''], [, b = '']) => a.length - b.length).at(-1)?.[2] ?? 'unknown'
}
