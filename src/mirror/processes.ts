/**
 * Processes of this machine as files name them (pid and start time), and a lock in a folder that only a living process can
 * hold: a file `lock.<pid>.<start time>.<token>`. Whoever wants it creates its own file and then looks for others'; one of a
 * dead process is removed, one of a living process means no. Names are never shared, so removing a stale one can hit nobody
 * else; two that try at once both see each other, and both may lose.
 */
import { open, readdir, readFile, unlink } from 'node:fs/promises'
import { join } from 'node:path'
import { P2pvmError } from '../protocols/errors.ts'
import { isNodeError } from './files.ts'

const LOCK_FILE = /^lock\.(\d+)\.(\d+)\.[0-9a-f]+$/

export interface ProcessLock {
  release (): Promise<void>
}

/** ERR_CONFLICT, with the holder's pid, while somebody else has it. `token`: some random hexadecimal digits. */
export async function acquireLock (folder: string, token: string): Promise<ProcessLock> {
  const own = `lock.${process.pid}.${await startTimeOf(process.pid) ?? 0}.${token}`
  await (await open(join(folder, own), 'wx')).close()
  const release = async (): Promise<void> => {
    await unlink(join(folder, own)).catch((error: unknown) => { if (!isNodeError(error, 'ENOENT')) throw error })
  }
  try {
    const holder = await otherHolder(folder, own)
    if (holder === undefined) return { release }
    throw new P2pvmError('ERR_CONFLICT', `process ${holder} has it open`, { pid: holder })
  } catch (error) {
    await release()
    throw error
  }
}

/** The pid of a living holder. */
export async function lockHolder (folder: string): Promise<number | undefined> {
  return await otherHolder(folder, '')
}

async function otherHolder (folder: string, own: string): Promise<number | undefined> {
  for (const name of await readdir(folder)) {
    const [, pid, startTime] = LOCK_FILE.exec(name) ?? []
    if (pid === undefined || name === own) continue
    if (await startTimeOf(Number(pid)) === startTime) return Number(pid)
    await unlink(join(folder, name)).catch(() => {}) // another one was faster
  }
  return undefined
}

/** When the process started, in clock ticks since the boot: tells it from a later one of the same pid. undefined: no such process. */
export async function startTimeOf (pid: number): Promise<string | undefined> {
  try {
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8')
    // proc(5): the second field is the name in parentheses, which may hold blanks and parentheses itself; the third is the state.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    return fields[0] === 'Z' ? undefined : fields[STARTTIME_AFTER_NAME] // a zombie does nothing any more
  } catch (error) {
    if (isNodeError(error, 'ENOENT', 'ESRCH')) return undefined
    throw error
  }
}

/** Whether a process that wrote down its pid is still that process: pids are used again, pid and start time together are not. */
export async function processIsAlive (pid: number, startTime: string): Promise<boolean> {
  return await startTimeOf(pid) === startTime
}

/** Field 22 of /proc/PID/stat; the state is field 3. */
const STARTTIME_AFTER_NAME = 22 - 3
