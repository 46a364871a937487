/** A working copy that grows, on a real mount: by truncate(2), by a write past its end, by fallocate(2), by `qemu-img resize`. */
import { afterEach, beforeEach, expect, it } from 'vitest'
import { describeWith } from '../harness/capabilities.ts'
import { mountSuite } from '../harness/mount-suite.ts'
import { BLOB, IMAGE, type MountProcess, MountWorld, python, run } from '../harness/mount-process.ts'
import { sha256, sha256OfMounted } from '../harness/mounted-file.ts'

const MIB = 1024 * 1024
const CHUNK = 64 * 1024
/** Neither whole pages nor whole sectors. */
const SIZE = MIB + 1234

const sizeOf = async (path: string): Promise<number> => Number(await run('stat', '-L', '-c', '%s', path))

mountSuite('growth', (driver) => {
  let world: MountWorld
  let image: Buffer
  let mount: MountProcess
  let path: string

  beforeEach(async () => {
    ({ world, image, mount, path } = await MountWorld.withWorkingCopy(SIZE, CHUNK, driver.name))
  })

  afterEach(() => { world.end() })

  /** The image as it is when it is this large. */
  const grown = (size: number): Buffer => {
    const larger = Buffer.alloc(size)
    image.copy(larger)
    return image = larger
  }

  const expectIs = async (where = path): Promise<void> => { expect([await sizeOf(where), await sha256OfMounted(where)]).toEqual([image.length, sha256(image)]) }

  it('by truncate, also of a file that is open, stays after kill -9, and a commit publishes it', async () => {
    const before = Buffer.from(image)
    await run('truncate', '-s', String(2 * MIB + 77), path)
    grown(2 * MIB + 77)
    await expectIs()
    await python('import os, sys; file = os.open(sys.argv[1], os.O_RDWR); os.ftruncate(file, int(sys.argv[2])); os.pwrite(file, b"end", int(sys.argv[2]) - 3)', path, String(3 * MIB))
    grown(3 * MIB).write('end', 3 * MIB - 3)
    await expectIs()
    await mount.kill('SIGKILL')
    mount = await world.start()
    await expectIs()
    expect(await mount.call('commit', 'vm1')).toMatchObject({ version: 2, size: 3 * MIB })
    const second = world.path('by-name', IMAGE, '2')
    await expectIs(second)
    await expectIs()
    image = before
    await expectIs(world.path('by-name', IMAGE, '1'))
  })

  it('by buffered and by O_DIRECT writes past the end, with zeros between', async () => {
    const write = `
import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(file, b'a' * 300000, ${2 * MIB + 5})
os.fsync(file)
direct = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
page = mmap.mmap(-1, 8192); page[:] = b'b' * 8192
assert os.pwritev(direct, [page], ${4 * MIB}) == 8192
end = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for number in range(100): assert os.write(end, b'c' * 1000) == 1000`
    await python(write, path)
    grown(4 * MIB + 8192 + 100_000).fill('a', 2 * MIB + 5, 2 * MIB + 300_005).fill('b', 4 * MIB, 4 * MIB + 8192).fill('c', 4 * MIB + 8192)
    await expectIs()
    await run('sync', path)
    await mount.kill('SIGKILL')
    mount = await world.start()
    await expectIs()
  })

  if (!driver.fallocate) {
    it('by fallocate is not supported', async () => {
      await expect(run('fallocate', '-l', String(2 * MIB), path)).rejects.toThrow('Operation not supported')
      await expectIs()
    })
  } else {
    it('by fallocate, but not when the size is to be kept', async () => {
      await run('fallocate', '-l', String(2 * MIB), path)
      grown(2 * MIB)
      await run('fallocate', '--keep-size', '-o', String(2 * MIB), '-l', String(MIB), path)
      await expectIs()
      await run('fallocate', '--zero-range', '-o', String(MIB), '-l', String(2 * MIB), path)
      image.fill(0, MIB)
      grown(3 * MIB)
      await expectIs()
    })
  }

  it('shows through every path, of an alias that nobody has written to, too', async () => {
    const alias = world.path(BLOB, '1')
    await run('truncate', '-s', String(2 * MIB), alias)
    grown(2 * MIB)
    await expectIs(alias)
    await expectIs(world.path('working', `${BLOB}.1`))
    await mount.call('unmount', false)
    mount = await world.start()
    await expectIs(world.path(BLOB, '1'))
  })

  it('goes on while a commit is under way, which has what there was at the cut', async () => {
    const write = 'import os, sys; file = os.open(sys.argv[1], os.O_RDWR); os.pwrite(file, b"x" * 100000, int(sys.argv[2])); print(os.fstat(file).st_size)'
    await python(write, path, String(2 * MIB))
    await mount.call('seal', 'vm1')
    const size = (await python('import os, sys; print(os.stat(sys.argv[1]).st_size)', path)).trim()
    expect(Number(size)).toBe(2 * MIB + 100_000)
    expect(Number(await python(write, path, String(3 * MIB)))).toBe(3 * MIB + 100_000)
    grown(3 * MIB + 100_000).fill('x', 2 * MIB, 2 * MIB + 100_000).fill('x', 3 * MIB)
    await expectIs()
    await mount.call('unseal', 'vm1')
    await expectIs()
    expect(await mount.call('commit', 'vm1')).toMatchObject({ size: 3 * MIB + 100_000 })
    await expectIs(world.path('by-name', IMAGE, '2'))
  })

  it('is the only way to another size, and no way for a version', async () => {
    const refused = `
import errno, os, sys
def errno_of(path, size):
  try: os.truncate(path, size)
  except OSError as error: return errno.errorcode[error.errno]
print(errno_of(sys.argv[1], ${SIZE - 1}), errno_of(sys.argv[1], 0), errno_of(sys.argv[1], 2**43), errno_of(sys.argv[2], ${2 * MIB}), errno_of(sys.argv[2], 0))`
    expect((await python(refused, path, world.path('by-name', IMAGE, '1'))).trim()).toBe('EPERM EPERM EFBIG EROFS EROFS')
    await expectIs()
    await expectIs(world.path('by-name', IMAGE, '1'))
  })

  describeWith(['qemu-img'], 'by QEMU', () => {
    it('resizes, writes at the new end, and refuses to shrink', async () => {
      await run('qemu-img', 'resize', '-f', 'raw', path, '3M')
      await run('qemu-io', '-f', 'raw', '-t', 'none', '-c', `write -P 65 ${3 * MIB - 4096} 4096`, path)
      grown(3 * MIB).fill('A', 3 * MIB - 4096)
      await expectIs()
      await expect(run('qemu-img', 'resize', '-f', 'raw', '--shrink', path, '1M')).rejects.toThrow('Operation not permitted')
      await expectIs()
    })
  })
})
