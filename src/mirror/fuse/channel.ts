/** Requests from and replies to the kernel on an open /dev/fuse: which errors mean what. Owns no state. */
import { readSync, write, writeSync } from 'node:fs'
import { promisify } from 'node:util'
import { isNodeError } from '../files.ts'

const writeAsync = promisify(write)

/** Blocks for the next request and gives its length; 0 when the connection has ended. */
export function readRequest (deviceFd: number, request: Buffer): number {
  for (;;) {
    try {
      return readSync(deviceFd, request, 0, request.length, null)
    } catch (error) {
      if (isNodeError(error, 'ENODEV', 'ECONNABORTED')) return 0
      // ENOENT: the request was interrupted before we had it, and the kernel has dropped it.
      if (!isNodeError(error, 'EINTR', 'EAGAIN', 'ENOENT')) throw error
    }
  }
}

export function writeReply (deviceFd: number, bytes: Uint8Array, length: number): void {
  try {
    writeSync(deviceFd, bytes, 0, length)
  } catch (error) {
    // ENOENT: whoever asked was killed. ENODEV, EPERM: the connection has ended. Nobody is there to hear it.
    if (!isNodeError(error, 'ENOENT', 'ENODEV', 'ECONNABORTED', 'EPERM')) throw error
  }
}

/**
 * Tells the kernel something that it does at once, which may need workers and the main thread: so on a thread of neither.
 * ENOENT: it knows no such inode, and so has nothing to do.
 */
export async function notify (deviceFd: number, bytes: Uint8Array): Promise<void> {
  try {
    await writeAsync(deviceFd, bytes, 0, bytes.length, null)
  } catch (error) {
    if (!isNodeError(error, 'ENOENT', 'ENODEV', 'ECONNABORTED', 'EPERM')) throw error
  }
}
