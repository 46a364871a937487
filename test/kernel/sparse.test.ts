/** Holes on a real mount: what lseek(2) says of them, and that programs which ask it read none. */
import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { describeWith } from '../harness/capabilities.ts'
import { mountSuite } from '../harness/mount-suite.ts'
import { IMAGE, type MountProcess, MountWorld, python, run } from '../harness/mount-process.ts'
import { sha256 } from '../harness/mounted-file.ts'

const PAGE = 4096
const CHUNK = 64 * 1024
const CHUNKS = 64
/** Neither whole pages nor whole sectors. */
const SIZE = CHUNKS * CHUNK + 1234
/** Data is in chunks 3, 10 to 12 and the last, which is short; all else is zeros. */
const DATA = [[3, 4], [10, 13], [CHUNKS, CHUNKS + 1]] as const

/** What is data, `[from, to)`; and the answers to other questions, an offset or the name of an error. */
const SEEK = `
import errno, json, os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
def seek (offset, whence):
  try: return os.lseek(file, offset, whence)
  except OSError as error:
    if error.errno == errno.EIO: raise
    return errno.errorcode[error.errno]
pieces = []
at = seek(0, os.SEEK_DATA)
while at != 'ENXIO':
  end = seek(at, os.SEEK_HOLE)
  pieces.append([at, end])
  at = seek(end, os.SEEK_DATA)
kinds = {'data': os.SEEK_DATA, 'hole': os.SEEK_HOLE}
print(json.dumps([pieces, [seek(offset, kinds[kind]) for kind, offset in json.loads(sys.argv[2])]]))`

