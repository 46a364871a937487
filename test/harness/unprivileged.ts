/**
 * Programs run by a user without privileges, in a mount namespace of their own where that user may open /dev/fuse: whether he may
 * outside of it is the machine's affair, and stays as it is. Mounts made in there are gone with the namespace. Needs root.
 */
import { chown, mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { NOBODY } from './capabilities.ts'
import { type Ended, LineProcess, runToEnd } from './line-process.ts'

const READY_DEADLINE_MS = 10_000
/** The device of /dev/fuse has this number everywhere. */
const ENTER = `
set -eu
mknod "$1" c 10 229
chmod 666 "$1"
mount --bind "$1" /dev/fuse
echo ready
exec cat`

export class Unprivileged {
  /** His, for all that he writes. */
  readonly folder: string
  readonly #namespace: LineProcess

  private constructor (folder: string, namespace: LineProcess) {
    this.folder = folder
    this.#namespace = namespace
  }

  static async start (): Promise<Unprivileged> {
    const root = await mkdtemp(join(tmpdir(), 'p2pvm-unprivileged-'))
    const folder = join(root, 'home')
    await chown(root, NOBODY, NOBODY)
    await mkdir(folder)
    await chown(folder, NOBODY, NOBODY)
    const namespace = new LineProcess('unshare', ['--mount', '--propagation', 'private', 'sh', '-c', ENTER, 'sh', join(root, 'fuse')])
    const made = new Unprivileged(folder, namespace)
    try {
      await namespace.line((line) => line === 'ready', READY_DEADLINE_MS)
      return made
    } catch (error) {
      await made.end()
      throw error
    }
  }

  /** The command line of a program that he runs. */
  command (...command: string[]): [command: string, args: string[]] {
    return ['nsenter', [...this.#enter(), 'setpriv', `--reuid=${NOBODY}`, `--regid=${NOBODY}`, '--clear-groups', '--', 'env', '-C', this.folder, `HOME=${this.folder}`, ...command]]
  }

  #enter (): string[] {
    return [`--mount=/proc/${this.#namespace.pid}/ns/mnt`, '--']
  }

  async run (deadlineMs: number, ...command: string[]): Promise<Ended> {
    const [program, args] = this.command(...command)
    return await runToEnd(program, args, deadlineMs)
  }

  /** The same by root. */
  async runAsRoot (deadlineMs: number, ...command: string[]): Promise<Ended> {
    return await runToEnd('nsenter', [...this.#enter(), ...command], deadlineMs)
  }

  /** What is mounted in there. */
  async mounts (): Promise<string> {
    return (await this.runAsRoot(READY_DEADLINE_MS, 'cat', '/proc/self/mountinfo')).stdout
  }

  /** To be called in any case, when his processes have ended. */
  async end (): Promise<void> {
    await this.#namespace.kill()
    await rm(join(this.folder, '..'), { recursive: true, force: true })
  }
}
