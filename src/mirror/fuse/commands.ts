/**
 * CLONE and COMMIT from inside the mount: as ioctls (include/p2pvm.h), which wait, and as extended attributes, which cannot:
 * the kernel holds the inode's lock during SETXATTR and the seal's fsync takes the same lock. So setting
 * `user.p2pvm.commit` or `user.p2pvm.clone` (value: an image name, or nothing) starts one, and reading it reports the outcome.
 *
 * The work is the daemon's, asked through MirrorSource under an id that follows from the kernel's request: a server that takes
 * over from a killed one asks again under the same id, and the daemon does it once.
 *
 * State it owns: the last outcome per working copy and attribute.
 */
import { ErrnoError, ERRNO, errnoOf } from '../errno.ts'
import { errorCodeOf } from '../../protocols/errors.ts'
import { type CommandVerb, keyOfCommand, type KnownCommand } from '../kernel-state.ts'
import type { Journal } from '../mount-journal.ts'
import type { MirrorSource, VersionRef } from '../source.ts'
import { originalUnique } from './protocol.ts'

export const XATTR_BASE = 'user.p2pvm.base'
export const XATTR_COMMIT = 'user.p2pvm.commit'
export const XATTR_CLONE = 'user.p2pvm.clone'

const NAME_BYTES = 136
const MESSAGE_BYTES = 256
const BLOB_BYTES = 32
const RESULT_BYTES = BLOB_BYTES + 16

interface IoctlLayout {
  readonly verb: CommandVerb
  readonly messageBytes: number
}

const IOC_MAGIC = 0xe9

function iowr (number: number, size: number): number {
  return ((3 << 30) | (size << 16) | (IOC_MAGIC << 8) | number) >>> 0
}

const IOCTLS: ReadonlyMap<number, IoctlLayout> = new Map([
  [iowr(1, NAME_BYTES + MESSAGE_BYTES + RESULT_BYTES), { verb: 'commit', messageBytes: MESSAGE_BYTES }],
  [iowr(2, NAME_BYTES + RESULT_BYTES), { verb: 'clone', messageBytes: 0 }]
])

/** True for the ioctls of include/p2pvm.h. */
export function isOurs (cmd: number): boolean {
  return IOCTLS.has(cmd)
}

export interface CommandsComponents {
  readonly source: Pick<MirrorSource, 'clone' | 'commit'>
  readonly journal: Journal
  /** Of the mount, random: what makes an id out of a request's number. */
  readonly mount: string
  /** Aborts when the mount ends. */
  readonly signal: AbortSignal
}

export class Commands {
  readonly #components: CommandsComponents
  readonly #commands = new Map<string, KnownCommand>()

  constructor (components: CommandsComponents) {
    this.#components = components
  }

  /** From a server before this one. What was running is asked for again: it is the same. */
  restore (commands: Iterable<KnownCommand>): void {
    for (const command of commands) {
      this.#commands.set(keyOfCommand(command), command)
      if (command.outcome.state === 'running') this.#finish(command)
    }
  }

  /** The struct with its out fields, and what ioctl(2) returns. ENOTTY when the command is not ours. */
  async ioctl (unique: bigint, cmd: number, bytes: Buffer, workingCopy: string, signal: AbortSignal): Promise<{ result: number, out: Buffer }> {
    const layout = IOCTLS.get(cmd)
    if (layout === undefined) throw new ErrnoError(ERRNO.ENOTTY)
    const resultAt = NAME_BYTES + layout.messageBytes
    if (bytes.length !== resultAt + RESULT_BYTES) throw new ErrnoError(ERRNO.EINVAL)
    const out = Buffer.from(bytes)
    let errno = 0
    try {
      const as = readString(bytes.subarray(0, NAME_BYTES))
      const message = readString(bytes.subarray(NAME_BYTES, resultAt))
      const version = await this.#run({ verb: layout.verb, workingCopy, as, id: this.#idOf(unique) }, message, signal)
      out.fill(0, resultAt)
      out.write(version.blob, resultAt, BLOB_BYTES - 1)
      out.writeBigUInt64LE(BigInt(version.version), resultAt + BLOB_BYTES)
    } catch (error) {
      errno = errnoOf(error)
    }
    out.writeInt32LE(errno, resultAt + BLOB_BYTES + 8)
    return { result: errno === 0 ? 0 : -errno, out }
  }

  /** Starts one. EBUSY while another runs, EINVAL when the value is longer than any name. */
  start (unique: bigint, attribute: string, value: Buffer, workingCopy: string): void {
    const { journal } = this.#components
    if (journal.answered(String(originalUnique(unique)), 'command') !== undefined) return
    const verb = verbOf(attribute)
    if (value.length >= NAME_BYTES) throw new ErrnoError(ERRNO.EINVAL)
    for (const other of ['commit', 'clone'] as const) {
      if (this.#commands.get(keyOfCommand({ verb: other, workingCopy }))?.outcome.state === 'running') throw new ErrnoError(ERRNO.EBUSY)
    }
    const command: KnownCommand = { verb, workingCopy, as: value.toString(), id: this.#idOf(unique), outcome: { state: 'running' } }
    this.#commands.set(keyOfCommand(command), command)
    journal.append({ kind: 'command', unique: String(originalUnique(unique)), command })
    this.#finish(command)
  }

  #finish (command: KnownCommand): void {
    const { journal, signal } = this.#components
    const finished = (outcome: KnownCommand['outcome']): void => {
      const ended = { ...command, outcome }
      this.#commands.set(keyOfCommand(command), ended)
      journal.append({ kind: 'outcome', command: ended })
    }
    this.#run(command, '', signal).then(
      ({ blob, version }) => { finished({ state: 'done', blob, version }) },
      (error: unknown) => { finished({ state: 'failed', code: errorCodeOf(error), message: error instanceof Error ? error.message : String(error) }) })
  }

  /** JSON. ENODATA when none was started since the mount. */
  outcome (attribute: string, workingCopy: string): Buffer {
    const command = this.#commands.get(keyOfCommand({ verb: verbOf(attribute), workingCopy }))
    if (command === undefined) throw new ErrnoError(ERRNO.ENODATA)
    return Buffer.from(JSON.stringify(command.outcome))
  }

  #idOf (unique: bigint): string {
    return `${this.#components.mount}-${originalUnique(unique)}`
  }

  async #run ({ verb, workingCopy, as, id }: Omit<KnownCommand, 'outcome'>, message: string, signal: AbortSignal): Promise<VersionRef> {
    const { source } = this.#components
    const name = as === '' ? undefined : as
    return verb === 'commit'
      ? await source.commit(workingCopy, { id, as: name, message }, signal)
      : await source.clone(workingCopy, { id, name }, signal)
  }
}

function verbOf (attribute: string): CommandVerb {
  if (attribute === XATTR_COMMIT) return 'commit'
  if (attribute === XATTR_CLONE) return 'clone'
  throw new ErrnoError(ERRNO.ENOTSUP)
}

/** Up to the NUL; EINVAL without one. */
function readString (field: Buffer): string {
  if (field.length === 0) return ''
  const end = field.indexOf(0)
  if (end < 0) throw new ErrnoError(ERRNO.EINVAL)
  return field.toString('utf8', 0, end)
}
