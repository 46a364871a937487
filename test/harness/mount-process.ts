/**
 * Starts and ends mounts of `mount-child.ts` and talks to them. Every mount that was started here is gone after
 * `endMounts`, whatever became of its process.
 */
import { execFile, execFileSync, fork, spawn, type ChildProcess, type ChildProcessByStdio } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Readable, Writable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import type { DriverName } from '../../src/mirror/driver.ts'
import type { MountChildInit } from './mount-child.ts'

const CHILD = fileURLToPath(new URL('./mount-child.ts', import.meta.url))
/** A mount is ready, and a call answered, in well under a second on an idle machine. */
const ANSWER_DEADLINE_MS = 60_000
/** What touches a mount runs in a process of its own, so that a hang fails the test and not the runner. */
const COMMAND_DEADLINE_MS = 60_000

export const BLOB = 'abcdefghijklmnop'
export const IMAGE = 'debian-12'

/** Folders and an image for mounts. `image`: the bytes of version 1. */
export class MountWorld {
  readonly root = mkdtempSync(join(tmpdir(), 'p2pvm-mount-'))
  readonly mountpoint = join(this.root, 'mnt')
  readonly folders = { cache: join(this.root, 'cache'), working: join(this.root, 'working'), mounts: join(this.root, 'mounts') }
  readonly imageFile = join(this.root, 'image')
  readonly chunkSize: number
  readonly driver: DriverName
  readonly #children: ChildProcess[] = []

  constructor (image: Buffer, chunkSize = 64 * 1024, driver: DriverName = 'direct') {
    this.chunkSize = chunkSize
    this.driver = driver
    for (const folder of [this.mountpoint, ...Object.values(this.folders)]) mkdirSync(folder)
    writeFileSync(this.imageFile, image)
  }

  /** Mounted, with a working copy of an image of random bytes: what most tests begin with. `image` is what the image holds. */
  static async withWorkingCopy (sizeBytes: number, chunkSize: number, driver: DriverName = 'direct'): Promise<{ world: MountWorld, image: Buffer, mount: MountProcess, path: string }> {
    const image = randomBytes(sizeBytes)
    const world = new MountWorld(image, chunkSize, driver)
    try {
      const mount = await world.start()
      await mount.call('createWorkingCopy', 'vm1', 1)
      return { world, image, mount, path: world.path('working', 'vm1') }
    } catch (error) {
      world.end() // nobody else knows of it yet
      throw error
    }
  }

  /** A path below the mountpoint. */
  path (...names: string[]): string {
    return join(this.mountpoint, ...names)
  }

  /** `descriptorsMax`: what the process may have open, hence how many chunks. */
  async start ({ descriptorsMax, ...options }: { missDeadlineMs?: number, mountpoint?: string, descriptorsMax?: number } = {}): Promise<MountProcess> {
    const init: MountChildInit = {
      mountpoint: this.mountpoint, image: IMAGE, blob: BLOB, file: this.imageFile, chunkSize: this.chunkSize, driver: this.driver, folders: this.folders, ...options
    }
    const limited = descriptorsMax === undefined ? { execArgv: [] } : { execPath: 'prlimit', execArgv: [`--nofile=${descriptorsMax}`, process.execPath] }
    const child = fork(CHILD, [JSON.stringify(init)], { ...limited, env: { ...process.env, P2PVM_TEST_HOOKS: '1' } })
    this.#children.push(child)
    return await MountProcess.ready(child)
  }

  /** For afterEach. */
  end (): void {
    for (const child of this.#children) if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL')
    if (this.isMounted()) execFileSync('umount', ['-i', '-f', '-l', this.mountpoint])
    rmSync(this.root, { recursive: true, force: true })
  }

  isMounted (): boolean {
    return readFileSync('/proc/self/mountinfo', 'utf8').includes(` ${this.mountpoint} `)
  }
}

export class MountProcess {
  readonly child: ChildProcess
  readonly #waiting = new Map<number, { resolve: (value: unknown) => void, reject: (error: Error) => void }>()
  readonly #events = new Map<string, () => void>()
  #lastId = 0
  /** Resolves with the exit code, or the signal's name. */
  readonly exited: Promise<number | string | null>

