/** The mount's half of CLONE and COMMIT on a real mount, by each driver: the cut, what becomes of the overlays, ioctls and attributes. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, expect, it } from 'vitest'
import type { Sealed } from '../../src/mirror/sealable.ts'
import { openSealedOverlay } from '../../src/mirror/sealed-overlay.ts'
import { unmountedSealable } from '../../src/mirror/unmounted-copy.ts'
import { listWorkingCopies } from '../../src/mirror/working-copy.ts'
import { nodeRandom } from '../../src/node/world.ts'
import { mountSuite } from '../harness/mount-suite.ts'
import { BLOB, IMAGE, type MountProcess, MountWorld, python, PythonProcess, run } from '../harness/mount-process.ts'
import { sha256, sha256OfMounted } from '../harness/mounted-file.ts'
import { prefixOfWrites } from '../harness/numbered-image.ts'

const KIB = 1024
const CHUNK = 64 * KIB
const SIZE = 2 * KIB * KIB
const CONTROL_PRIMITIVES = fileURLToPath(new URL('../harness/control-primitives.py', import.meta.url))
const NUMBERED_BLOCKS = fileURLToPath(new URL('../harness/numbered-blocks.py', import.meta.url))

const control = async (...args: string[]): Promise<Record<string, unknown>> =>
  JSON.parse(await run('python3', CONTROL_PRIMITIVES, ...args)) as Record<string, unknown>

const FILL = 'import os, sys; fd = os.open(sys.argv[1], os.O_RDWR); os.pwrite(fd, bytes([int(sys.argv[4])]) * int(sys.argv[3]), int(sys.argv[2]))'

mountSuite('commit on a mount', (driver) => {
  let world: MountWorld
  let image: Buffer
  let mount: MountProcess
  let path: string

  beforeEach(async () => {
    ({ world, image, mount, path } = await MountWorld.withWorkingCopy(SIZE, CHUNK, driver.name))
  })

  afterEach(() => { world.end() })

  const fill = async (offset: number, size: number, byte: number): Promise<void> => {
    await python(FILL, path, String(offset), String(size), String(byte))
    image.fill(byte, offset, offset + size)
  }

  /** By extended attribute: starts it, and waits for what became of it. */
  const byAttribute = async (verb: 'commit' | 'clone', where: string, name = ''): Promise<unknown> => {
    expect(await control('set-attribute', where, `user.p2pvm.${verb}`, name)).toEqual({})
    const outcome = async (): Promise<{ state: string }> => JSON.parse((await control('get-attribute', where, `user.p2pvm.${verb}`))['value'] as string) as { state: string }
    await expect.poll(async () => (await outcome()).state, { timeout: 20_000 }).not.toBe('running')
    return await outcome()
  }

  const overlays = (): string[] => readdirSync(join(world.folders.working, 'vm1')).filter((name) => name.startsWith('overlay-'))

  it('has everything written before it, also what the kernel had not written back; the path and the inode stay', async () => {
    const inode = (await run('stat', '-c', '%i', path)).trim()
    const before = Buffer.from(image)
    await fill(100, 70_000, 1)
    await fill(SIZE - 3, 3, 2)
    expect(await mount.call('commit', 'vm1')).toMatchObject({ blob: BLOB, version: 2 })
    expect(await sha256OfMounted(world.path('by-name', IMAGE, '2'))).toBe(sha256(image))
    expect(await sha256OfMounted(world.path('by-name', IMAGE, '1'))).toBe(sha256(before))
    expect(await sha256OfMounted(path)).toBe(sha256(image))
    expect((await run('stat', '-c', '%i', path)).trim()).toBe(inode)
    expect(overlays()).toHaveLength(1)
    expect(await mount.call('listWorkingCopies')).toMatchObject([{ version: 2, dirtyBytes: 0 }])
    await fill(4096, 4096, 3)
    expect(await mount.call('commit', 'vm1')).toMatchObject({ version: 3 })
    expect(await sha256OfMounted(world.path('by-name', IMAGE, '3'))).toBe(sha256(image))
    expect(await mount.call('lastFreezeMs')).toBeLessThan(1000)
  })

  // Buffered writes are the harder case: the kernel writes them back when and in the order it likes, until the seal's fsync.
  it.each(['O_DIRECT', 'buffered'])('holds exactly a prefix of numbered %s writes, with all that were acknowledged before it', async (kind) => {
    const base = join(world.root, 'base')
    writeFileSync(base, image)
    const program = readFileSync(NUMBERED_BLOCKS, 'utf8')
    const writer = new PythonProcess(kind === 'buffered' ? program.replace(' | os.O_DIRECT', '') : program, path, '256')
    let acknowledged = -1
    let ended = false
    const reading = (async () => {
      for (let line = await writer.line(); line !== undefined && line !== 'end'; line = await writer.line()) acknowledged = Number(line)
      ended = true
    })()
    for (let version = 2; version < 7; version++) {
      const passed = acknowledged + 300
      await expect.poll(() => acknowledged, { timeout: 30_000 }).toBeGreaterThan(passed)
      const before = acknowledged + 1
      await mount.call('commit', 'vm1')
      expect(ended).toBe(false)
      expect(await prefixOfWrites(await mount.call('fileOf', BLOB, version) as string, base, 256)).toBeGreaterThanOrEqual(before)
    }
    await writer.end()
    await reading
  })

  it('loses nothing when it fails, folds the sealed pages back and can be tried again', async () => {
    await fill(0, 20_000, 1)
    await mount.call('set', { failCommits: true })
    await expect(mount.call('commit', 'vm1')).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
    expect(overlays()).toHaveLength(1)
    expect(await sha256OfMounted(path)).toBe(sha256(image))
    await fill(10_000, 20_000, 2)
    await mount.call('set', { failCommits: false })
    await mount.call('commit', 'vm1')
    expect(await sha256OfMounted(world.path('by-name', IMAGE, '2'))).toBe(sha256(image))
  })

  it.each(driver.ioctl ? ['ioctl', 'extended attribute'] : ['extended attribute'])('clones by %s: same bytes, another blob', async (way) => {
    await fill(0, 4096, 1)
    expect(await (way === 'ioctl' ? control('ioctl', 'clone', path, 'fork') : byAttribute('clone', path, 'fork'))).toMatchObject({ blob: 'forkaaaaaaaaaaaa', version: 0 })
    expect(await sha256OfMounted(path)).toBe(sha256(image))
    expect(await control('get-attribute', path, 'user.p2pvm.base')).toEqual({ value: 'forkaaaaaaaaaaaa@0' })
  })

  if (!driver.ioctl) {
    it('has no ioctl: ENOTTY, as of any file that knows none', async () => {
      for (const verb of ['commit', 'clone']) expect(await control('ioctl', verb, path, '')).toEqual({ errno: 'ENOTTY' })
    })
  } else {
    it('commits by ioctl, which waits', async () => {
      await fill(0, 4096, 1)
      expect(await control('ioctl', 'commit', path, '', 'a message')).toEqual({ blob: BLOB, version: 2, status: 0 })
      await mount.call('set', { failCommits: true })
      expect(await control('ioctl', 'commit', path)).toEqual({ errno: 'EIO' })
      expect(await control('ioctl', 'commit', world.path('by-name', IMAGE, '2'))).toEqual({ errno: 'EROFS' })
      expect(await sha256OfMounted(path)).toBe(sha256(image))
    })
  }

  it('commits by extended attribute, which only starts it', async () => {
    await fill(0, 4096, 1)
    expect(await control('get-attribute', path, 'user.p2pvm.commit')).toEqual({ errno: 'ENODATA' })
    expect(await byAttribute('commit', path)).toEqual({ state: 'done', blob: BLOB, version: 2 })
    expect(await control('get-attribute', path, 'user.p2pvm.base')).toEqual({ value: `${BLOB}@2` })
    await mount.call('set', { failCommits: true })
    expect(await byAttribute('commit', path)).toMatchObject({ state: 'failed', code: 'ERR_UNAVAILABLE' })
    expect(await control('set-attribute', path, 'user.other', 'x')).toEqual({ errno: 'ENOTSUP' })
  })

  it('commits an alias that nobody has written to', async () => {
    const alias = world.path(BLOB, '1')
    expect(await (driver.ioctl ? control('ioctl', 'commit', alias) : byAttribute('commit', alias))).toMatchObject({ blob: BLOB, version: 2 })
    expect(await sha256OfMounted(alias)).toBe(sha256(image))
  })

  // What follows lies behind the drivers: once is enough.
  if (driver.name !== 'direct') return

  it('keeps newer sectors over older ones when it folds, down to 512 bytes, while others write', async () => {
    await fill(0, 512 * KIB, 1)
    await mount.call('seal', 'vm1')
    expect(overlays()).toHaveLength(2)
    const sector = `
import os, sys, mmap
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_DIRECT)
page = mmap.mmap(-1, 4096); page[:] = bytes([2]) * 4096
for number in range(int(sys.argv[2])): os.pwritev(fd, [memoryview(page)[:512]], number * 2048)`
    await python(sector, path, '64')
    for (let number = 0; number < 64; number++) image.fill(2, number * 2048, number * 2048 + 512)
    expect(await sha256OfMounted(path)).toBe(sha256(image))
    const writing = python(sector, path, '256')
    await mount.call('unseal', 'vm1')
    await writing
    for (let number = 0; number < 256; number++) image.fill(2, number * 2048, number * 2048 + 512)
    expect(overlays()).toHaveLength(1)
    expect(await sha256OfMounted(path)).toBe(sha256(image))
  })

  it('goes on with both overlays after a kill -9 between seal and end, and the next commit has all of it', async () => {
    await fill(0, 20_000, 1)
    const sealed = await mount.call('seal', 'vm1') as Sealed
    await fill(10_000, 20_000, 2)
    await run('sync', path)
    await mount.kill('SIGKILL')
    mount = await world.start()
    expect(overlays()).toHaveLength(2)
    expect(await sha256OfMounted(path)).toBe(sha256(image))
    const overlay = await openSealedOverlay(sealed.overlay, { chunkSize: CHUNK, size: SIZE })
    expect([...overlay.dirtyChunks()]).toEqual([0])
    await overlay.close()
    await mount.call('commit', 'vm1')
    expect(overlays()).toHaveLength(1)
    expect(await sha256OfMounted(world.path('by-name', IMAGE, '2'))).toBe(sha256(image))
    expect(await sha256OfMounted(path)).toBe(sha256(image))
  })

  it('drives one that no mount has open on its files, with the same result', async () => {
    await fill(5000, 20_000, 1)
    await mount.call('unmount', false)
    await mount.exited
    const signal = AbortSignal.timeout(10_000)
    const sealable = unmountedSealable(world.folders.working, 'vm1', nodeRandom)
    const sealed = await sealable.seal(signal)
    const overlay = await openSealedOverlay(sealed.overlay, { chunkSize: CHUNK, size: SIZE })
    const bytes = Buffer.from(image.subarray(0, CHUNK)).fill(0, 8192, 16384)
    expect(overlay.coversChunk(0)).toBe(false)
    await overlay.readOver(0, bytes)
    expect(sha256(bytes)).toBe(sha256(image.subarray(0, CHUNK)))
    await overlay.close()
    await sealable.unseal(signal)
    expect(await listWorkingCopies(world.folders.working)).toMatchObject([{ name: 'vm1', version: 1, dirtyBytes: Math.ceil(25_000 / 4096) * 4096 - 4096 }])
    await sealable.seal(signal)
    await expect(world.start().then(async () => { await run('cat', path) })).rejects.toThrow('busy') // locked until the commit has ended
    await sealable.unseal(signal)
    expect(await sha256OfMounted(path)).toBe(sha256(image))
  })
})
