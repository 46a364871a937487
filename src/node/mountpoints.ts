/** Mounts as the kernel has them, for those who end them from outside: `p2pvm umount`, the testnet. */
import { execFile } from 'node:child_process'
import { readFile, realpath } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { unmountCommand } from '../mirror/fuse/device.ts'
import { P2pvmError } from '../protocols/errors.ts'

/** What the FUSE server gives as its type: `fuse.p2pvm`. */
const OUR_TYPE = 'fuse.p2pvm'
const UMOUNT_DEADLINE_MS = 30_000

/** The folder's own name is not looked at: behind a dead mount even that fails. */
export async function canonicalMountpoint (folder: string): Promise<string> {
  const path = resolve(folder)
  return join(await realpath(dirname(path)).catch(() => dirname(path)), basename(path))
}

/** True when the topmost mount there is one of ours, whether its server lives or not. */
export async function isOurMount (mountpoint: string): Promise<boolean> {
  return typesAt(await readFile('/proc/self/mountinfo', 'utf8'), mountpoint).at(-1) === OUR_TYPE
}

/** proc(5): `36 35 98:0 /root /mountpoint options optional… - type source super-options`, blanks in names as \040. */
export function typesAt (mountinfo: string, mountpoint: string): string[] {
  return mountinfo.split('\n').flatMap((line) => {
    const [before = '', after = ''] = line.split(' - ')
    const place = before.split(' ')[4]?.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(parseInt(octal, 8)))
    return place === mountpoint ? [after.split(' ')[0] ?? ''] : []
  })
}

/** ERR_CONFLICT when a file is open there, unless lazily: then it is gone for all who do not have it open. */
export async function unmount (mountpoint: string, { lazy }: { readonly lazy: boolean }): Promise<void> {
  try {
    const [command, args] = unmountCommand(mountpoint, { lazy })
    await promisify(execFile)(command, args, { timeout: UMOUNT_DEADLINE_MS })
  } catch (error) {
    const said = ((error as { stderr?: string }).stderr ?? (error as Error).message).trim()
    throw new P2pvmError(/busy/.test(said) ? 'ERR_CONFLICT' : 'ERR_NOT_ALLOWED', `cannot unmount ${mountpoint}: ${said}`, { mountpoint }, error)
  }
}