  private constructor (child: ChildProcess) {
    this.child = child
    this.exited = new Promise((resolve) => { child.once('exit', (code, signal) => { resolve(code ?? signal) }) })
    child.on('message', (message: { id?: number, event?: string, result?: unknown, error?: { code: string, message: string } }) => {
      if (message.event !== undefined) this.#events.get(message.event)?.()
      const waiting = this.#waiting.get(message.id ?? -1)
      if (waiting === undefined) return
      if (message.error === undefined) waiting.resolve(message.result)
      else waiting.reject(Object.assign(new Error(message.error.message), { code: message.error.code }))
    })
    child.once('exit', () => { for (const { reject } of this.#waiting.values()) reject(new Error('the mount process has ended')) })
  }

  static async ready (child: ChildProcess): Promise<MountProcess> {
    const mount = new MountProcess(child)
    await new Promise<void>((resolve, reject) => {
      child.once('message', (message: { event: string, code: string, message: string }) => {
        if (message.event === 'ready') resolve()
        else reject(Object.assign(new Error(message.message), { code: message.code }))
      })
      child.once('exit', (code, signal) => { reject(new Error(`the mount process ended: ${code ?? signal}`)) })
    })
    return mount
  }

  async call (call: string, ...args: unknown[]): Promise<unknown> {
    const id = ++this.#lastId
    const answer = new Promise<unknown>((resolve, reject) => { this.#waiting.set(id, { resolve, reject }) })
    const late = AbortSignal.timeout(ANSWER_DEADLINE_MS)
    late.addEventListener('abort', () => { this.#waiting.get(id)?.reject(new Error(`no answer to ${call}`)) })
    this.child.send({ id, call, args })
    return await answer.finally(() => { this.#waiting.delete(id) })
  }

  async event (name: string): Promise<void> {
    await new Promise<void>((resolve) => { this.#events.set(name, resolve) })
  }

  async kill (signal: NodeJS.Signals): Promise<number | string | null> {
    this.child.kill(signal)
    return await this.exited
  }
}

const execFileAsync = promisify(execFile)

/** A program that touches the mount; its stdout. Killed after a deadline. */
export async function run (command: string, ...args: string[]): Promise<string> {
  const { stdout } = await execFileAsync(command, args, { timeout: COMMAND_DEADLINE_MS, killSignal: 'SIGKILL', maxBuffer: 64 * 1024 * 1024 })
  return stdout
}

/** A Python program, for system calls that Node does not have; its stdout. `sys.argv[1:]` are the arguments. */
export async function python (program: string, ...args: string[]): Promise<string> {
  return await run('python3', '-c', program, ...args)
}

/** A Python program that goes on while the test does, line by line. */
export class PythonProcess {
  readonly #child: ChildProcessByStdio<Writable, Readable, null>
  readonly #lines: AsyncIterator<string>
  readonly #closed: Promise<void>

  constructor (program: string, ...args: string[]) {
    this.#child = spawn('python3', ['-c', program, ...args], { stdio: ['pipe', 'pipe', 'inherit'], timeout: COMMAND_DEADLINE_MS, killSignal: 'SIGKILL' })
    this.#lines = createInterface(this.#child.stdout)[Symbol.asyncIterator]()
    this.#closed = new Promise((resolve) => { this.#child.once('close', () => { resolve() }) })
  }

  /** Its next line; undefined when it has ended. */
  async line (): Promise<string | undefined> {
    const next = await this.#lines.next()
    return next.done === true ? undefined : next.value
  }

  send (line: string): void {
    this.#child.stdin.write(`${line}\n`)
  }

  /** Ends its stdin and waits until it has ended. */
  async end (): Promise<void> {
    this.#child.stdin.end()
    this.#child.stdout.resume()
    await this.#closed
  }
}
