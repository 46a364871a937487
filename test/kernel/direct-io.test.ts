/** O_DIRECT reads are in sectors, as on a disk's own file system: from that QEMU learns that it need not align to pages. */
import { createHash, randomBytes } from 'node:crypto'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { describeWith } from '../harness/capabilities.ts'
import { mountSuite } from '../harness/mount-suite.ts'
import { MountWorld, python, run } from '../harness/mount-process.ts'

/** Whole sectors, and not whole pages: what a hypervisor that aligns to pages refuses to open for writing. */
const IMAGE_BYTES = 1024 * 1024 + 3 * 512
const SECTOR = 512
const PATTERN = 0x5a

/** What each read returns: how many bytes, or the name of the error. */
const READ_DIRECT = `
import errno, json, mmap, os, sys
file = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
page = mmap.mmap(-1, 4096)
def read (offset, size):
  try: return os.preadv(file, [memoryview(page)[:size]], offset)
  except OSError as error: return errno.errorcode[error.errno]
print(json.dumps([read(offset, size) for offset, size in json.loads(sys.argv[2])]))`

mountSuite('reads past the page cache', (driver) => {
  let world: MountWorld
  let image: Buffer
  let path: string

  beforeEach(async () => {
    image = randomBytes(IMAGE_BYTES)
    world = new MountWorld(image, 64 * 1024, driver.name)
    const mount = await world.start()
    await mount.call('createWorkingCopy', 'vm1', 1)
    path = world.path('working', 'vm1')
  })

  afterEach(() => { world.end() })

  it('are in sectors, the last of which may end with the file', async () => {
    const reads = [[0, 1], [0, 100], [100, SECTOR], [0, SECTOR], [3 * SECTOR, SECTOR], [IMAGE_BYTES - SECTOR, 4096], [IMAGE_BYTES, 4096], [0, 4096]]
    expect(JSON.parse(await python(READ_DIRECT, path, JSON.stringify(reads)))).toEqual(['EINVAL', 'EINVAL', 'EINVAL', SECTOR, SECTOR, SECTOR, 0, 4096])
  })

  describeWith(['qemu-img'], 'by QEMU', () => {
    it('write single sectors with cache=none, up to the last of an image that is not whole pages', async () => {
      const expected = Buffer.from(image)
      for (const at of [5 * SECTOR, IMAGE_BYTES - SECTOR]) {
        await run('qemu-io', '-f', 'raw', '-t', 'none', '-c', `write -P ${PATTERN} ${at} ${SECTOR}`, path)
        expected.fill(PATTERN, at, at + SECTOR)
      }
      expect((await run('sha256sum', path)).slice(0, 64)).toBe(createHash('sha256').update(expected).digest('hex'))
    })
  })
})
