/**
 * Processes of this machine as files name them (pid, start time, boot), and a lock in a folder that only a living process can
 * hold: a file `lock.<pid>.<start time>.<token><boot>`. A FUSE server locks in the name of its keeper, which outlives it: the next
 * server of that keeper takes the lock over, and nobody else can, until the keeper and the server have ended. Whoever wants it creates its own file and then looks for others'; one of a
 * dead process is removed, one of a living process means no. Names are never shared, so removing a stale one can hit nobody
 * else; two that try at once both see each other, and both may lose.
 */
import assert from 'node:assert/strict'
import { open, readdir, readFile, unlink } from 'node:fs/promises'
import { join } from 'node:path'
import { P2pvmError } from '../protocols/errors.ts'
import { bootId } from './boot.ts'
import { isNodeError } from './files.ts'

export interface ProcessLock {
  release (): Promise<void>
}

/** A process by what it cannot share with another one, then or later. */
export interface ProcessId {
  readonly pid: number
  /** Clock ticks since the boot, decimal. */
  readonly startTime: string
  /** The 32 digits of `bootId`. Absent in what older programs wrote: any boot. */
  readonly boot?: string | undefined
}

/** In whose name a process holds locks: theirs, as long as either lives. */
export interface LockOwner extends ProcessId {
  readonly server: ProcessId
}

/**
 * Of an owner: pid, start time, the server's pid and start time in 8 and 12 hexadecimal digits, a token that makes the name one
 * of its own, and the boot of both, which older programs left out (and read over).
 */
const LOCK_FILE = /^lock\.(\d+)\.(\d+)\.(?:([0-9a-f]{8})([0-9a-f]{12}))?[0-9a-f]{16}([0-9a-f]{32})?$/

interface LockName {
  readonly owner: ProcessId
  readonly server: ProcessId | undefined
}

function parseLockName (name: string): LockName | undefined {
  const [, pid, startTime = '', serverPid, serverStart = '', boot] = LOCK_FILE.exec(name) ?? []
  if (pid === undefined) return undefined
  const server = serverPid === undefined ? undefined : { pid: parseInt(serverPid, 16), startTime: String(parseInt(serverStart, 16)), boot }
  return { owner: { pid: Number(pid), startTime, boot }, server }
}

function lockName ({ pid, startTime }: ProcessId, server: ProcessId | undefined, token: string): string {
  const by = server === undefined ? '' : server.pid.toString(16).padStart(8, '0') + Number(server.startTime).toString(16).padStart(12, '0')
  return `lock.${pid}.${startTime}.${by}${token}${bootDigits()}`
}

/**
 * ERR_CONFLICT, with the holder's pid, while somebody else has it. `token`: 16 random hexadecimal digits. Unless told the
 * owner is this process.
 */
export async function acquireLock (folder: string, token: string, owner?: LockOwner): Promise<ProcessLock> {
  if (owner !== undefined) await releaseInherited(folder, owner)
  const own = lockName(owner ?? await ownProcessId(), owner?.server, token)
  assert(parseLockName(own) !== undefined, `${own} would be no lock`)
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
    const lock = parseLockName(name)
    if (lock === undefined || !isSame(lock.owner, owner) || (lock.server !== undefined && isSame(lock.server, owner.server))) continue
    await unlink(join(folder, name)).catch((error: unknown) => { if (!isNodeError(error, 'ENOENT')) throw error })
  }
}

/** But for the boot: only the owner itself asks. */
function isSame (one: ProcessId, other: ProcessId): boolean {
  return one.pid === other.pid && one.startTime === other.startTime
}

/** The pid of a living holder. */
export async function lockHolder (folder: string): Promise<number | undefined> {
  return await otherHolder(folder, '')
}

async function otherHolder (folder: string, own: string): Promise<number | undefined> {
  for (const name of await readdir(folder)) {
    const lock = parseLockName(name)
    if (lock === undefined || name === own) continue
    if (await processIsAlive(lock.owner) || (lock.server !== undefined && await processIsAlive(lock.server))) return lock.owner.pid
    await unlink(join(folder, name)).catch(() => {}) // another one was faster
  }
  return undefined
}

/** undefined: no such process. */
export async function processId (pid: number): Promise<ProcessId | undefined> {
  const startTime = await startTimeOf(pid)
  return startTime === undefined ? undefined : { pid, startTime, boot: bootDigits() }
}

export async function ownProcessId (): Promise<ProcessId> {
  return await processId(process.pid) ?? { pid: process.pid, startTime: '0', boot: bootDigits() }
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

/** Whether a process that wrote down what it is still is: pids are used again, pid and start time together only after another boot. */
export async function processIsAlive ({ pid, startTime, boot }: ProcessId): Promise<boolean> {
  return (boot === undefined || boot === bootDigits()) && await startTimeOf(pid) === startTime
}

function bootDigits (): string {
  return bootId().replaceAll('-', '')
}

/** Field 22 of /proc/PID/stat; the state is field 3. */
const STARTTIME_AFTER_NAME = 22 - 3
