/**
 * One daemon per data directory. The lock is an abstract unix socket named after the folder's device and inode: binding it
 * is atomic, and the kernel lets it go with the process, however it ends, so there is no stale lock to judge. The lock
 * file beside it only tells who holds it.
 */
import { readFile, writeFile } from 'node:fs/promises'
import { statSync } from 'node:fs'
import { createServer, type Server } from 'node:net'
import { P2pvmError } from '../protocols/errors.ts'
import type { DataDir } from './data-dir.ts'

export interface LockHolder {
  readonly pid: number
  readonly peerId: string
  readonly control: string
}

export interface DataDirLock {
  release (): Promise<void>
}

/** ERR_CONFLICT, naming the daemon that has it. The folder must exist. */
export async function lockDataDir (dataDir: DataDir, holder: LockHolder): Promise<DataDirLock> {
  const { dev, ino } = statSync(dataDir.root)
  const server = createServer((socket) => { socket.destroy() })
  try {
    await listen(server, `\0p2pvm-data-${dev}-${ino}`)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw error
    throw new P2pvmError('ERR_CONFLICT', `the data directory ${dataDir.root} belongs to a running daemon (${await describeHolder(dataDir)})`, { dataDir: dataDir.root })
  }
  server.unref()
  await writeFile(dataDir.lock, JSON.stringify(holder))
  return {
    async release () {
      await new Promise((resolve) => server.close(resolve))
    }
  }
}

async function describeHolder (dataDir: DataDir): Promise<string> {
  try {
    const { pid, peerId, control } = JSON.parse(await readFile(dataDir.lock, 'utf8')) as LockHolder
    return `peer ${peerId}, pid ${pid}, control socket ${control}`
  } catch {
    return 'it is just starting' // it has the lock and has not yet written who it is
  }
}

async function listen (server: Server, path: string): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(path, resolve)
  })
}
