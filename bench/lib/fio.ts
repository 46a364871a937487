/** One fio job on one file: how much per second, and how long each of its reads or writes took. */
import type { Stage } from './stage.ts'

export interface FioJob {
  readonly kind: 'read' | 'write'
  /** fio's own. */
  readonly args: readonly string[]
}

export interface FioResult {
  readonly bytesPerSecond: number
  /** µs, of single reads or writes; an fsync at the end is not one. */
  readonly p50: number
  readonly p99: number
  readonly p999: number
}

interface Side {
  readonly bw_bytes: number
  readonly clat_ns: { readonly percentile: Readonly<Record<string, number>> }
}

/** One thread, one request at a time. An fsync at the end counts as time, and what is in the page cache stays there. */
export async function fio (stage: Stage, path: string, sizeBytes: number, { kind, args }: FioJob): Promise<FioResult> {
  const stdout = await stage.run('fio', ...[
    'name=bench', `filename=${path}`, `size=${sizeBytes}`, 'ioengine=psync', 'thread', 'numjobs=1', 'invalidate=0', 'allow_file_create=0', 'fallocate=none',
    'randrepeat=0', 'norandommap', 'percentile_list=50:99:99.9', 'output-format=json', ...args
  ].map((arg) => `--${arg}`))
  // Warnings may come before the document.
  const { jobs } = JSON.parse(stdout.slice(stdout.indexOf('{'))) as { jobs: ReadonlyArray<Record<'read' | 'write', Side> & { readonly error: number }> }
  const side = jobs[0]?.[kind]
  if (side === undefined || jobs[0]?.error !== 0 || side.bw_bytes === 0) throw new Error(`fio did nothing on ${path}: error ${jobs[0]?.error}`)
  const percentile = (key: string): number => (side.clat_ns.percentile[key] ?? NaN) / 1000
  return { bytesPerSecond: side.bw_bytes, p50: percentile('50.000000'), p99: percentile('99.000000'), p999: percentile('99.900000') }
}
