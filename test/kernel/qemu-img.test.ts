/** What qemu-img and qemu-io do to a disk, done to a working copy through a mount. */
import { randomBytes } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { type MountProcess, MountWorld, run } from '../harness/mount-process.ts'
import { mountSuite } from '../harness/mount-suite.ts'

const KIB = 1024
const CHUNK = 64 * KIB
const SIZE = 2 * KIB * KIB

mountSuite('qemu-img and qemu-io', ({ name, fallocate }) => {
  let world: MountWorld
  let mount: MountProcess
  let image: Buffer
  let path: string

  beforeEach(async () => {
    ({ world, mount, image, path } = await MountWorld.withWorkingCopy(SIZE, CHUNK, name))
  })

  afterEach(() => { world.end() })

  const inWorld = (file: string): string => join(world.root, file)

  it('convert a disk, by every way of caching, and the copy is the same', async () => {
    for (const cache of ['none', 'writeback', 'unsafe']) {
      await run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', '-T', cache, path, inWorld('copy.qcow2'))
      await run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', inWorld('copy.qcow2'), inWorld('copy.raw'))
      expect(readFileSync(inWorld('copy.raw')).equals(image), cache).toBe(true)
    }
    expect(await run('qemu-img', 'compare', '-f', 'raw', '-F', 'qcow2', path, inWorld('copy.qcow2'))).toContain('identical')
  })

  it('convert another image into it, and the commit has it', async () => {
    const other = Buffer.concat([randomBytes(SIZE / 2), Buffer.alloc(SIZE / 4), randomBytes(SIZE / 4)])
    writeFileSync(inWorld('other.raw'), other)
    for (const cache of ['none', 'writeback']) {
      await run('qemu-img', 'convert', '-n', '-f', 'raw', '-O', 'raw', '-t', cache, inWorld('other.raw'), path)
      const { blob, version } = await mount.call('commit', 'vm1') as { blob: string, version: number }
      expect(readFileSync(await mount.call('fileOf', blob, version) as string).equals(other), cache).toBe(true)
      other.fill(7, 100, 5000)
      writeFileSync(inWorld('other.raw'), other)
    }
  })

  it('write, flush, zero and discard as a machine with cache=none does', async () => {
    const zeroed = fallocate ? ['-c', 'discard 256k 64k', '-c', 'read -P 0 256k 64k'] : []
    await run('qemu-io', '-f', 'raw', '-t', 'none', '-d', 'unmap',
      '-c', 'write -P 17 512 1024', '-c', 'write -z 128k 100k', '-c', 'write -P 18 1M 300k', '-c', 'flush',
      '-c', 'read -P 17 512 1024', '-c', 'read -P 0 128k 100k', ...zeroed, path)
    image.fill(17, 512, 1536).fill(0, 128 * KIB, 228 * KIB).fill(18, KIB * KIB, KIB * KIB + 300 * KIB)
    if (fallocate) image.fill(0, 256 * KIB, 320 * KIB)
    expect(readFileSync(path).equals(image)).toBe(true)
  })
}, ['qemu-img'])
