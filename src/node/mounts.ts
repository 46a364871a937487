/**
 * The daemon's view of its mounts. A mount is a process of its own that outlives the daemon: it announces itself with
 * `<data>/mounts/<id>.json` and listens on the socket named there, so a restarted daemon finds it again without a handshake.
 */
import { readFile, readdir, realpath, unlink } from 'node:fs/promises'
import { join, relative, sep } from 'node:path'
import type { DriverName } from '../mirror/driver.ts'
import type { VersionRef } from '../mirror/source.ts'
import type { Sealable, Sealed } from '../mirror/sealable.ts'
import { P2pvmError } from '../protocols/errors.ts'
import { requestJson } from './http-json.ts'
import { processIsAlive } from '../mirror/processes.ts'

export interface MountEntry {
  readonly id: string
  readonly pid: number
  readonly startTime: string // of the process, from /proc: tells it from a later one with the same pid
  readonly mountpoint: string
  readonly driver: DriverName
  readonly socket: string
}

/** Long enough for a disk that is slow to sync a gigabyte; a mount that answers nothing for so long is hung. */
const MOUNT_DEADLINE_MS = 120_000

/** Mounts whose process is alive. Entries of dead ones are removed. */
export async function listMounts (folder: string): Promise<MountEntry[]> {
  const entries: MountEntry[] = []
  for (const file of await readdir(folder).catch(() => [])) {
    if (!file.endsWith('.json')) continue
    const path = join(folder, file)
    const entry = await readEntry(path)
    if (entry !== undefined && await processIsAlive(entry.pid, entry.startTime)) entries.push(entry)
    else await Promise.all([path, path.replace(/json$/, 'sock')].map(async (stale) => { await unlink(stale).catch(() => {}) }))
  }
  return entries.sort((a, b) => a.mountpoint.localeCompare(b.mountpoint))
}

async function readEntry (path: string): Promise<MountEntry | undefined> {
  try {
    return JSON.parse(await readFile(path, 'utf8')) as MountEntry
  } catch {
    return undefined // gone, or half of it: its process died while it wrote
  }
}

/** The mount that a path lies in, and the path below its mountpoint. ERR_NOT_FOUND when it is in none of this daemon's. */
export async function locate (folder: string, path: string): Promise<{ mount: MountEntry, inside: string[] }> {
  const absolute = await realpath(path).catch(() => path)
  for (const mount of await listMounts(folder)) {
    const inside = relative(mount.mountpoint, absolute)
    if (inside !== '' && !inside.startsWith('..') && !inside.startsWith(sep)) return { mount, inside: inside.split(sep) }
  }
  throw new P2pvmError('ERR_NOT_FOUND', `${path} is not a file under a mount of this daemon`, { path })
}

/** Which working copy a file of a mount is; it comes into being when it is an alias that nobody has written to yet. */
export async function workingCopyAt (mount: MountEntry, inside: readonly string[]): Promise<string> {
  const { name } = await requestJson<{ name: string }>(mount.socket, 'POST', '/v1/working-copy-at', { body: { path: inside }, deadlineMs: MOUNT_DEADLINE_MS })
  return name
}

/** A working copy that a mount has open, driven over that mount's socket. */
export function mountedSealable (mount: MountEntry, name: string): Sealable {
  const call = async <T> (verb: string, body: unknown, signal: AbortSignal): Promise<T> =>
    await requestJson<T>(mount.socket, 'POST', `/v1/working-copies/${encodeURIComponent(name)}/${verb}`, { body, signal, deadlineMs: MOUNT_DEADLINE_MS })
  return {
    async seal (signal) { return await call<Sealed>('seal', {}, signal) },
    async rebase (version: VersionRef, signal) { await call('rebase', refOf(version), signal) },
    async unseal (signal) { await call('unseal', {}, signal) },
    async reassign (version: VersionRef, signal) { await call('reassign', refOf(version), signal) },
    async revert (signal) { await call('revert', {}, signal) }
  }
}

/** Working copies that one mount has open, sealed at one moment. In their order; when it fails none is. */
export async function sealTogether (mount: MountEntry, names: readonly string[], signal: AbortSignal): Promise<Sealed[]> {
  const { sealed } = await requestJson<{ sealed: Sealed[] }>(mount.socket, 'POST', '/v1/seal', { body: { names }, signal, deadlineMs: MOUNT_DEADLINE_MS })
  return sealed
}

/** A publication record carries more than the mount needs. */
function refOf ({ blob, version, size, chunkSize }: VersionRef): VersionRef {
  return { blob, version, size, chunkSize }
}
