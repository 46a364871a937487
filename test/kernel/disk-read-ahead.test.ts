/** Chunks before a reader come from the disk while he reads those that he has. */
import { createHash, randomBytes } from 'node:crypto'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { chunkPath } from '../../src/dht/chunk-path.ts'
import { chunkIdOf } from '../../src/protocols/cid.ts'
import { eventually } from '../harness/eventually.ts'
import { mountSuite } from '../harness/mount-suite.ts'
import { IMAGE, MountWorld, run } from '../harness/mount-process.ts'
import { forgetPages, residentPages } from '../harness/page-cache.ts'

const MIB = 1024 * 1024
const CHUNK = 256 * 1024
const READ_MIB = 6
/** Read for the reader by the mount, and by nobody else: the kernel's own read-ahead ends 1 MiB behind what was read. */
const AHEAD = (READ_MIB + 1.5) * MIB / CHUNK
/** Farther than anybody has reason to read. */
const BEYOND = 3 * READ_MIB * MIB / CHUNK
const DEADLINE_MS = 10_000

mountSuite('a reader who goes on', (driver) => {
  let world: MountWorld
  let image: Buffer

  beforeEach(() => {
    image = randomBytes(BEYOND * CHUNK + CHUNK)
    world = new MountWorld(image, CHUNK, driver.name)
  })

  afterEach(() => { world.end() })

  /** Chunk files, none of whose pages the kernel has. */
  async function cold (path: string, skip: (note: string) => void): Promise<string[]> {
    const files = Array.from({ length: image.length / CHUNK }, (_, at) => chunkPath(world.folders.cache, chunkIdOf(image.subarray(at * CHUNK, (at + 1) * CHUNK))))
    await run('dd', `if=${path}`, 'of=/dev/null', 'bs=1M', 'status=none')
    await forgetPages([path, ...files])
    if ((await residentPages(files)).some((pages) => pages > 0)) skip('this file system keeps the pages of its files')
    return files
  }

  it(driver.workers ? 'beside others of the same version has the chunks before him read from the disk meanwhile' : 'has nothing read before him', async ({ skip }) => {
    const mount = await world.start()
    await mount.call('createWorkingCopy', 'vm1', 1)
    const path = world.path('by-name', IMAGE, '1')
    const files = await cold(path, skip)
    const ahead = files[AHEAD]!
    const beyond = files[BEYOND]!
    // The other one's pages are his own: what both find in the page cache are those of the chunk files.
    await run('sh', '-c', 'exec 3<"$1"; exec dd if="$2" of=/dev/null bs=1M count="$3" status=none', 'sh', world.path('working', 'vm1'), path, String(READ_MIB))
    const { answer } = await eventually('chunks before the reader are read', DEADLINE_MS, async () => {
      const pages = await residentPages([ahead, beyond])
      return pages[0]! > 0 || !driver.workers ? pages : undefined
    })
    expect(answer[0]! > 0).toBe(driver.workers)
    expect(answer[1]).toBe(0)
  })

  if (!driver.workers) return
  it('with O_DIRECT has them in the page cache, which keeps nothing else of them', async ({ skip }) => {
    await world.start()
    const path = world.path('by-name', IMAGE, '1')
    const files = await cold(path, skip)
    await run('dd', `if=${path}`, 'of=/dev/null', 'bs=1M', 'iflag=direct', 'status=none')
    expect(await residentPages(files)).toEqual(files.map(() => CHUNK / 4096))
  })

  it('alone on his version has them past the page cache, which would keep them a second time', async ({ skip }) => {
    await world.start()
    const path = world.path('by-name', IMAGE, '1')
    const files = await cold(path, skip)
    expect((await run('sha256sum', path)).split(' ')[0]).toBe(createHash('sha256').update(image).digest('hex'))
    // Until he is known as one who goes on, chunks are read as they are asked for; and now and then a worker comes too late.
    const pages = await residentPages(files.slice(2 * MIB / CHUNK))
    expect(pages.filter((count) => count === 0).length).toBeGreaterThan(pages.length / 2)
  })
})
