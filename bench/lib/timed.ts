/** How long things take, in milliseconds, from a clean start: nobody pays for the writes of whoever ran before. */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'

const run = promisify(execFile)

/** Waits first until all that is dirty is on disk. */
export async function timed<T> (work: () => Promise<T>): Promise<{ ms: number, result: T }> {
  await run('sync')
  const startMs = performance.now()
  const result = await work()
  return { ms: performance.now() - startMs, result }
}

/** A command from start to end, its output dropped; throws with its stderr when it fails. */
export async function command (program: string, ...args: string[]): Promise<void> {
  await run(program, args, { maxBuffer: 64 * 1024 * 1024 })
}
