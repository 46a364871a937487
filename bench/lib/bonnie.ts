/** bonnie++, the talk's program, in a folder: blocks written, rewritten and read, seeks, and files made. */
import type { Stage } from './stage.ts'

export const BONNIE_COLUMNS = ['WRITE MB/S', 'REWRITE MB/S', 'READ MB/S', 'SEEKS/S', 'CREATES/S'] as const
/** Of its line of CSV, version 1.98: put_block, rewrite, get_block, seeks, seq_create. Counted from 0. */
const FIELDS = [11, 13, 17, 19, 26] as const
const KIB_FIELDS = 3
/** × 1024 files, of no bytes. */
const FILES = 16

/** One value per column; undefined where it took too little time to tell. Blocks of 8 KiB, as the program has it. */
export async function bonnie (stage: Stage, folder: string, sizeBytes: number): Promise<Array<number | undefined>> {
  const mib = Math.floor(sizeBytes / 1024 ** 2)
  // Half of it is said to be the machine's memory, or it would insist on twice what there is: what it reads is in the page cache.
  const stdout = await stage.run('bonnie++', '-q', '-f', '-u', 'root', '-d', folder, '-s', String(mib), '-r', String(Math.floor(mib / 2)), '-n', String(FILES))
  return parseBonnie(stdout)
}

export function parseBonnie (stdout: string): Array<number | undefined> {
  const line = stdout.split('\n').find((line) => line.startsWith('1.98,'))
  if (line === undefined) throw new Error(`bonnie++ gave no line of version 1.98: ${stdout}`)
  const fields = line.split(',')
  return FIELDS.map((field, column) => {
    const value = Number.parseFloat(fields[field] ?? '') // '+++++' where it was too fast
    if (Number.isNaN(value)) return undefined
    return column < KIB_FIELDS ? value * 1024 / 1e6 : value
  })
}
