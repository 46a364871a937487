/** Chunks before a reader come from the disk while he reads those that he has: their files' pages are in the page cache before he is there. */
import { randomBytes } from 'node:crypto'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { chunkPath } from '../../src/dht/chunk-path.ts'
import { chunkIdOf } from '../../src/protocols/cid.ts'
import { eventually } from '../harness/eventually.ts'
import { mountSuite } from '../harness/mount-suite.ts'
import { IMAGE, MountWorld, python, run } from '../harness/mount-process.ts'

const MIB = 1024 * 1024
const CHUNK = 256 * 1024
const READ_MIB = 6
/** Read for the reader by the mount, and by nobody else: the kernel's own read-ahead ends 1 MiB behind what was read. */
const AHEAD = (READ_MIB + 1.5) * MIB / CHUNK
/** Farther than anybody has reason to read. */
const BEYOND = 3 * READ_MIB * MIB / CHUNK
const DEADLINE_MS = 10_000

/** Drops the pages of files, if nobody has changed them. */
const FORGET = `
import os, sys
for path in sys.argv[1:]:
  fd = os.open(path, os.O_RDONLY)
  try: os.fsync(fd)
  except OSError: pass
  os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
  os.close(fd)`

/** How many pages of each file are in the page cache. */
const RESIDENT = `
import ctypes, json, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def resident (path):
  fd = os.open(path, os.O_RDONLY)
  size = os.fstat(fd).st_size
  pages = mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
  found = (ctypes.c_ubyte * (size // 4096))()
  at = ctypes.addressof(ctypes.c_char.from_buffer(pages))
  assert libc.mincore(ctypes.c_void_p(at), ctypes.c_size_t(size), found) == 0
  return sum(page & 1 for page in found)
print(json.dumps([resident(path) for path in sys.argv[1:]]))`

mountSuite('a reader who goes on', (driver) => {
  let world: MountWorld
  let image: Buffer

  beforeEach(() => {
    image = randomBytes(BEYOND * CHUNK + CHUNK)
    world = new MountWorld(image, CHUNK, driver.name)
  })

  afterEach(() => { world.end() })

  it(driver.workers ? 'has the chunks before him read from the disk meanwhile' : 'has nothing read before him', async ({ skip }) => {
    await world.start()
    const path = world.path('by-name', IMAGE, '1')
    const files = Array.from({ length: image.length / CHUNK }, (_, at) => chunkPath(world.folders.cache, chunkIdOf(image.subarray(at * CHUNK, (at + 1) * CHUNK))))
    const resident = async (...chunks: number[]): Promise<number[]> =>
      JSON.parse(await python(RESIDENT, ...chunks.map((at) => files[at]!))) as number[]
    await run('dd', `if=${path}`, 'of=/dev/null', 'bs=1M', 'status=none')
    await python(FORGET, path, ...files)
    if ((await resident(AHEAD, BEYOND)).some((pages) => pages > 0)) skip('this file system keeps the pages of its files')

    await run('dd', `if=${path}`, 'of=/dev/null', 'bs=1M', `count=${READ_MIB}`, 'status=none')
    const { answer: [ahead = 0, beyond] } = await eventually('chunks before the reader are read', DEADLINE_MS, async () => {
      const pages = await resident(AHEAD, BEYOND)
      return pages[0]! > 0 || !driver.workers ? pages : undefined
    })
    expect(ahead > 0).toBe(driver.workers)
    expect(beyond).toBe(0)
  })
})
