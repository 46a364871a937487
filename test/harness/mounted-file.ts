/**
 * Reads and writes of files under a FUSE mount, each in a process of its own with a deadline: what hangs in the kernel is
 * killed and fails the test, and never holds one of the test's own threads.
 */
import { execFile, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import type { Run } from './random-image.ts'

/** The product answers each read within its own deadline, EIO at worst: a whole file of some hundred chunks takes seconds. */
const DEADLINE_MS = 120_000
const WRITE_RUNS = fileURLToPath(new URL('./write-runs.ts', import.meta.url))
const run = promisify(execFile)

export async function sha256OfMounted (path: string): Promise<string> {
  const { stdout } = await run('sha256sum', ['--', path], { timeout: DEADLINE_MS, killSignal: 'SIGKILL' })
  return stdout.slice(0, 64)
}

/** Of bytes that the file is to have, to compare with. */
export function sha256 (bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex')
}

/** Sum of `[offset, offset + size)`. */
export async function sha256OfMountedRange (path: string, offset: number, size: number): Promise<string> {
  const { stdout } = await run('bash', [
    '-o', 'pipefail', '-c', 'dd if="$1" iflag=skip_bytes,count_bytes bs=1M skip="$2" count="$3" status=none | sha256sum', 'bash', path, String(offset), String(size)
  ], { timeout: DEADLINE_MS, killSignal: 'SIGKILL' })
  return stdout.slice(0, 64)
}

/** As `writeRuns`: returns when all is written and synced. */
export async function writeRunsMounted (path: string, runs: readonly Run[]): Promise<void> {
  const writer = spawn(process.execPath, [WRITE_RUNS, path], { stdio: ['pipe', 'ignore', 'pipe'], timeout: DEADLINE_MS, killSignal: 'SIGKILL' })
  writer.stdin.on('error', () => {}) // it ended before it read them: its exit says more
  writer.stdin.end(JSON.stringify(runs))
  const complaint = text(writer.stderr)
  const exited = Promise.withResolvers<void>()
  writer.once('error', exited.reject)
  writer.once('close', (code, signal) => {
    if (code === 0) exited.resolve()
    else void complaint.then((words) => { exited.reject(new Error(`writing to ${path} ended with ${code ?? signal}: ${words}`)) })
  })
  await exited.promise
}
