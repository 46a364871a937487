/**
 * The disks that are compared: the same content behind the local file system, our mounts, and what else serves a writable disk over
 * content that stays as it is. One class of them is a `Maker`; what it makes is one file (or block device) to read and write.
 *
 * Owns nothing: all that is set up is on the stage, and undone with the disk.
 */
import { accessSync, constants, existsSync, readdirSync } from 'node:fs'
import { mkdir, open } from 'node:fs/promises'
import { join } from 'node:path'
import type { FabricPeer } from '../../testnet/fabric.ts'
import { p2pvm } from './fabric.ts'
import type { Stage, Undo } from './stage.ts'

/** A raw file that nobody writes to. The fabric has it as an image of that name. */
export interface Content {
  readonly name: string
  readonly path: string
}

export interface Disk {
  readonly path: string
  close (): Promise<void>
}

export interface Maker {
  readonly name: string
  /** Requests go through a FUSE server: what ours is compared with at every figure. */
  readonly fuse: boolean
  /** An fsync makes what was written durable, so that its writes compare with ours. */
  readonly durable: boolean
  /** What a reader must know to compare it. */
  readonly note?: string
  make (content: Content): Promise<Disk>
}

/** Somebody has it open as long as it is there, as a hypervisor has: a file's last close is when drivers drop what they know of it. */
async function made (stage: Stage, set: (undo: Undo) => Promise<string>): Promise<Disk> {
  const undo = stage.begin()
  try {
    const path = await set(undo)
    const file = await open(path)
    undo.add(async () => { await file.close() })
    return { path, close: async () => { await undo.run() } }
  } catch (error) {
    await undo.run()
    throw error
  }
}

export function localFile (stage: Stage): Maker {
  return {
    name: 'local file',
    fuse: false,
    durable: true,
    make: async ({ path }) => await made(stage, async (undo) => {
      const copy = join(stage.newFolder(), 'local.raw')
      await stage.copy(undo, path, copy)
      return copy
    })
  }
}

let copies = 0

/** A working copy under a mount of this peer, which has the content cached once it was read. */
export function workingCopy (stage: Stage, peer: FabricPeer, mountpoint: string, driver: string): Maker {
  return {
    name: `p2pvm, ${driver}`,
    fuse: true,
    durable: true,
    make: async ({ name }) => await made(stage, async (undo) => {
      const copy = `bench-${++copies}`
      await p2pvm(peer, 'working-copy', 'create', copy, name)
      // Only for its space: when we are interrupted no command runs any more, and its folder goes with the fabric's.
      undo.add(async () => { await peer.cli('working-copy', 'rm', copy).catch(() => {}) })
      return join(mountpoint, 'working', copy)
    })
  }
}

export function bindfs (stage: Stage): Maker {
  return {
    name: 'bindfs',
    fuse: true,
    durable: true,
    note: 'bindfs, as it comes, does not hand O_DIRECT on to the file below',
    make: async ({ path }) => await made(stage, async (undo) => {
      const [source, mountpoint] = [stage.newFolder(), stage.newFolder()]
      await stage.copy(undo, path, join(source, 'disk.raw'))
      const disk = join(mountpoint, 'disk.raw')
      await stage.serve(undo, disk, 'bindfs', '-f', source, mountpoint)
      stage.undoMount(undo, mountpoint)
      return disk
    })
  }
}

export function nbdkitCow (stage: Stage): Maker {
  return {
    name: 'nbdfuse, nbdkit cow',
    fuse: true,
    durable: false,
    note: "nbdkit's cow filter keeps what is written in a temporary file, and a flush makes nothing durable: its writes are not compared",
    make: async ({ path }) => await made(stage, async (undo) =>
      await overNbdfuse(stage, undo, ['--command', 'nbdkit', '-s', '--exit-with-parent', '--filter=cow', 'file', path]))
  }
}

/** Through the kernel's nbd client where there is one. */
export function qcow2 (stage: Stage): Maker {
  const device = freeNbdDevice()
  return {
    name: device === undefined ? 'nbdfuse, qemu-nbd qcow2' : 'nbd, qemu-nbd qcow2',
    fuse: device === undefined,
    durable: true,
    ...device === undefined ? { note: 'qcow2: this kernel has no nbd, so qemu-nbd is behind nbdfuse' } : {},
    make: async ({ path }) => await made(stage, async (undo) => {
      const folder = stage.newFolder()
      const overlay = join(folder, 'overlay.qcow2')
      await stage.run('qemu-img', 'create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', path, overlay)
      if (device !== undefined) {
        await stage.serve(undo, `${device.replace('/dev', '/sys/block')}/pid`, 'qemu-nbd', '--format=qcow2', `--connect=${device}`, overlay)
        return device
      }
      const socket = join(folder, 'nbd.sock')
      await stage.serve(undo, socket, 'qemu-nbd', '--format=qcow2', '--persistent', `--socket=${socket}`, overlay)
      return await overNbdfuse(stage, undo, ['--unix', socket])
    })
  }
}

async function overNbdfuse (stage: Stage, undo: Undo, server: readonly string[]): Promise<string> {
  const mountpoint = stage.newFolder()
  const disk = join(mountpoint, 'disk.raw')
  await stage.serve(undo, disk, 'nbdfuse', disk, ...server)
  stage.undoMount(undo, mountpoint)
  return disk
}

function freeNbdDevice (): string | undefined {
  return readdirSync('/dev').filter((name) => /^nbd\d+$/.test(name)).map((name) => `/dev/${name}`).find((device) => {
    try {
      accessSync(device, constants.R_OK | constants.W_OK)
      return !existsSync(`${device.replace('/dev', '/sys/block')}/pid`)
    } catch {
      return false
    }
  })
}

/** The disk's file system, mounted through a loop device, or as the block device that it is. */
export async function mountFileSystem (stage: Stage, { path }: Disk): Promise<{ readonly folder: string, close (): Promise<void> }> {
  const undo = stage.begin()
  const folder = stage.newFolder()
  await mkdir(folder, { recursive: true })
  await stage.run('mount', ...path.startsWith('/dev/') ? [] : ['-o', 'loop'], path, folder)
  stage.undoMount(undo, folder)
  return { folder, close: async () => { await undo.run() } }
}
