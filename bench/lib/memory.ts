/** The memory of a process as its share of what it maps (PSS): what the machine would have more of without it. */
import { readFile } from 'node:fs/promises'

export async function pssBytes (pid: number): Promise<number> {
  const rollup = await readFile(`/proc/${pid}/smaps_rollup`, 'utf8')
  const kib = /^Pss:\s+(\d+) kB$/m.exec(rollup)?.[1]
  if (kib === undefined) throw new Error(`no Pss in /proc/${pid}/smaps_rollup`)
  return Number(kib) * 1024
}

export async function meanPssBytes (pids: readonly number[]): Promise<number> {
  const each = await Promise.all(pids.map(pssBytes))
  return each.reduce((sum, bytes) => sum + bytes, 0) / each.length
}
