/** One peer of a fabric on this machine: a real daemon, started through bin/p2pvm, and its command line. */
import { type ChildProcess, spawn } from 'node:child_process'
import { closeSync, mkdirSync, openSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'
import type { DaemonReady } from '../src/node/config.ts'
import { dataDirAt } from '../src/node/data-dir.ts'
import type { Role } from '../src/dht/membership.ts'
import type { ProcessId } from '../src/mirror/processes.ts'
import { endMounts, endProcess, identify } from './processes.ts'

const PROGRAM = resolve(import.meta.dirname, '..', 'bin', 'p2pvm')
/** 0.3 s alone; a hundred at once on two cores take a minute. */
const READY_DEADLINE_MS = 90_000
/** Longer than any command's own deadlines, which say more than this one can. */
const COMMAND_DEADLINE_MS = 15 * 60_000
/** An export to `-` belongs into a file or a pipe, not here. */
const OUTPUT_BYTES_MAX = 64 * 1024 * 1024
const LOG_TAIL_CHARACTERS = 2000

export interface PeerInit {
  readonly name: string
  readonly roles: readonly Role[]
  readonly folder: string
  readonly bootstrap: readonly string[]
  /** Extra arguments of the daemon. */
  readonly args: readonly string[]
  readonly env: NodeJS.ProcessEnv
  /** It goes on when this process ends. */
  readonly detached: boolean
  /** Ends commands that are under way, and a start. */
  readonly signal?: AbortSignal | undefined
}

export interface CommandResult {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
  /** The document on stdout; undefined when there is none. */
  readonly json: unknown
  readonly tookMs: number
}

export class FabricPeer {
  readonly name: string
  readonly roles: readonly Role[]
  readonly data: string
  readonly control: string
  /** Where its stderr goes. */
  readonly log: string
  readonly #init: PeerInit
  #child: ChildProcess | undefined
  #id: ProcessId | undefined
  #ready: DaemonReady | undefined

  constructor (init: PeerInit) {
    this.#init = init
    this.name = init.name
    this.roles = init.roles
    this.data = join(init.folder, init.name)
    this.control = join(this.data, 'control.sock')
    this.log = join(this.data, 'daemon.log')
  }

  get process (): ChildProcess {
    return this.#started(this.#child)
  }

  get id (): ProcessId {
    return this.#started(this.#id)
  }

  get pid (): number {
    return this.id.pid
  }

  get peerId (): string {
    return this.#started(this.#ready).peerId
  }

  /** With /p2p/PEER, to bootstrap from. */
  get addresses (): readonly string[] {
    return this.#started(this.#ready).addresses.map((address) => address.includes('/p2p/') ? address : `${address}/p2p/${this.peerId}`)
  }

  /** Returns when it serves. Throws with the end of its log when it does not come up. */
  async start (): Promise<void> {
    mkdirSync(this.data, { recursive: true })
    // A peer that comes back listens where the others remember it.
    const listen = this.#ready?.addresses.map((address) => address.replace(/\/p2p\/.*$/, '')) ?? ['/ip4/127.0.0.1/tcp/0']
    const { bootstrap, args, detached, env } = this.#init
    const logDescriptor = openSync(this.log, 'a')
    const child = spawn(PROGRAM, [
      'daemon', '--data', this.data, '--control', this.control, '--role', this.roles.join(','), '--listen', listen.join(','),
      ...bootstrap.length > 0 ? ['--bootstrap', bootstrap.join(',')] : [], ...args
    ], { stdio: ['ignore', 'pipe', logDescriptor], detached, env })
    closeSync(logDescriptor)
    this.#child = child
    const line = await this.#readyLine(child, child.stdout as Readable)
    this.#ready = JSON.parse(line) as DaemonReady
    this.#id = await identify(child.pid ?? 0)
    if (!detached) return
    // It prints nothing more: its end of the pipe may go with us.
    child.stdout?.destroy()
    child.unref()
  }

  async #readyLine (child: ChildProcess, stdout: Readable): Promise<string> {
    const deadline = AbortSignal.any([AbortSignal.timeout(READY_DEADLINE_MS), ...this.#init.signal === undefined ? [] : [this.#init.signal]])
    const gone = new Promise<never>((_, reject) => {
      child.once('error', reject)
      child.once('exit', (code, signal) => { reject(new Error(`it ended (${signal ?? code})`)) })
      deadline.addEventListener('abort', () => { reject(deadline.reason as Error) })
    })
    gone.catch(() => {})
    try {
      const lines = createInterface({ input: stdout })[Symbol.asyncIterator]()
      const { value, done } = await Promise.race([lines.next(), gone])
      return done === true ? await gone : value
    } catch (error) {
      child.kill('SIGKILL')
      throw new Error(`${this.name} did not start: ${(error as Error).message}\n${this.#logTail()}`, { cause: error })
    }
  }

  /** `p2pvm ARGS --json` against this peer. Never throws for a command that fails: look at `code`. */
  async cli (...args: string[]): Promise<CommandResult> {
    const startMs = performance.now()
    const { env, signal } = this.#init
    const child = spawn(PROGRAM, [...args, '--json'], { stdio: ['ignore', 'pipe', 'pipe'], env: { ...env, P2PVM_CONTROL: this.control }, timeout: COMMAND_DEADLINE_MS, signal })
    const [stdout, stderr, code] = await Promise.all([
      collected(child.stdout),
      collected(child.stderr),
      new Promise<number>((resolve, reject) => {
        // A command that is given up is over when it has ended: it may have to take back what it began.
        child.once('error', (error) => { if (error.name !== 'AbortError') reject(error) })
        child.once('close', (code, signal) => { if (code === null) reject(new Error(`p2pvm ${args.join(' ')} was ended by ${signal}`)); else resolve(code) })
      })
    ])
    return { code, stdout, stderr, json: parsed(stdout), tookMs: performance.now() - startMs }
  }

  /** SIGSTOP and SIGCONT return at once, the others when it is gone. */
  async kill (signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    const child = this.process
    const gone = child.exitCode !== null || child.signalCode !== null
    if (gone) return
    const exited = new Promise((resolve) => { child.once('exit', resolve) })
    process.kill(this.pid, signal)
    if (signal !== 'SIGSTOP' && signal !== 'SIGCONT') await exited
  }

  /** On the same data and addresses, after a `kill` or without one. */
  async restart (): Promise<void> {
    await this.kill('SIGTERM')
    await this.start()
  }

  /** Its mounts, then itself. */
  async stop (): Promise<void> {
    await endMounts(dataDirAt(this.data).mounts)
    if (this.#id !== undefined) await endProcess(this.#id)
  }

  #started<T> (value: T | undefined): T {
    if (value === undefined) throw new Error(`${this.name} was not started`)
    return value
  }

  #logTail (): string {
    return readFileSync(this.log, 'utf8').slice(-LOG_TAIL_CHARACTERS)
  }
}

async function collected (stream: Readable): Promise<string> {
  let text = ''
  for await (const part of stream.setEncoding('utf8')) {
    text += String(part)
    if (text.length > OUTPUT_BYTES_MAX) throw new Error('the command says too much')
  }
  return text
}

function parsed (stdout: string): unknown {
  try {
    return JSON.parse(stdout)
  } catch {
    return undefined
  }
}
