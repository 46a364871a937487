/**
 * The daemon's view of its mounts. A mount outlives the daemon: its keeper announces it with `<data>/mounts/<id>.json`, and its FUSE
 * server listens on the socket named there, so a restarted daemon finds it again without a handshake. A server that was killed
 * is followed by another one at the same socket: whoever asks in between waits.
 */
import { readFile, readdir, realpath, unlink } from 'node:fs/promises'
import { join, relative, sep } from 'node:path'
import type { DriverName } from '../mirror/driver.ts'
import type { VersionRef } from '../mirror/source.ts'
import type { Sealable, Sealed } from '../mirror/sealable.ts'
import { errorCodeOf, P2pvmError } from '../protocols/errors.ts'
import { requestJson } from './http-json.ts'
import { type ProcessId, processIsAlive } from '../mirror/processes.ts'
import { nodeClock } from './world.ts'

/** The process is the keeper's. */
export interface MountEntry extends ProcessId {
  readonly id: string
  readonly mountpoint: string
  readonly driver: DriverName
  /** Of the FUSE server. */
  readonly socket: string
  /** Of the keeper; a mount of the driver fuse-native has none. */
  readonly keeper: string | null
}

/** The files of a mount: `path` is the folder and the id. */
export function mountFiles (path: string): { readonly entry: string, readonly socket: string, readonly keeper: string, readonly journal: string } {
  return { entry: `${path}.json`, socket: `${path}.sock`, keeper: `${path}.keeper`, journal: `${path}.inodes` }
}

/** Long enough for a disk that is slow to sync a gigabyte; a mount that answers nothing for so long is hung. */
const MOUNT_DEADLINE_MS = 120_000
/** A FUSE server follows another within a second or so, on a busy machine within some. */
const RESTART_DEADLINE_MS = 30_000
const RESTART_PAUSE_MS = 100

/** Mounts whose process is alive. Entries of dead ones are removed. */
export async function listMounts (folder: string): Promise<MountEntry[]> {
  const entries: MountEntry[] = []
  for (const file of await readdir(folder).catch(() => [])) {
    if (!file.endsWith('.json')) continue
    const path = join(folder, file)
    const entry = await readEntry(path)
    if (entry !== undefined && await processIsAlive(entry)) entries.push(entry)
    else await Promise.all(Object.values(mountFiles(path.replace(/\.json$/, ''))).map(async (stale) => { await unlink(stale).catch(() => {}) }))
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
  const { name } = await outliving(mount, isLost, async () =>
    await requestJson<{ name: string }>(mount.socket, 'POST', '/v1/working-copy-at', { body: { path: inside }, deadlineMs: MOUNT_DEADLINE_MS }))
  return name
}

/**
 * A working copy that a mount has open, driven over that mount's socket. All but `revert` change nothing when they are asked for
 * twice, so they are asked for again when a server dies with the question.
 */
export function mountedSealable (mount: MountEntry, name: string): Sealable {
  const call = async <T> (verb: string, body: unknown, signal: AbortSignal, again = isLost): Promise<T> => await outliving(mount, again, async () =>
    await requestJson<T>(mount.socket, 'POST', `/v1/working-copies/${encodeURIComponent(name)}/${verb}`, { body, signal, deadlineMs: MOUNT_DEADLINE_MS }), signal)
  return {
    async seal (signal) { return await call<Sealed>('seal', {}, signal) },
    async rebase (version: VersionRef, signal) { await call('rebase', refOf(version), signal) },
    async unseal (signal) { await call('unseal', {}, signal) },
    async reassign (version: VersionRef, signal) { await call('reassign', refOf(version), signal) },
    async revert (signal) { await call('revert', {}, signal, isUnheard) }
  }
}

/** Working copies that one mount has open, sealed at one moment. In their order; when it fails none is. */
export async function sealTogether (mount: MountEntry, names: readonly string[], signal: AbortSignal): Promise<Sealed[]> {
  const { sealed } = await outliving(mount, isLost, async () =>
    await requestJson<{ sealed: Sealed[] }>(mount.socket, 'POST', '/v1/seal', { body: { names }, signal, deadlineMs: MOUNT_DEADLINE_MS }), signal)
  return sealed
}

/**
 * Asks a mount that has been unmounted to end if it goes on; a process of each other mount namespace that it goes from. ERR_CONFLICT as `Mount.leave`;
 * undefined when nobody answers: it is ending, or has another server soon.
 */
export async function leaveMount ({ socket }: MountEntry, signal: AbortSignal): Promise<number[] | undefined> {
  try {
    return (await requestJson<{ pids: number[] }>(socket, 'POST', '/v1/leave', { body: {}, signal, deadlineMs: MOUNT_DEADLINE_MS })).pids
  } catch (error) {
    // A server of an older program knows of no such thing.
    if (isLost(error, socket) || errorCodeOf(error) === 'ERR_NOT_FOUND') return undefined
    throw error
  }
}

/** Does `ask` again while the mount has no server, or loses it, and another one is to come. */
async function outliving<T> (mount: MountEntry, again: (error: unknown, socket: string) => boolean, ask: () => Promise<T>, signal?: AbortSignal): Promise<T> {
  let lostAt: number | undefined
  for (;;) {
    try {
      return await ask()
    } catch (error) {
      lostAt ??= nodeClock.monotonic()
      if (!again(error, mount.socket) || nodeClock.monotonic() - lostAt > RESTART_DEADLINE_MS || !await processIsAlive(mount)) throw error
      await nodeClock.sleep(RESTART_PAUSE_MS, signal)
    }
  }
}

/** Nobody was there, or whoever was has gone before he answered. */
function isLost (error: unknown, socket: string): boolean {
  return error instanceof P2pvmError && error.code === 'ERR_UNAVAILABLE' && error.fields['socket'] === socket
}

/** Nobody was there. */
function isUnheard (error: unknown, socket: string): boolean {
  return isLost(error, socket) && (error as P2pvmError).fields['errno'] !== undefined
}

/** A publication record carries more than the mount needs. */
function refOf ({ blob, version, size, chunkSize }: VersionRef): VersionRef {
  return { blob, version, size, chunkSize }
}
