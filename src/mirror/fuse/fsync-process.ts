/**
 * fsync of a file in the mount by a process of its own, sync(1): the FUSE server must never wait for its own mount. It
 * inherits no descriptor.
 */
import { spawn } from 'node:child_process'
import { P2pvmError } from '../../protocols/errors.ts'
import type { FsyncProcess } from '../mounted-copy.ts'

export function startFsync (path: string, signal: AbortSignal): FsyncProcess {
  const child = spawn('sync', [path], { stdio: ['ignore', 'ignore', 'pipe'], signal, killSignal: 'SIGKILL' })
  let stderr = ''
  child.stderr.on('data', (text: Buffer) => { stderr += text.toString() })
  const done = new Promise<void>((resolve, reject) => {
    child.on('error', (error) => { reject(signal.aborted ? signal.reason as Error : error) })
    child.on('close', (code) => {
      if (code === 0) resolve()
      else reject(new P2pvmError('ERR_UNAVAILABLE', `cannot flush ${path}: ${stderr.trim()}`, { path }))
    })
  })
  done.catch(() => {})
  return { pid: child.pid ?? -1, done }
}