mountSuite('holes', (driver) => {
  let world: MountWorld
  let image: Buffer
  let mount: MountProcess
  let version: string
  let copy: string

  beforeEach(async () => {
    image = Buffer.alloc(SIZE)
    for (const [from, to] of DATA) randomBytes(Math.min(to * CHUNK, SIZE) - from * CHUNK).copy(image, from * CHUNK)
    world = new MountWorld(image, CHUNK, driver.name)
    mount = await world.start()
    await mount.call('createWorkingCopy', 'vm1', 1)
    version = world.path('by-name', IMAGE, '1')
    copy = world.path('working', 'vm1')
  })

  afterEach(() => { world.end() })

  const seek = async (path: string, ...questions: Array<['data' | 'hole', number]>): Promise<unknown> => JSON.parse(await python(SEEK, path, JSON.stringify(questions))) as unknown
  const pieces = DATA.map(([from, to]) => [from * CHUNK, Math.min(to * CHUNK, SIZE)])

  if (!driver.lseek) {
    it('are not known: all of a file is data, up to its end', async () => {
      for (const path of [version, copy]) {
        expect(await seek(path, ['data', 5 * CHUNK + 7], ['hole', 5 * CHUNK + 7], ['data', SIZE], ['hole', SIZE]))
          .toEqual([[[0, SIZE]], [5 * CHUNK + 7, SIZE, 'ENXIO', 'ENXIO']])
      }
      expect(await mount.call('fetched')).toEqual([])
    })

    it('are read as zeros by cp, which makes holes of them if it is told', async () => {
      const target = join(world.root, 'target')
      await run('cp', '--sparse=always', version, target)
      expect(sha256(readFileSync(target))).toBe(sha256(image))
      expect(Number(await run('stat', '-c', '%b', target)) * 512).toBeLessThan(8 * CHUNK)
      expect(await mount.call('fetched')).toHaveLength(5)
    })
    return
  }

  it('of a version and of a working copy are its chunks of zeros, and nothing is fetched to know them', async () => {
    for (const path of [version, copy]) {
      expect(await seek(path, ['data', 3 * CHUNK + 5], ['hole', 3 * CHUNK + 5], ['hole', 5 * CHUNK + 7], ['data', 5 * CHUNK + 7],
        ['hole', SIZE - 1], ['data', SIZE - 1], ['data', SIZE], ['hole', SIZE], ['data', 2 ** 60], ['hole', 2 ** 60]))
        .toEqual([pieces, [3 * CHUNK + 5, 4 * CHUNK, 5 * CHUNK + 7, 10 * CHUNK, SIZE, SIZE - 1, 'ENXIO', 'ENXIO', 'ENXIO', 'ENXIO']])
    }
    expect(await mount.call('fetched')).toEqual([])
  })

  it('end where a page was written, also by a program whose bytes the kernel still has', async () => {
    const write = `
import json, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
os.pread(file, ${CHUNK}, ${20 * CHUNK})
os.pwrite(file, b'x', ${20 * CHUNK + 5 * PAGE + 1})
os.pwrite(file, b'y' * ${2 * PAGE}, ${30 * CHUNK - PAGE})
before = os.lseek(file, ${20 * CHUNK}, os.SEEK_HOLE), os.lseek(file, ${20 * CHUNK}, os.SEEK_DATA)
print(json.dumps([before, os.lseek(file, ${20 * CHUNK + 5 * PAGE}, os.SEEK_HOLE), os.lseek(file, ${30 * CHUNK}, os.SEEK_DATA), os.lseek(file, ${30 * CHUNK - PAGE}, os.SEEK_HOLE)]))`
    expect(JSON.parse(await python(write, copy))).toEqual([[20 * CHUNK, 20 * CHUNK + 5 * PAGE], 20 * CHUNK + 6 * PAGE, 30 * CHUNK, 30 * CHUNK + PAGE])
    const written = [[20 * CHUNK + 5 * PAGE, 20 * CHUNK + 6 * PAGE], [30 * CHUNK - PAGE, 30 * CHUNK + PAGE]]
    expect(await seek(copy)).toEqual([[...pieces.slice(0, 2), ...written, ...pieces.slice(2)], []])
    expect(await seek(version)).toEqual([pieces, []])
  })

  it('are no more where all of one was written and the kernel still has it', async () => {
    const write = `
import os, sys
file = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(file, b'z' * ${6 * CHUNK}, ${4 * CHUNK})
print(os.lseek(file, ${3 * CHUNK}, os.SEEK_HOLE))`
    expect(Number(await python(write, copy))).toBe(13 * CHUNK)
  })

  it('end where a program has stored through mmap, which the kernel hears of last', async () => {
    const store = `
import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(file, ${CHUNK}, offset=${40 * CHUNK})
memory[${3 * PAGE}] = 1
print(os.lseek(file, ${40 * CHUNK}, os.SEEK_DATA), memory[${3 * PAGE}], os.pread(file, 1, ${40 * CHUNK + 3 * PAGE}) == b'\\1')
memory[${3 * PAGE}] = 2
os.lseek(file, ${40 * CHUNK}, os.SEEK_HOLE)
print(os.pread(file, 1, ${40 * CHUNK + 3 * PAGE}) == b'\\2')`
    expect((await python(store, copy)).trim().split(/\s/)).toEqual([String(40 * CHUNK + 3 * PAGE), '1', 'True', 'True'])
  })

  it('are as the new version has them after a commit', async () => {
    await python(`import os, sys; file = os.open(sys.argv[1], os.O_RDWR); os.pwrite(file, bytes(${CHUNK}), ${11 * CHUNK}); os.pwrite(file, b'x', ${50 * CHUNK})`, copy)
    await mount.call('commit', 'vm1')
    const expected = [[3, 4], [10, 11], [12, 13], [50, 51]].map(([from = 0, to = 0]) => [from * CHUNK, to * CHUNK])
    for (const path of [copy, world.path('by-name', IMAGE, '2')]) expect(await seek(path)).toEqual([[...expected, ...pieces.slice(2)], []])
  })

  it('are not read by cp and tar, and are holes in what they make', async () => {
    const target = join(world.root, 'target')
    await run('cp', '--sparse=auto', version, target)
    expect(sha256(readFileSync(target))).toBe(sha256(image))
    expect(Number(await run('stat', '-c', '%b', target)) * 512).toBeLessThan(8 * CHUNK)
    await run('tar', '-C', world.path('by-name', IMAGE), '-Scf', join(world.root, 'tar'), '1')
    await run('tar', '-C', world.root, '-xf', join(world.root, 'tar'))
    expect(sha256(readFileSync(join(world.root, '1')))).toBe(sha256(image))
    expect(await mount.call('fetched')).toHaveLength(5)
    expect((await mount.call('counters') as Record<string, number>)['FUSE_LSEEK']).toBeGreaterThan(0)
  })

  it('wait for the daemon no longer than a read does, and are known without it once they have been', async () => {
    await mount.call('set', { unavailable: true })
    await mount.call('unmount', false)
    mount = await world.start({ missDeadlineMs: 200 })
    await mount.call('set', { unavailable: true })
    await expect(seek(copy)).rejects.toThrow('Input/output error')
    await mount.call('set', { unavailable: false })
    expect(await seek(copy)).toEqual([pieces, []])
    await mount.call('set', { unavailable: true })
    expect(await seek(copy)).toEqual([pieces, []])
  })

  describeWith(['qemu-img'], 'by QEMU', () => {
    it('are mapped without a byte fetched', async () => {
      const map = JSON.parse(await run('qemu-img', 'map', '--output=json', '-f', 'raw', copy)) as Array<{ start: number, length: number, data: boolean }>
      const found = map.filter(({ data }) => data).map(({ start, length }) => [start, start + length])
      expect(found).toEqual(pieces)
      // It looks at the first and the last sectors for what format a file has, and how it must align.
      expect((await mount.call('fetched') as string[]).length).toBeLessThanOrEqual(1)
    })
  })
})
