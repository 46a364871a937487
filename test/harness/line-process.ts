/**
 * A child process that reports in lines on stdout: a test waits for a line, or for its end, with a deadline, and sees to it that
 * it is gone. What touches a mounted file runs in one of these: a call that hangs in the kernel then hangs what can be killed.
 */
import { spawn, type ChildProcess } from 'node:child_process'
import { EventEmitter, once } from 'node:events'
import { fileURLToPath } from 'node:url'

/** A process that does not end after SIGKILL is held by the kernel: a hung mount. */
const KILL_DEADLINE_MS = 10_000

export interface Ended {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
}

export class LineProcess {
  readonly lines: string[] = []
  readonly #child: ChildProcess
  readonly #news = new EventEmitter()
  readonly #ended: Promise<Ended>
  #stderr = ''
  #over = false

  constructor (command: string, args: readonly string[], options: { env?: NodeJS.ProcessEnv } = {}) {
    this.#child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'], env: options.env ?? process.env })
    let rest = ''
    this.#child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      const whole = (rest + text).split('\n')
      rest = whole.pop() ?? ''
      this.lines.push(...whole)
      this.#news.emit('news')
    })
    this.#child.stderr!.setEncoding('utf8').on('data', (text: string) => { this.#stderr += text })
    this.#child.stdin!.on('error', () => {}) // it ended before it had read all: its exit code says how
    this.#ended = new Promise((resolve, reject) => {
      this.#child.on('error', (error) => {
        this.#over = true
        this.#news.emit('news')
        reject(error)
      })
      this.#child.on('close', (code, signal) => {
        this.#over = true
        this.#news.emit('news')
        resolve({ code, signal, stdout: [...this.lines, rest].join('\n'), stderr: this.#stderr })
      })
    })
    this.#ended.catch(() => {})
  }

  /** One of the programs beside this file, by its name. */
  static python (script: string, ...args: Array<string | number>): LineProcess {
    return new LineProcess('python3', [fileURLToPath(new URL(script, import.meta.url)), ...args.map(String)])
  }

  get pid (): number {
    const { pid } = this.#child
    if (pid === undefined) throw new Error('it did not start')
    return pid
  }

  /** The latest line for which `matches`, as soon as there is one. Throws when the process ends first, or after the deadline. */
  async line (matches: (line: string) => boolean, deadlineMs: number): Promise<string> {
    const deadline = AbortSignal.timeout(deadlineMs)
    for (;;) {
      const found = this.lines.findLast(matches)
      if (found !== undefined) return found
      if (this.#over) throw new Error(`it ended without that line; stderr: ${this.#stderr}`)
      await once(this.#news, 'news', { signal: deadline })
    }
  }

  /** How it ended, once it has. */
  async ended (deadlineMs: number): Promise<Ended> {
    const deadline = AbortSignal.timeout(deadlineMs)
    while (!this.#over) await Promise.race([this.#ended, once(this.#news, 'news', { signal: deadline })])
    return await this.#ended
  }

  send (line: string): void {
    this.#child.stdin!.write(`${line}\n`)
  }

  /** Closes its stdin, which asks the programs of this folder to end, and waits until it has. */
  async finish (deadlineMs: number): Promise<Ended> {
    this.#child.stdin!.end()
    return await this.ended(deadlineMs)
  }

  /** To be called in any case: returns when it is gone. */
  async kill (): Promise<void> {
    if (!this.#over) this.#child.kill('SIGKILL')
    await this.ended(KILL_DEADLINE_MS)
  }
}

/** Runs a command to its end. */
export async function runToEnd (command: string, args: readonly string[], deadlineMs: number): Promise<Ended> {
  const child = new LineProcess(command, args)
  try {
    return await child.finish(deadlineMs)
  } finally {
    await child.kill()
  }
}
