/**
 * CLONE and COMMIT from inside the mount: as ioctls (include/p2pvm.h), which wait, and as extended attributes, which cannot:
 * the kernel holds the inode's lock during SETXATTR and the seal's fsync takes the same lock. So setting
 * `user.p2pvm.commit` or `user.p2pvm.clone` (value: an image name, or nothing) starts one, and reading it reports the outcome.
 *
 * State it owns: the last outcome per working copy and attribute. The work is the daemon's, asked through MirrorSource.
 */
import { ErrnoError, ERRNO, errnoOf } from '../errno.ts'
import { errorCodeOf } from '../../protocols/errors.ts'
import type { MirrorSource, VersionRef } from '../source.ts'

export const XATTR_BASE = 'user.p2pvm.base'
export const XATTR_COMMIT = 'user.p2pvm.commit'
export const XATTR_CLONE = 'user.p2pvm.clone'

type Verb = 'commit' | 'clone'

export type Outcome =
  | { readonly state: 'running' }
  | { readonly state: 'done', readonly blob: string, readonly version: number }
  | { readonly state: 'failed', readonly code: string, readonly message: string }

const NAME_BYTES = 136
const MESSAGE_BYTES = 256
const BLOB_BYTES = 32
const RESULT_BYTES = BLOB_BYTES + 16

interface IoctlLayout {
  readonly verb: Verb
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

export class Commands {
  readonly #source: Pick<MirrorSource, 'clone' | 'commit'>
  readonly #signal: AbortSignal
  readonly #outcomes = new Map<string, Outcome>()

  /** `signal` aborts when the mount ends. */
  constructor (source: Pick<MirrorSource, 'clone' | 'commit'>, signal: AbortSignal) {
    this.#source = source
    this.#signal = signal
  }

  /** The struct with its out fields, and what ioctl(2) returns. ENOTTY when the command is not ours. */
  async ioctl (cmd: number, bytes: Buffer, workingCopy: string, signal: AbortSignal): Promise<{ result: number, out: Buffer }> {
    const layout = IOCTLS.get(cmd)
    if (layout === undefined) throw new ErrnoError(ERRNO.ENOTTY)
    const resultAt = NAME_BYTES + layout.messageBytes
    if (bytes.length !== resultAt + RESULT_BYTES) throw new ErrnoError(ERRNO.EINVAL)
    const out = Buffer.from(bytes)
    let errno = 0
    try {
      const name = readString(bytes.subarray(0, NAME_BYTES))
      const message = readString(bytes.subarray(NAME_BYTES, resultAt))
      const version = await this.#run(layout.verb, workingCopy, name, message, signal)
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
  start (attribute: string, value: Buffer, workingCopy: string): void {
    const verb = verbOf(attribute)
    if (value.length >= NAME_BYTES) throw new ErrnoError(ERRNO.EINVAL)
    for (const other of ['commit', 'clone'] as const) {
      if (this.#outcomes.get(keyOf(other, workingCopy))?.state === 'running') throw new ErrnoError(ERRNO.EBUSY)
    }
    const key = keyOf(verb, workingCopy)
    this.#outcomes.set(key, { state: 'running' })
    this.#run(verb, workingCopy, value.toString(), '', this.#signal).then(
      ({ blob, version }) => { this.#outcomes.set(key, { state: 'done', blob, version }) },
      (error: unknown) => {
        this.#outcomes.set(key, { state: 'failed', code: errorCodeOf(error), message: error instanceof Error ? error.message : String(error) })
      })
  }

  /** JSON. ENODATA when none was started since the mount. */
  outcome (attribute: string, workingCopy: string): Buffer {
    const outcome = this.#outcomes.get(keyOf(verbOf(attribute), workingCopy))
    if (outcome === undefined) throw new ErrnoError(ERRNO.ENODATA)
    return Buffer.from(JSON.stringify(outcome))
  }

  async #run (verb: Verb, workingCopy: string, name: string, message: string, signal: AbortSignal): Promise<VersionRef> {
    const as = name === '' ? undefined : name
    return verb === 'commit'
      ? await this.#source.commit(workingCopy, as, message, signal)
      : await this.#source.clone(workingCopy, as, signal)
  }
}

function verbOf (attribute: string): Verb {
  if (attribute === XATTR_COMMIT) return 'commit'
  if (attribute === XATTR_CLONE) return 'clone'
  throw new ErrnoError(ERRNO.ENOTSUP)
}

function keyOf (verb: Verb, workingCopy: string): string {
  return `${verb} ${workingCopy}`
}

/** Up to the NUL; EINVAL without one. */
function readString (field: Buffer): string {
  if (field.length === 0) return ''
  const end = field.indexOf(0)
  if (end < 0) throw new ErrnoError(ERRNO.EINVAL)
  return field.toString('utf8', 0, end)
}
