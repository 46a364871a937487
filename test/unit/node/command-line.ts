/** The program as it is built, started against a daemon that lives in this process. */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { bundle } from '../../../scripts/bundle.ts'
import { serveControl } from '../../../src/node/control-server.ts'
import type { SocketServer } from '../../../src/node/http-server.ts'
import { FakeDaemon, quiet } from './fake-handlers.ts'

export interface Ran {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

export interface RunOptions {
  readonly input?: Iterable<Uint8Array>
  readonly env?: NodeJS.ProcessEnv
}

export class CommandLine {
  readonly folder = mkdtempSync(join(tmpdir(), 'p2pvm-command-line-'))
  /** Where the program keeps what is only for a while: TMPDIR. */
  readonly temporary = join(this.folder, 'tmp')
  daemon = new FakeDaemon()
  #server: SocketServer | undefined

  async build (): Promise<void> {
    mkdirSync(this.temporary)
    writeFileSync(join(this.folder, 'config.json'), '{}')
    await bundle(join(this.folder, 'dist'))
  }

  /** A daemon that knows nothing yet, in place of the one before. */
  async freshDaemon (): Promise<void> {
    await this.#server?.close()
    this.daemon = new FakeDaemon()
    this.#server = await serveControl(join(this.folder, 'control.sock'), this.daemon, quiet)
  }

  async close (): Promise<void> {
    await this.#server?.close()
    rmSync(this.folder, { recursive: true })
  }

  /** For `spawn`. */
  command (args: readonly string[]): [string, ...string[]] {
    return [process.execPath, join(this.folder, 'dist', 'p2pvm.js'), ...args]
  }

  env (more: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv {
    return { PATH: process.env.PATH, TMPDIR: this.temporary, P2PVM_CONFIG: join(this.folder, 'config.json'), P2PVM_CONTROL: join(this.folder, 'control.sock'), ...more }
  }

  start (args: readonly string[], env?: NodeJS.ProcessEnv): ChildProcessWithoutNullStreams {
    const [program, ...rest] = this.command(args)
    return spawn(program, rest, { env: this.env(env) })
  }

  async run (args: readonly string[], { input = [], env }: RunOptions = {}): Promise<Ran> {
    const child = this.start(args, env)
    child.stdin.on('error', () => {}) // a command that does not read it
    const ended = endOf(child)
    for (const part of input) await new Promise((resolve) => { child.stdin.write(part, resolve) })
    child.stdin.end()
    return await ended
  }
}

export async function endOf (child: ChildProcessWithoutNullStreams): Promise<Ran> {
  const exited = new Promise<number | null>((resolve) => { child.once('close', resolve) })
  const [stdout, stderr, code] = await Promise.all([text(child.stdout), text(child.stderr), exited])
  return { code, stdout, stderr }
}
