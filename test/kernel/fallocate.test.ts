/** fallocate(2) on a real mount: zeros that stay zeros, space that is given back, and what is refused. */
import { readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { describeWith } from '../harness/capabilities.ts'
import { mountSuite } from '../harness/mount-suite.ts'
import { IMAGE, type MountProcess, MountWorld, python, run } from '../harness/mount-process.ts'
import { sha256, sha256OfMounted } from '../harness/mounted-file.ts'

const MIB = 1024 * 1024
const CHUNK = 64 * 1024
const PAGE = 4096
/** Neither whole pages nor whole sectors. */
const SIZE = 4 * MIB + 1234

const KEEP_SIZE = 0x01
const PUNCH_HOLE = 0x02 | KEEP_SIZE
const ZERO_RANGE = 0x10

/** Each call's result: 0, or the name of the error. */
const FALLOCATE = `
import ctypes, errno, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
file = os.open(sys.argv[1], os.O_RDWR)
def fallocate (mode, offset, length):
  result = libc.fallocate64(file, mode, ctypes.c_int64(offset), ctypes.c_int64(length))
  return errno.errorcode[ctypes.get_errno()] if result < 0 else 0
print(json.dumps([fallocate(*call) for call in json.loads(sys.argv[2])]))`

mountSuite('fallocate', (driver) => {
  let world: MountWorld
  let image: Buffer
  let mount: MountProcess
  let path: string

  beforeEach(async () => {
    ({ world, image, mount, path } = await MountWorld.withWorkingCopy(SIZE, CHUNK, driver.name))
  })

  afterEach(() => { world.end() })

  const fallocate = async (...calls: Array<[mode: number, offset: number, length: number]>): Promise<unknown> =>
    JSON.parse(await python(FALLOCATE, path, JSON.stringify(calls))) as unknown

  /** Disk space of the pages that the working copy has. */
  const pagesBytes = (): number => {
    const folder = join(world.folders.working, 'vm1')
    return readdirSync(folder).filter((name) => name.startsWith('overlay-')).reduce((sum, name) => sum + statSync(join(folder, name, 'pages')).blocks * 512, 0)
  }

  it('is not needed for copy_file_range, which the kernel does without us', async () => {
    const copy = `import os, sys; file = os.open(sys.argv[1], os.O_RDWR); print(os.copy_file_range(file, file, ${CHUNK}, 0, ${2 * MIB}))`
    expect(Number(await python(copy, path))).toBe(CHUNK)
    image.copy(image, 2 * MIB, 0, CHUNK)
    expect(await sha256OfMounted(path)).toBe(sha256(image))
  })

  if (!driver.fallocate) {
    it('is not supported in any mode, and changes nothing', async () => {
      expect(await fallocate([0, 0, SIZE + MIB], [KEEP_SIZE, 0, MIB], [PUNCH_HOLE, 0, MIB], [ZERO_RANGE, 0, MIB])).toEqual(Array(4).fill('ENOTSUP')) // Python's name of EOPNOTSUPP
      expect(await sha256OfMounted(path)).toBe(sha256(image))
    })

    it('is done without by posix_fallocate of the C library, which writes', async () => {
      await python(`import os, sys; os.posix_fallocate(os.open(sys.argv[1], os.O_RDWR), ${SIZE - 10}, ${PAGE})`, path)
      expect(await sha256OfMounted(path)).toBe(sha256(Buffer.concat([image, Buffer.alloc(PAGE - 10)])))
    })
    return
  }

  it('zeros any range, over what was written and over what was not, for good', async () => {
    await python('import os, sys; file = os.open(sys.argv[1], os.O_RDWR); os.pwrite(file, b"x" * 300000, 100000)', path)
    image.fill('x', 100_000, 400_000)
    const ranges = [[PUNCH_HOLE, 100_100, 20_000], [ZERO_RANGE, 399_000, 9000], [ZERO_RANGE | KEEP_SIZE, 2 * MIB + 5, 3], [PUNCH_HOLE, 3 * MIB - 512, MIB], [PUNCH_HOLE, SIZE - 700, 5000]] as const
    expect(await fallocate(...ranges.map(([mode, offset, length]): [number, number, number] => [mode, offset, length]))).toEqual([0, 0, 0, 0, 0])
    for (const [, offset, length] of ranges) image.fill(0, offset, Math.min(SIZE, offset + length))
    expect(await sha256OfMounted(path)).toBe(sha256(image))
    await run('sync', path)
    await mount.kill('SIGKILL')
    mount = await world.start()
    expect(await sha256OfMounted(path)).toBe(sha256(image))
    await mount.call('commit', 'vm1')
    expect(await sha256OfMounted(world.path('by-name', IMAGE, '2'))).toBe(sha256(image))
    expect(await sha256OfMounted(path)).toBe(sha256(image))
    const hole = 'import os, sys; file = os.open(sys.argv[1], os.O_RDONLY); print(os.lseek(file, int(sys.argv[2]), os.SEEK_HOLE), os.lseek(file, int(sys.argv[2]), os.SEEK_DATA))'
    expect((await python(hole, world.path('by-name', IMAGE, '2'), String(3 * MIB))).trim()).toBe(`${3 * MIB} ${4 * MIB - CHUNK}`)
  })

  it('fetches nothing for whole sectors, and does not wait for the daemon', async () => {
    await mount.call('set', { unavailable: true })
    expect(await fallocate([PUNCH_HOLE, 512, 3 * MIB], [ZERO_RANGE, 3 * MIB + 512, PAGE])).toEqual([0, 0])
    const zeros = `import os, sys; print(os.pread(os.open(sys.argv[1], os.O_RDONLY), ${2 * MIB}, ${PAGE}) == bytes(${2 * MIB}))`
    expect((await python(zeros, path)).trim()).toBe('True')
    await mount.call('set', { unavailable: false })
    image.fill(0, 512, 3 * MIB + 512).fill(0, 3 * MIB + 512, 3 * MIB + 512 + PAGE)
    expect(await sha256OfMounted(path)).toBe(sha256(image))
  })

  it('gives the space back that the pages had', async () => {
    await python(`import os, sys; file = os.open(sys.argv[1], os.O_RDWR); os.pwrite(file, b"x" * ${3 * MIB}, 0); os.fsync(file)`, path)
    expect(pagesBytes()).toBeGreaterThanOrEqual(3 * MIB)
    expect(await fallocate([PUNCH_HOLE, 100, 3 * MIB - 200])).toEqual([0])
    expect(pagesBytes()).toBeLessThan(MIB)
    expect(await sha256OfMounted(path)).toBe(sha256(image.fill('x', 0, 3 * MIB).fill(0, 100, 3 * MIB - 100)))
  })

  it('gives the space of small discards back at once, and keeps what is written between them', async () => {
    await python(`import os, sys; file = os.open(sys.argv[1], os.O_RDWR); os.pwrite(file, b"x" * ${3 * MIB}, 0); os.fsync(file)`, path)
    image.fill('x', 0, 3 * MIB)
    const discarding = `
import ctypes, os, sys
libc = ctypes.CDLL(None)
file = os.open(sys.argv[1], os.O_RDWR)
for at in range(0, ${3 * MIB}, ${8 * PAGE}):
  libc.fallocate64(file, ${PUNCH_HOLE}, ctypes.c_int64(at), ctypes.c_int64(${6 * PAGE}))
  os.pwrite(file, b"y" * ${PAGE}, at + ${PAGE})
  libc.fallocate64(file, ${PUNCH_HOLE}, ctypes.c_int64(at + ${6 * PAGE}), ctypes.c_int64(${PAGE}))
os.fsync(file)`
    await python(discarding, path)
    // One page of eight that was never discarded, one that was written again; a file of so many pieces needs some space for their places.
    expect(pagesBytes()).toBeLessThan(3 * MIB / 4 + 8 * PAGE)
    for (let at = 0; at < 3 * MIB; at += 8 * PAGE) image.fill(0, at, at + 7 * PAGE).fill('y', at + PAGE, at + 2 * PAGE)
    await mount.kill('SIGKILL') // the kernel would answer from its own pages
    mount = await world.start()
    expect(await sha256OfMounted(path)).toBe(sha256(image))
  })

  it('allocates without doing so, and refuses what it cannot', async () => {
    expect(await fallocate([0, 0, SIZE], [KEEP_SIZE, MIB, 10 * MIB])).toEqual([0, 0])
    const collapse = 0x08
    const insert = 0x20
    expect(await fallocate([collapse, 0, PAGE], [insert, 0, PAGE], [0x02, 0, PAGE], [PUNCH_HOLE | ZERO_RANGE, 0, PAGE], [PUNCH_HOLE, 0, 0]))
      .toEqual(['ENOTSUP', 'ENOTSUP', 'ENOTSUP', 'ENOTSUP', 'EINVAL']) // Python's name of EOPNOTSUPP
    expect(await fallocate([PUNCH_HOLE, MIB, PAGE])).toEqual([0]) // the kernel has not taken any of these for a no to all
    expect(await sha256OfMounted(path)).toBe(sha256(image.fill(0, MIB, MIB + PAGE)))
  })

  describeWith(['qemu-img'], 'by QEMU', () => {
    it('takes what a machine discards and zeros, and zeros that it writes, as no data', async () => {
      await run('qemu-io', '-f', 'raw', '-t', 'none', '-d', 'unmap', '-c', `discard ${MIB} ${MIB}`, '-c', `write -z ${3 * MIB} ${CHUNK}`, '-c', `write -z -u 0 ${CHUNK}`, path)
      const detects = `driver=raw,discard=unmap,detect-zeroes=unmap,cache.direct=on,file.driver=file,file.discard=unmap,file.filename=${path}`
      await run('qemu-io', '--image-opts', '-c', `write -P 0 ${2 * MIB} ${CHUNK}`, detects) // zeros that a machine writes
      image.fill(0, MIB, 2 * MIB + CHUNK).fill(0, 3 * MIB, 3 * MIB + CHUNK).fill(0, 0, CHUNK)
      expect(await sha256OfMounted(path)).toBe(sha256(image))
      const counters = await mount.call('counters') as Record<string, number>
      expect(counters['FUSE_FALLOCATE']).toBeGreaterThanOrEqual(4)
      expect(counters['FUSE_WRITE'] ?? 0).toBe(0)
    })
  })
})
