/**
 * Processes of this machine as files name them (pid and start time), and a lock in a folder that only a living process can
 * hold: a file `lock.<pid>.<start time>.<token>`. A FUSE server locks in the name of its keeper, which outlives it: the next
 * server of that keeper takes the lock over, and nobody else can, until the keeper and the server have ended. Whoever wants it creates its own file and then looks for others'; one of a
 * dead process is removed, one of a living process means no. Names are never shared, so removing a stale one can hit nobody
 * else; two that try at once both see each other, and both may lose.
 */
import { open, readdir, readFile, unlink } from 'node:fs/promises'
import { join } from 'node:path'
import { P2pvmError } from '../protocols/errors.ts'
import { isNodeError } from './files.ts'

const LOCK_FILE = /^lock\.(\d+)\.(\d+)\.([0-9a-f]+)$/

export interface ProcessLock {
  release (): Promise<void>
}

/** A process by what it cannot share with a later one. */
export interface ProcessId {
  readonly pid: number
  readonly startTime: string
}

/** In whose name a process holds locks: theirs, as long as either lives. */
export interface LockOwner extends ProcessId {
  readonly server: ProcessId
}

/** A server's token: its pid and start time in 8 and 12 hexadecimal digits, and 16 random ones, which are all of anybody else's. */
const SERVER_TOKEN = /^([0-9a-f]{8})([0-9a-f]{12})[0-9a-f]{16}$/

function serverOf (token: string): ProcessId | undefined {
  const [, pid, startTime] = SERVER_TOKEN.exec(token) ?? []
  return pid === undefined ? undefined : { pid: parseInt(pid, 16), startTime: String(parseInt(startTime ?? '', 16)) }
}

function tokenPrefix ({ pid, startTime }: ProcessId): string {
  return pid.toString(16).padStart(8, '0') + Number(startTime).toString(16).padStart(12, '0')
}

/**
 * ERR_CONFLICT, with the holder's pid, while somebody else has it. `token`: some random hexadecimal digits. Unless told the
 * owner is this process.
 */
export async function acquireLock (folder: string, token: string, owner?: LockOwner): Promise<ProcessLock> {
  if (owner !== undefined) await releaseInherited(folder, owner)
  const { pid, startTime } = owner ?? { pid: process.pid, startTime: await startTimeOf(process.pid) ?? '0' }
  const own = `lock.${pid}.${startTime}.${owner === undefined ? '' : tokenPrefix(owner.server)}${token}`
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

/** Removes a lock that one before this one held in the same name, and died with. */
export async function releaseInherited (folder: string, owner: LockOwner): Promise<void> {
  for (const name of await readdir(folder)) {
    const [, pid, startTime, token] = LOCK_FILE.exec(name) ?? []
    if (Number(pid) !== owner.pid || startTime !== owner.startTime || token?.startsWith(tokenPrefix(owner.server)) === true) continue
    await unlink(join(folder, name)).catch((error: unknown) => { if (!isNodeError(error, 'ENOENT')) throw error })
  }
}

/** The pid of a living holder. */
export async function lockHolder (folder: string): Promise<number | undefined> {
  return await otherHolder(folder, '')
}

async function otherHolder (folder: string, own: string): Promise<number | undefined> {
  for (const name of await readdir(folder)) {
    const [, pid, startTime = '', token = ''] = LOCK_FILE.exec(name) ?? []
    if (pid === undefined || name === own) continue
    const server = serverOf(token)
    if (await processIsAlive(Number(pid), startTime) || (server !== undefined && await processIsAlive(server.pid, server.startTime))) return Number(pid)
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
