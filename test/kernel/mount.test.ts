/** A real mount over local image files, by each driver: reading, writing, surviving. The server is a process of its own. */
import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { DIRTY_PERCENT_MAX, READ_AHEAD_BYTES } from '../../src/mirror/fuse/protocol.ts'
import { SmallDisk } from '../harness/small-disk.ts'
import { mountSuite } from '../harness/mount-suite.ts'
import { BLOB, IMAGE, type MountProcess, MountWorld, python, PythonProcess, run } from '../harness/mount-process.ts'
import { sha256, sha256OfMounted } from '../harness/mounted-file.ts'

const KIB = 1024
const MIB = KIB * KIB
const CHUNK = 64 * KIB
/** Twice the time in which a driver sees its end that nobody tells it of. */
const LOOK_MS = 400

/** 4 MiB: random, but for a MiB of zeros; not a whole number of sectors. */
function makeImage (): Buffer {
  const image = randomBytes(4 * KIB * KIB + 1234)
  image.fill(0, KIB * KIB, 2 * KIB * KIB)
  return image
}

const WRITE_DIRECT = `
import os, sys, mmap
path, offset, size, byte = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
page = mmap.mmap(-1, max(size, 4096)); page[:size] = bytes([byte]) * size
fd = os.open(path, os.O_RDWR | os.O_DIRECT)
assert os.pwritev(fd, [memoryview(page)[:size]], offset) == size
os.close(fd)`

/** MiB after MiB, in the same place. */
const WRITE_MANY = `
import mmap, os, sys
mib = mmap.mmap(-1, ${MIB})
file = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
for _ in range(int(sys.argv[2])): assert os.pwritev(file, [mib], 0) == ${MIB}
os.close(file)`

