/**
 * What a benchmark sets up on this machine and must not leave there: servers, mounts, files. Whoever sets up says at once how to take
 * it back; `clear` does that for all that is left, the latest first, after it has ended the programs that run.
 *
 * State it owns: the programs and servers that it has started. Servers are also killed by the kernel when this process dies.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { existsSync, mkdirSync } from 'node:fs'
import { open, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { unmount } from '../../src/node/mountpoints.ts'

const execFileAsync = promisify(execFile)

/** One job of a benchmark is done within seconds, the slowest drivers included. */
const PROGRAM_DEADLINE_MS = 5 * 60_000
const READY_DEADLINE_MS = 20_000
const END_DEADLINE_MS = 10_000
const LOOK_EVERY_MS = 20
const OUTPUT_BYTES_MAX = 16 * 1024 * 1024
const SAID_CHARACTERS_MAX = 2000

type Step = () => Promise<unknown>

/** Steps back, the latest first. */
export class Undo {
  readonly #steps: Step[] = []

  add (step: Step): void {
    this.#steps.push(step)
  }

  /** Runs them all, once, and throws the first failure after that. */
  async run (): Promise<void> {
    const failures: unknown[] = []
    for (let step; (step = this.#steps.pop()) !== undefined;) {
      try {
        await step()
      } catch (error) {
        failures.push(error)
      }
    }
    if (failures.length > 0) throw failures[0]
  }
}

export class Stage {
  readonly folder: string
  readonly #undos: Undo[] = []
  readonly #ending = new AbortController()
  readonly #running = new Set<Promise<unknown>>()
  #folders = 0

  constructor (folder: string) {
    this.folder = folder
  }

  /** What is added to it is undone by its own `run`, or at last by `clear`. */
  begin (): Undo {
    const undo = new Undo()
    this.#undos.push(undo)
    return undo
  }

  /** A folder of its own, empty. */
  newFolder (): string {
    const path = join(this.folder, `stage-${this.#folders++}`)
    mkdirSync(path, { recursive: true })
    return path
  }

  /** A program from start to end: its stdout. Throws with its stderr; ended by `clear`. */
  async run (program: string, ...args: string[]): Promise<string> {
    const running = execFileAsync(program, args, { signal: this.#ending.signal, timeout: PROGRAM_DEADLINE_MS, killSignal: 'SIGKILL', maxBuffer: OUTPUT_BYTES_MAX })
    const over = running.catch(() => {})
    this.#running.add(over)
    try {
      return (await running).stdout
    } finally {
      this.#running.delete(over)
    }
  }

  /** A server in the foreground; returns when `there` is. Undone by its end. */
  async serve (undo: Undo, there: string, program: string, ...args: string[]): Promise<void> {
    this.#ending.signal.throwIfAborted()
    const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', program, ...args], { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, TMPDIR: this.folder } })
    let said = ''
    child.stderr.setEncoding('utf8').on('data', (text: string) => { said = (said + text).slice(-SAID_CHARACTERS_MAX) })
    child.on('error', (error) => { said += error.message })
    undo.add(async () => { await end(child) })
    for (const deadlineMs = performance.now() + READY_DEADLINE_MS; !existsSync(there);) {
      if (!isAlive(child) || performance.now() > deadlineMs) throw new Error(`${program} does not serve ${there}: ${said.trim()}`)
      await delay(LOOK_EVERY_MS)
    }
  }

  /** What is mounted there is unmounted; by force when somebody has it open. */
  undoMount (undo: Undo, mountpoint: string): void {
    undo.add(async () => {
      await unmount(mountpoint, { lazy: false }).catch(async () => { await unmount(mountpoint, { lazy: true }) })
    })
  }

  /** A copy that may be written to, on the file system of the stage; on disk when this returns. Undone by its removal. */
  async copy (undo: Undo, source: string, path: string): Promise<void> {
    undo.add(async () => { await rm(path, { force: true }) })
    await this.run('cp', '--sparse=always', '--reflink=never', source, path)
    const file = await open(path, 'r+')
    try {
      await file.sync()
    } finally {
      await file.close()
    }
  }

  /** Ends the programs that run, then takes everything back. Nothing can be started after it. */
  async clear (): Promise<void> {
    this.#ending.abort()
    await Promise.all(this.#running)
    const failures: unknown[] = []
    for (let undo; (undo = this.#undos.pop()) !== undefined;) await undo.run().catch((error: unknown) => { failures.push(error) })
    if (failures.length > 0) throw failures[0]
  }
}

function isAlive (child: ChildProcess): boolean {
  return child.pid !== undefined && child.exitCode === null && child.signalCode === null
}

async function end (child: ChildProcess): Promise<void> {
  if (!isAlive(child)) return
  const ended = new Promise<void>((resolve) => { child.once('exit', () => { resolve() }) })
  child.kill('SIGTERM')
  const kill = setTimeout(() => { child.kill('SIGKILL') }, END_DEADLINE_MS)
  await ended
  clearTimeout(kill)
}
