/**
 * What a mount needs of the kernel's side: a driver attaches the tree to a folder, answers the kernel from `Operations`, and
 * lets go of it again. There are two:
 *
 *   direct        speaks the protocol of /dev/fuse itself (`fuse/direct-driver.ts`): needs CAP_SYS_ADMIN
 *   fuse-native   through libfuse 2 (`fuse-native/native-driver.ts`): for those without
 *
 * Everything else of a mount is the same for both (`fuse/mount.ts`).
 */
import { errorCodeOf, P2pvmError } from '../protocols/errors.ts'
import type { FileViewInit } from './file-view.ts'
import type { KernelState } from './kernel-state.ts'
import type { Journal } from './mount-journal.ts'
import type { Operations } from './operations.ts'

export type DriverName = 'direct' | 'fuse-native'

/** `auto`: the direct one where it can mount, else the other. */
export type DriverChoice = 'auto' | DriverName

export const DRIVER_CHOICES: readonly DriverChoice[] = ['auto', 'direct', 'fuse-native']

/** What a server of a mount that outlives it (`fuse/keeper.ts`) leaves behind, and what it finds. */
export interface Succession {
  readonly journal: Journal
  /** There may be one after this: the kernel is to keep what it has not answered. */
  readonly resend: boolean
  /** What the kernel takes for known, from the server before this one. */
  readonly before: KernelState | undefined
}

export interface Driver {
  readonly name: DriverName
  /** Absolute, without symbolic links. */
  readonly mountpoint: string
  /** Of fusectl. */
  readonly connection: number
  /**
   * The kernel keeps what programs have written until it likes, or until an fsync: so a cut has to come with one. Else every
   * write(2) has been answered by the server before it returns, and a cut may be between any two requests.
   */
  readonly writeback: boolean
  /** Requests that reached the main thread, by name. */
  readonly counters: Readonly<Record<string, number>>
  /** Resolves when the connection has ended, whoever ended it. */
  readonly ended: Promise<void>
  /** It has been mounted, and is served from now on, when this resolves. `resend`: the kernel keeps what a killed server has not answered. */
  serve (operations: Operations, succession: Succession): Promise<{ readonly resend: boolean }>
  /** Brings a file to whoever answers without the main thread; resolves when none can be using what it had before. */
  publish (view: FileViewInit): Promise<void>
  withdraw (fh: number): Promise<void>
  quiesce (): Promise<void>
  /** The kernel has written back what was dirty in `[from, to)` of an inode when this resolves. */
  flushPages (ino: bigint, from: number, to: number): Promise<void>
  /** False when somebody has a file open there. */
  unmount (): Promise<boolean>
  /** Ends the connection at once, and blocks while it does. */
  abort (): void
  /** After `ended`. */
  close (): void
}

/**
 * Trying is the only sure way to know whether one may mount. ERR_NOT_ALLOWED, with the reasons of both, when neither can; else what
 * the driver says.
 */
export async function chooseDriver<T> (choice: DriverChoice, attempts: Readonly<Record<DriverName, () => Promise<T>>>): Promise<T> {
  if (choice !== 'auto') return await attempts[choice]()
  try {
    return await attempts.direct()
  } catch (direct) {
    if (errorCodeOf(direct) !== 'ERR_NOT_ALLOWED') throw direct
    try {
      return await attempts['fuse-native']()
    } catch (native) {
      if (errorCodeOf(native) !== 'ERR_NOT_ALLOWED') throw native
      throw new P2pvmError('ERR_NOT_ALLOWED', `${messageOf(direct)}; ${messageOf(native)}`, {}, direct)
    }
  }
}

function messageOf (error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