mountSuite('a mount', (driver) => {
  let world: MountWorld
  let image: Buffer

  beforeEach(() => {
    image = makeImage()
    world = new MountWorld(image, CHUNK, driver.name)
  })

  afterEach(() => { world.end() })

  const withCopy = async (name = 'vm1'): Promise<{ mount: MountProcess, path: string }> => {
    const mount = await world.start()
    await mount.call('createWorkingCopy', name, 1)
    return { mount, path: world.path('working', name) }
  }

  it('reads a whole version, and only once fetches what it needs', async () => {
    const mount = await world.start()
    const path = world.path('by-name', IMAGE, '1')
    expect((await run('stat', '-c', '%s %a', path)).trim()).toBe(`${image.length} 444`)
    expect(await sha256OfMounted(path)).toBe(sha256(image))
    const fetched = await mount.call('fetched') as string[]
    expect(new Set(fetched).size).toBe(fetched.length)
    expect(fetched.length).toBe(Math.ceil(image.length / CHUNK) - KIB * KIB / CHUNK) // holes are not fetched
  })

  it('fetches only the chunks that a read touches', async () => {
    const mount = await world.start()
    const read = `
import os, sys, mmap
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
page = mmap.mmap(-1, 8192)
os.preadv(fd, [page], ${3 * CHUNK - 4096})
print(bytes(page).hex())`
    const hex = (await python(read, world.path('by-name', IMAGE, '1'))).trim()
    expect(hex).toBe(image.subarray(3 * CHUNK - 4096, 3 * CHUNK + 4096).toString('hex'))
    expect(await mount.call('fetched')).toHaveLength(2)
  })

  it('lets the kernel read ahead by some chunks, not by half of one', async () => {
    await world.start()
    await run('ls', world.mountpoint)
    const device = (await run('stat', '-c', '%Hd:%Ld', world.mountpoint)).trim()
    expect(Number(readFileSync(`/sys/class/bdi/${device}/read_ahead_kb`, 'utf8'))).toBe(READ_AHEAD_BYTES / KIB)
  })

  it('lets the kernel keep more of what was written than it does by itself, if it keeps any', async () => {
    await world.start()
    await run('ls', world.mountpoint)
    const device = (await run('stat', '-c', '%Hd:%Ld', world.mountpoint)).trim()
    expect(Number(readFileSync(`/sys/class/bdi/${device}/max_ratio`, 'utf8')) === DIRTY_PERCENT_MAX).toBe(driver.writeback)
  })

  if (driver.workers) it('brings to the disk what is written, while more is', async () => {
    const { mount, path } = await withCopy()
    const write = async (mib: number): Promise<number> => {
      await python(WRITE_MANY, path, String(mib))
      return (await mount.call('counters') as Record<string, number>).written_back ?? 0
    }
    expect(await write(24)).toBe(0)
    // Each of two workers says so for every 32 MiB that it has written.
    expect(await write(104)).toBeGreaterThanOrEqual(2)
    expect(await write(1)).toBeLessThanOrEqual(3)
  })

  it('lists what is there, and refuses every write to a version with EROFS', async () => {
    await world.start()
    expect((await run('ls', world.mountpoint)).split('\n').filter(Boolean)).toEqual(['by-name', 'working'])
    expect((await run('ls', world.path('by-name'))).trim()).toBe(IMAGE)
    expect((await run('ls', world.path('by-name', IMAGE))).trim()).toBe('0\n1')
    expect(await run('cat', world.path('by-name', IMAGE, '0'))).toBe('')
    const refused = `
import os, sys, errno
path = sys.argv[1]
def errno_of(work):
  try: work()
  except OSError as error: return errno.errorcode[error.errno]
print(errno_of(lambda: os.open(path, os.O_WRONLY)), errno_of(lambda: os.truncate(path, 5)), errno_of(lambda: os.unlink(path)),
  errno_of(lambda: os.open(path + 'x', os.O_CREAT | os.O_WRONLY)), errno_of(lambda: os.stat(path + 'x')), errno_of(lambda: os.setxattr(path, 'user.p2pvm.commit', b'')))`
    expect((await python(refused, world.path('by-name', IMAGE, '1'))).trim()).toBe('EROFS EROFS EROFS EROFS ENOENT EROFS')
  })

  it('keeps buffered writes over fsync, unmount and mount', async () => {
    const { mount, path } = await withCopy()
    const expected = Buffer.from(image)
    const writes = `
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for offset, size, byte in ((0, 1, 1), (4095, 2, 2), (100000, 300000, 3), (${2 * KIB * KIB - 5}, 10, 4), (${image.length - 7}, 7, 5)):
  assert os.pwrite(fd, bytes([byte]) * size, offset) == size
os.fsync(fd)`
    await python(writes, path)
    for (const [offset, size, byte] of [[0, 1, 1], [4095, 2, 2], [100000, 300000, 3], [2 * KIB * KIB - 5, 10, 4], [image.length - 7, 7, 5]] as const) expected.fill(byte, offset, offset + size)
    expect(await sha256OfMounted(path)).toBe(sha256(expected))
    await mount.call('unmount', false)
    expect(await mount.exited).toBe(0)
    const again = await world.start()
    expect(await sha256OfMounted(path)).toBe(sha256(expected))
    expect(await sha256OfMounted(world.path('by-name', IMAGE, '1'))).toBe(sha256(image))
    expect(await again.call('listWorkingCopies')).toMatchObject([{ name: 'vm1', blob: BLOB, version: 1 }])
  })

  it('takes whole-sector O_DIRECT writes without the network, and parts of sectors with it', async () => {
    const { mount, path } = await withCopy()
    await mount.call('set', { unavailable: true })
    await python(WRITE_DIRECT, path, '512', '512', '7')
    await python(WRITE_DIRECT, path, '8192', '4096', '8')
    await mount.call('set', { unavailable: false })
    expect(await mount.call('fetched')).toEqual([])
    await python(WRITE_DIRECT, path, String(CHUNK + 100), '200', '9')
    await python(WRITE_DIRECT, path, String(2 * CHUNK - 300), '1000', '10')
    const expected = Buffer.from(image)
    expected.fill(7, 512, 1024).fill(8, 8192, 12288).fill(9, CHUNK + 100, CHUNK + 300).fill(10, 2 * CHUNK - 300, 2 * CHUNK + 700)
    expect(await sha256OfMounted(path)).toBe(sha256(expected))
  })

  it('has every acknowledged O_DIRECT write after the server was killed with -9', async () => {
    const { mount, path } = await withCopy()
    // Numbered 512-byte writes to every other sector, so that pages are partly valid; the number is printed when acknowledged.
    const writer = `
import os, sys, mmap, struct
fd = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
page = mmap.mmap(-1, 4096)
number = 0
try:
  while True:
    page[:512] = struct.pack('<Q', number + 1) * 64
    os.pwritev(fd, [memoryview(page)[:512]], (number * 2 % 4000) * 512)
    os.write(1, b'%d\\n' % number)
    number += 1
except OSError: pass`
    const child = new PythonProcess(writer, path)
    let acknowledged = -1
    for (let line = await child.line(); line !== undefined; line = await child.line()) {
      acknowledged = Number(line)
      if (acknowledged === 2500) mount.child.kill('SIGKILL')
    }
    expect(acknowledged).toBeGreaterThanOrEqual(2500)
    await world.start() // over the dead mount
    await run('cp', path, join(world.root, 'copy'))
    const bytes = readFileSync(join(world.root, 'copy'))
    for (let number = Math.max(0, acknowledged - 1999); number <= acknowledged; number++) {
      const at = (number * 2 % 4000) * 512
      expect(Number(bytes.readBigUInt64LE(at)), `write ${number}`).toBeGreaterThanOrEqual(number + 1)
    }
  })

  it('shows one inode under both aliases, and brings the working copy into being with the first write', async () => {
    const mount = await world.start()
    const alias = world.path(BLOB, '1')
    const inodeOf = async (path: string): Promise<string> => (await run('stat', '-L', '-c', '%i', path)).trim()
    const before = await inodeOf(alias)
    expect(await sha256OfMounted(alias)).toBe(sha256(image))
    expect((await run('ls', world.path('working'))).trim()).toBe('')
    await python(WRITE_DIRECT, alias, '4096', '4096', '3')
    expect((await run('ls', world.path('working'))).trim()).toBe(`${BLOB}.1`)
    expect(await inodeOf(world.path('working', `${BLOB}.1`))).toBe(before)
    expect(await inodeOf(alias)).toBe(before)
    expect(await sha256OfMounted(world.path('working', `${BLOB}.1`))).toBe(sha256(Buffer.from(image).fill(3, 4096, 8192)))
    expect(await mount.call('workingCopyAt', [BLOB, '1'])).toBe(`${BLOB}.1`)
  })

  it('fails a read that nobody answers with EIO after its deadline', async () => {
    const mount = await world.start({ missDeadlineMs: 300 })
    await mount.call('set', { stalled: true })
    await expect(run('dd', `if=${world.path('by-name', IMAGE, '1')}`, 'of=/dev/null', 'bs=4k', 'count=1', 'iflag=direct')).rejects.toThrow('Input/output error')
    await mount.call('set', { stalled: false })
    expect(await sha256OfMounted(world.path('by-name', IMAGE, '1'))).toBe(sha256(image))
  })

  it('reverts a working copy that is not open, and the kernel keeps no page of it', async () => {
    const { mount, path } = await withCopy()
    await python(WRITE_DIRECT, path, '0', '4096', '1')
    expect(await sha256OfMounted(path)).not.toBe(sha256(image))
    const hold = await holdOpen(path)
    await expect(mount.call('revert', 'vm1')).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    await expect(mount.call('removeWorkingCopy', 'vm1')).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    await hold.end()
    await closedBy(mount)
    await mount.call('revert', 'vm1')
    expect(await sha256OfMounted(path)).toBe(sha256(image))
    // Its last pages are synced, and then its lock goes, after the mount has forgotten it.
    await expect.poll(async () => await mount.call('removeWorkingCopy', 'vm1').then(() => 'removed', (error: { code: string }) => error.code), { timeout: 10_000 }).toBe('removed')
    expect(existsSync(join(world.folders.working, 'vm1'))).toBe(false)
  })

  it(driver.workers ? 'answers cached reads while the main thread is blocked for two seconds' : 'answers no read while the main thread is blocked for two seconds', async () => {
    const { mount, path } = await withCopy()
    await python(WRITE_DIRECT, path, '0', '4096', '1') // one page of the overlay, the rest of the base
    expect((await sha256OfMounted(path)).length).toBe(64)
    const reader = `
import os, sys, mmap, time
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
page = mmap.mmap(-1, 4096)
print('ready', flush=True); sys.stdin.readline()
start = time.monotonic(); longest = 0; count = 0
while time.monotonic() - start < 1:
  before = time.monotonic(); os.preadv(fd, [page], count % 200 * 4096); longest = max(longest, time.monotonic() - before); count += 1
print(count, longest)`
    const child = new PythonProcess(reader, path)
    await child.line()
    const blocking = mount.event('blocking')
    const blocked = mount.call('blockMainThread', 2000)
    await blocking
    child.send('go')
    const [count = 0, longest = 9] = (await child.line())?.split(' ').map(Number) ?? []
    if (driver.workers) expect(count).toBeGreaterThan(200)
    if (driver.workers) expect(longest).toBeLessThan(1)
    else expect(longest).toBeGreaterThan(1)
    await blocked
  })

  it('leaves no hung process and no dead mount when its main thread throws while a file is open', async () => {
    const { mount, path } = await withCopy()
    const hold = await holdOpen(path)
    await mount.call('throwInMainThread').catch(() => {}) // it may not live to answer
    expect(await mount.exited).toBe(1)
    expect(world.isMounted()).toBe(false)
    hold.send('read')
    expect(await hold.line()).toMatch(/ENOTCONN|ECONNABORTED/)
    await hold.end()
    await world.start()
    expect(await sha256OfMounted(path)).toBe(sha256(image))
  })

  it('unmounts on SIGTERM, with what the kernel had not yet written back', async () => {
    const { mount, path } = await withCopy()
    const writer = new PythonProcess(`
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(fd, b'x' * 100000, 50000)
print('written', flush=True)
sys.stdin.read()`, path)
    await writer.line()
    expect(await mount.kill('SIGTERM')).toBe(0)
    expect(world.isMounted()).toBe(false)
    await writer.end()
    await world.start()
    expect(await sha256OfMounted(path)).toBe(sha256(Buffer.from(image).fill('x', 50000, 150000)))
  })

  it('refuses to unmount while a file is open, unless forced', async () => {
    const { mount, path } = await withCopy()
    const hold = await holdOpen(path)
    await expect(mount.call('unmount', false)).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    expect(world.isMounted()).toBe(true)
    await mount.call('unmount', true)
    expect(await mount.exited).toBe(0)
    expect(world.isMounted()).toBe(false)
    await hold.end()
  })

  it('ends when somebody else unmounts it', async () => {
    const { mount } = await withCopy()
    await run('umount', world.mountpoint)
    expect(await mount.exited).toBe(0)
  })

  it('ends on SIGTERM although somebody has detached it lazily and a file is open', async () => {
    const { mount, path } = await withCopy()
    const hold = await holdOpen(path)
    await run('umount', '-l', world.mountpoint)
    // Until then it is served, also when the server has had time to look around.
    for (const until = performance.now() + LOOK_MS; performance.now() < until;) {
      hold.send('read')
      expect(await hold.line()).toBe('')
    }
    expect(await mount.kill('SIGTERM')).toBe(0)
    hold.send('read')
    expect(await hold.line()).toMatch(/ENOTCONN|ECONNABORTED/)
    await hold.end()
  })

  it('says ENOSPC when the disk is full, loses nothing, and goes on when there is room', async () => {
    const disk = await SmallDisk.mount(world.folders.working, 2 * KIB * KIB)
    try {
      const { mount, path } = await withCopy()
      await python(WRITE_DIRECT, path, '0', '4096', '1')
      await disk.fill()
      await expect(python(WRITE_DIRECT, path, String(MIB), String(512 * KIB), '2')).rejects.toThrow('No space left on device')
      await expect(mount.call('commit', 'vm1')).rejects.toMatchObject({ code: 'ERR_DISK_FULL' })
      await run('sync', path)
      await disk.empty()
      await python(WRITE_DIRECT, path, String(MIB), String(512 * KIB), '3')
      expect(await sha256OfMounted(path)).toBe(sha256(Buffer.from(image).fill(1, 0, 4096).fill(3, MIB, MIB + 512 * KIB)))
      await mount.call('commit', 'vm1')
      expect(await sha256OfMounted(world.path('by-name', IMAGE, '2'))).toBe(await sha256OfMounted(path))
      await mount.call('unmount', false)
    } finally {
      await disk[Symbol.asyncDispose]()
    }
  })

  // What follows lies behind the drivers: once is enough.
  if (driver.name !== 'direct') return

  it('drops a bad cache file and fetches it again', async () => {
    const mount = await world.start()
    await mount.call('set', { badBytes: 2 })
    expect(await sha256OfMounted(world.path('by-name', IMAGE, '1'))).toBe(sha256(image))
    expect(await mount.call('counters')).toMatchObject({ chunks_corrupt: 2 })
  })

  it('goes on reading what is local without its daemon, also after a new start', async () => {
    const { mount, path } = await withCopy()
    expect(await sha256OfMounted(path)).toBe(sha256(image))
    await mount.call('unmount', false)
    const again = await world.start()
    await again.call('set', { unavailable: true })
    expect(await sha256OfMounted(path)).toBe(sha256(image))
    expect(await again.call('asked')).toBe(0)
  })

  it('says what is wrong with a mountpoint', async () => {
    const missing = join(world.root, 'missing')
    const file = join(world.root, 'file')
    const full = join(world.root, 'full')
    writeFileSync(file, '')
    mkdirSync(join(full, 'x'), { recursive: true })
    await expect(world.start({ mountpoint: missing })).rejects.toMatchObject({ code: 'ERR_NOT_FOUND' })
    await expect(world.start({ mountpoint: file })).rejects.toMatchObject({ code: 'ERR_USAGE' })
    await expect(world.start({ mountpoint: full })).rejects.toMatchObject({ code: 'ERR_USAGE' })
    await world.start()
    await expect(world.start()).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    expect(world.isMounted()).toBe(true)
    expect(readdirSync(world.mountpoint)).toEqual(['by-name', 'working'])
  })
})

/** A process that has the file open for writing; each line sent is a read past the page cache, answered by the name of its error or nothing. */
async function holdOpen (path: string): Promise<PythonProcess> {
  const child = new PythonProcess(`
import os, sys, errno
fd = os.open(sys.argv[1], os.O_RDWR)
print('open', flush=True)
for line in sys.stdin:
  os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
  try: os.pread(fd, 4096, 0); print('', flush=True)
  except OSError as error: print(errno.errorcode[error.errno], flush=True)`, path)
  await child.line()
  return child
}

/** RELEASE comes some time after close(2). */
async function closedBy (mount: MountProcess): Promise<void> {
  await expect.poll(async () => await mount.call('workingCopies'), { timeout: 10_000 }).toEqual([])
}
