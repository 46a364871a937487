/** Starts `lying-daemon.ts` in a process of its own, talks to it, and ends it. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

const PROGRAM = fileURLToPath(new URL('./lying-daemon.ts', import.meta.url))
/** A start from source on a machine that has other work. */
const READY_DEADLINE_MS = 30_000

export interface LyingPeer {
  readonly peerId: string
  readonly control: string
  /** From now on it hands out altered bytes. */
  lie (): Promise<void>
  /** How often it has done so. */
  lies (): Promise<number>
  kill (): Promise<void>
}

export async function startLyingPeer (told: { dataDir: string, bootstrap: readonly string[], control: string }): Promise<LyingPeer> {
  const child = spawn(process.execPath, [PROGRAM, JSON.stringify(told)], { stdio: ['pipe', 'pipe', 'inherit'] })
  const gone = once(child, 'exit')
  const printed = createInterface(child.stdout)[Symbol.asyncIterator]()
  const nextLine = async <T> (): Promise<T> => {
    const line = await printed.next()
    if (line.done === true) throw new Error('the lying peer has ended')
    return JSON.parse(line.value) as T
  }
  const say = async (word: string): Promise<number> => {
    child.stdin.write(`${word}\n`)
    return (await nextLine<{ lies: number }>()).lies
  }
  const kill = async (): Promise<void> => {
    child.kill('SIGKILL')
    await gone
  }
  const late = setTimeout(() => { child.kill('SIGKILL') }, READY_DEADLINE_MS)
  try {
    const { peerId } = await nextLine<{ peerId: string }>()
    return { peerId, control: told.control, async lie () { await say('lie') }, lies: async () => await say('count'), kill }
  } catch (error) {
    await kill()
    throw error
  } finally {
    clearTimeout(late)
  }
}
