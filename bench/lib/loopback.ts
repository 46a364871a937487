/**
 * What crossed the loopback interface, as the kernel counts it: the judge of our own counters.
 *
 * A benchmark runs in a network namespace of its own, where the only traffic is its own: on a shared machine the
 * interface of everybody counts everybody's bytes.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'

/** Set in the process that runs inside. */
const INSIDE = 'P2PVM_BENCH_OWN_NETWORK'

/** Bytes sent on `lo` since it is up; each is received on it, too, and counted once here. */
export function loopbackBytes (): number {
  const line = readFileSync('/proc/net/dev', 'utf8').split('\n').find((row) => row.trim().startsWith('lo:'))
  const sent = line?.split(':')[1]?.trim().split(/\s+/)[8]
  if (sent === undefined) throw new Error('/proc/net/dev has no loopback interface')
  return Number(sent)
}

/**
 * Runs this program again inside a network namespace of its own and ends with its exit code; inside, does nothing. With `mounts`
 * its mounts are its own, too: whatever becomes of it, none outlives its processes.
 */
export async function enterOwnNetwork ({ mounts = false } = {}): Promise<void> {
  if (process.env[INSIDE] !== undefined) return
  if (process.getuid?.() !== 0) {
    console.error('not root: sharing the loopback interface, whose counters others move, too')
    return
  }
  const child = spawn('unshare', ['--net', ...mounts ? ['--mount'] : [], 'sh', '-c', 'ip link set lo up && exec "$@"', 'sh', process.execPath, ...process.execArgv, ...process.argv.slice(1)], {
    stdio: 'inherit',
    env: { ...process.env, [INSIDE]: '1' }
  })
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.on(name, () => { child.kill(name) })
  const [code] = await once(child, 'exit') as [number | null]
  process.exit(code ?? 1)
}
