/**
 * System calls of Linux that Node does not have, by way of koffi. It is loaded at the first call, by each thread that makes one: what
 * mounts nothing does without it. Where it cannot be loaded nothing fails: no hole is made, and nothing is read ahead.
 *
 * State it owns: the functions, once they are looked up.
 */
import { createRequire } from 'node:module'
import { constants } from 'node:os'
import { getSystemErrorMessage, getSystemErrorName } from 'node:util'

const { EINTR, ENOSYS, EOPNOTSUPP } = constants.errno

/** fallocate(2). */
export const FALLOC_FL_KEEP_SIZE = 0x01
export const FALLOC_FL_PUNCH_HOLE = 0x02
export const FALLOC_FL_ZERO_RANGE = 0x10

/** posix_fadvise(2). */
const POSIX_FADV_WILLNEED = 3

/** Others may have an off_t of 32 bits, and other numbers of system calls. */
const ARCHITECTURES: readonly string[] = ['x64', 'arm64']

interface Calls {
  /** Both: 0, or an errno. */
  readonly fallocate: (fd: number, mode: number, offset: number, length: number) => number
  readonly fadvise: (fd: number, offset: number, length: number, advice: number) => number
  /** syscall(2): -1 for an error. Numbers, or addresses as numbers. */
  readonly syscall: (call: number, ...args: [number, number, number, number, number]) => number
  readonly addressOf: (bytes: ArrayBufferView) => number
}

let loaded: { readonly calls: Calls | undefined } | undefined

/**
 * What lies in `[offset, offset + length)` of an open file, bytes, is given back to the disk and reads as zeros. The file keeps its size.
 * Waits for the disk where pages are on their way to it. False, and nothing has changed: this file system cannot, or nobody can ask it.
 * Throws as node:fs does, with `code` and `errno`; parts may be zeros then.
 */
export function punchHole (fd: number, offset: number, length: number): boolean {
  const calls = callsOfLinux()
  if (calls === undefined) return false
  let errno
  do errno = calls.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)
  while (errno === EINTR)
  if (errno === EOPNOTSUPP || errno === ENOSYS) return false
  if (errno !== 0) throw systemError('fallocate', errno)
  return true
}

/**
 * `[offset, offset + length)` of an open file, bytes, will be read: the kernel begins to bring it from the disk, and nobody waits. A length of
 * 0: to the end. It is advice: never throws, and says nothing of a disk that fails.
 */
export function willNeed (fd: number, offset: number, length: number): void {
  callsOfLinux()?.fadvise(fd, offset, length, POSIX_FADV_WILLNEED)
}

/** Whether the calls below can be made here. */
export function canCall (): boolean {
  return callsOfLinux() !== undefined
}

/** A system call by its number, which has no function in the C library: what it returns, -1 for an error. Undefined: nobody can make it. */
export function systemCall (call: number, ...args: [number, number, number, number, number]): number | undefined {
  return callsOfLinux()?.syscall(call, ...args)
}

/** Where bytes lie in the memory of this process; they stay there, and must not be collected while that is used. */
export function addressOf (bytes: ArrayBufferView): number | undefined {
  return callsOfLinux()?.addressOf(bytes)
}

function callsOfLinux (): Calls | undefined {
  loaded ??= { calls: load() }
  return loaded.calls
}

/** Undefined: not installed, or not made for this machine. */
function load (): Calls | undefined {
  if (process.platform !== 'linux' || !ARCHITECTURES.includes(process.arch)) return undefined
  try {
    const koffi = createRequire(import.meta.url)('koffi') as typeof import('koffi')
    const library = koffi.load(null) // what Node itself is linked to
    const fallocate = library.func('int fallocate(int fd, int mode, int64_t offset, int64_t length)')
    const fadvise = library.func('int posix_fadvise(int fd, int64_t offset, int64_t length, int advice)')
    const syscall = library.func('int64_t syscall(int64_t call, int64_t a, int64_t b, int64_t c, int64_t d, int64_t e)')
    const memset = library.func('uint64_t memset(void *bytes, int value, size_t length)') // of no bytes: gives back its first argument
    return {
      syscall: (...args) => syscall(...args) as number,
      addressOf: (bytes) => memset(bytes, 0, 0) as number,
      fallocate: (...args) => fallocate(...args) === 0 ? 0 : koffi.errno(),
      fadvise: (...args) => fadvise(...args) as number
    }
  } catch {
    return undefined
  }
}

function systemError (call: string, errno: number): NodeJS.ErrnoException {
  const code = getSystemErrorName(-errno)
  return Object.assign(new Error(`${code}: ${getSystemErrorMessage(-errno)}, ${call}`), { code, errno: -errno, syscall: call })
}
