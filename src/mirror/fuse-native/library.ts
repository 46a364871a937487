/**
 * The package fuse-native, an optional dependency, and what has to be different in it. Loaded when it is asked for, and not
 * before. Owns no state.
 */
import type Fuse from 'fuse-native'
import type { Handlers } from 'fuse-native'
import { P2pvmError } from '../../protocols/errors.ts'
import { ERRNO } from '../errno.ts'

export type Library = typeof Fuse

/** ERR_NOT_ALLOWED when it is not installed, or not made for this machine. */
export async function loadLibrary (): Promise<Library> {
  try {
    const library = (await import('fuse-native')).default
    // It would run fusermount -z, which not every root has, and take the mount away under those who have files open:
    // `unmount` is only to let go of its own state here, after the end.
    library.unmount = (_mountpoint, done) => { done(null) }
    return library
  } catch (error) {
    const why = error instanceof Error ? error.message.split('\n')[0] : String(error)
    throw new P2pvmError('ERR_NOT_ALLOWED', `the driver fuse-native needs the package of that name, which comes for x64 only (npm install fuse-native): ${why}`, {}, error)
  }
}

/** `options`: of libfuse 2, as `-o` takes them; the library knows some of them only. */
export function createSession (Library: Library, mountpoint: string, handlers: Handlers, options: readonly string[]): Fuse {
  // Each request has its own deadline here, and a library's would be another errno.
  const session = new Library(mountpoint, handlers, { timeout: false })
  session._fuseOptions = () => `-o${options.join(',')}`
  // Its own would tell libfuse to send more bytes than there is room for.
  session._op_getxattr = (signal, path, name, room) => {
    handlers.getxattr(path, name, 0, (result, value) => { signal(result < 0 || value === undefined ? result : putInto(room, value), room.buffer) })
  }
  session._op_listxattr = (signal, path, room) => {
    handlers.listxattr(path, (result, names = []) => {
      signal(result < 0 ? result : putInto(room, Buffer.from(names.map((name) => `${name}\0`).join(''))), room.buffer)
    })
  }
  return session
}

/** As getxattr(2): the bytes, or only their number when there is no room at all. */
export function putInto (room: Buffer, value: Buffer): number {
  if (room.length !== 0 && value.length > room.length) return -ERRNO.ERANGE
  value.copy(room)
  return value.length
}
