/**
 * What a program may expect of the files of a mount, by each driver: every way of reading and writing at once, names as hostile
 * as a kernel lets them be, extended attributes, and one working copy under all its names.
 */
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, expect, it } from 'vitest'
import { mountSuite } from '../harness/mount-suite.ts'
import { BLOB, IMAGE, type MountProcess, MountWorld, python, PythonProcess, run } from '../harness/mount-process.ts'
import { sha256, sha256OfMounted } from '../harness/mounted-file.ts'
import { Chance, testSeed } from '../harness/seed.ts'

const KIB = 1024
const CHUNK = 64 * KIB
/** A MiB of it is zeros; neither whole pages nor whole sectors. */
const SIZE = 2 * KIB * KIB + 1234

const chance = new Chance(testSeed())

/** What each of some calls does: its result, or the name of its error. */
const OUTCOMES = `
import ctypes, errno, json, mmap, os, random, sys
def outcome (work):
  try: return work()
  except OSError as error: return errno.errorcode[error.errno]
`

/**
 * Random reads and writes, in turn by pread and pwrite, by O_DIRECT in sectors and in pages, through a shared mapping, by an append; against
 * a model in memory. Prints the sum of what the file should hold.
 */
const EVERY_WAY = `${OUTCOMES}
import hashlib
path, seed, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
chance = random.Random(seed)
buffered, direct, end = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR | os.O_DIRECT), os.open(path, os.O_WRONLY | os.O_APPEND)
model = bytearray(os.pread(buffered, 1 << 30, 0))
mapped = mmap.mmap(buffered, len(model) // 4096 * 4096)
aligned = mmap.mmap(-1, 65536)
def extent (unit, most):
  size = chance.randint(1, most // unit) * unit
  return chance.randrange(0, (len(mapped) - size) // unit) * unit, size
for number in range(rounds):
  kind = chance.choice(['pwrite', 'sectors', 'pages', 'mapping', 'append', 'fsync', 'pread', 'read sectors'])
  at, size = extent({'sectors': 512, 'read sectors': 512, 'pages': 4096}.get(kind, 1), 40000)
  new = chance.randbytes(size)
  if kind == 'pwrite': assert os.pwrite(buffered, new, at) == size
  elif kind in ('sectors', 'pages'):
    aligned[:size] = new
    assert os.pwritev(direct, [memoryview(aligned)[:size]], at) == size, (kind, at, size)
  elif kind == 'mapping':
    mapped[at:at + size] = new
    if chance.random() < 0.5: mapped.flush()
  elif kind == 'append':
    assert os.write(end, new[:999]) == len(new[:999])
    at, new = len(model), new[:999]
  elif kind == 'fsync': os.fsync(buffered)
  elif kind == 'pread': assert os.pread(buffered, size, at) == model[at:at + size], (number, at, size)
  else:
    mapped.flush()
    assert os.preadv(direct, [memoryview(aligned)[:size]], at) == size
    assert aligned[:size] == model[at:at + size], (number, at, size)
  if kind in ('pwrite', 'sectors', 'pages', 'mapping', 'append'): model[at:at + len(new)] = new
mapped.flush()
os.fsync(buffered)
print(hashlib.sha256(model).hexdigest())`

mountSuite('a program', (driver) => {
  let world: MountWorld
  let image: Buffer
  let mount: MountProcess
  let path: string
  let copies = 0

  beforeAll(async () => {
    image = randomBytes(SIZE).fill(0, KIB * KIB / 2, 3 * KIB * KIB / 2)
    world = new MountWorld(image, CHUNK, driver.name)
    mount = await world.start()
  })

  // A working copy of its own for each test.
  beforeEach(async () => {
    const name = `vm${++copies}`
    await mount.call('createWorkingCopy', name, 1)
    path = world.path('working', name)
  })

  afterAll(() => { world.end() })

  it('reads and writes in every way at once, and each sees what the others wrote', async () => {
    const seed = chance.fork(driver.name).seed
    const sum = (await python(EVERY_WAY, path, seed, '300')).trim()
    expect(await sha256OfMounted(path), `seed ${seed}`).toBe(sum)
    await mount.kill('SIGKILL')
    mount = await world.start()
    expect(await sha256OfMounted(path), `seed ${seed}, after kill -9`).toBe(sum)
  })

  it('that maps a file shared has its stores in it after msync, and another that maps it sees them at once', async () => {
    const program = `${OUTCOMES}
one, other = (mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 8192, offset=${CHUNK}) for _ in range(2))
one[5000:5003] = b'abc'
before = other[5000:5003]
one.flush()
direct = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
page = mmap.mmap(-1, 4096)
os.preadv(direct, [page], ${CHUNK} + 4096)
private = mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), 8192, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=${CHUNK})
private[5000:5003] = b'xyz'
print(before, page[904:907], os.pread(direct, 0, 0), os.pread(os.open(sys.argv[1], os.O_RDONLY), 3, ${CHUNK} + 5000))`
    expect((await python(program, path)).trim()).toBe(`b'abc' b'abc' b'' b'abc'`)
  })

  it('that appends is not alone: each record is there once, and whole', async () => {
    const append = `
import os, sys
end = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for number in range(200): assert os.write(end, b'%s%05d' % (sys.argv[2].encode() * 95, number)) == 100`
    await Promise.all(['a', 'b', 'c'].map(async (writer) => await python(append, path, writer)))
    const records = (await run('tail', '-c', '60000', path)).match(/.{100}/g) ?? []
    const expected = ['a', 'b', 'c'].flatMap((writer) => Array.from({ length: 200 }, (_, number) => `${writer.repeat(95)}${String(number).padStart(5, '0')}`))
    expect(records.sort()).toEqual(expected)
    expect(sha256(Buffer.from(await run('sh', '-c', `head -c ${SIZE} "$1" | base64 -w0`, 'sh', path), 'base64'))).toBe(sha256(image))
  })

  it(driver.writeback ? 'writes to the kernel, which keeps it until an fsync' : 'has written when write(2) returns: the kernel keeps nothing', async () => {
    const writer = new PythonProcess(`
import os, sys
file = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(file, b'x' * 4096, 8192)
print('written', flush=True)
sys.stdin.readline()
os.fsync(file)
print('synced', flush=True)`, path)
    const dirtyBytes = async (): Promise<number> => {
      const copies = await mount.call('listWorkingCopies') as Array<{ name: string, dirtyBytes: number }>
      return copies.find(({ name }) => path.endsWith(`/${name}`))?.dirtyBytes ?? -1
    }
    expect(await writer.line()).toBe('written')
    expect(await dirtyBytes()).toBe(driver.writeback ? 0 : 4096)
    writer.send('sync')
    expect(await writer.line()).toBe('synced')
    expect(await dirtyBytes()).toBe(4096)
    await writer.end()
  })

  it('reads zeros in a hole, around what it writes there', async () => {
    const program = `
import os, sys
file = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(file, b'x', ${KIB * KIB} + 777)
part = os.pread(file, ${CHUNK}, ${KIB * KIB})
print(part == bytes(777) + b'x' + bytes(${CHUNK} - 778))`
    expect((await python(program, path)).trim()).toBe('True')
  })

  it('reads no older bytes than another has written, and never what nobody wrote', async () => {
    const writer = `
import mmap, os, struct, sys
path, block, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
file = os.open(path, os.O_WRONLY | (os.O_DIRECT if block % 2 else 0))
page = mmap.mmap(-1, 4096)
for number in range(1, rounds + 1):
  page[:] = struct.pack('<Q', number) * 512
  assert os.pwritev(file, [page], block * 4096) == 4096`
    const reader = `
import mmap, os, struct, sys
file = os.open(sys.argv[1], os.O_RDONLY | (os.O_DIRECT if sys.argv[3] == 'direct' else 0))
blocks, rounds = int(sys.argv[2]), int(sys.argv[4])
page, seen = mmap.mmap(-1, 4096), [0] * blocks
while min(seen) < rounds:
  for block in range(blocks):
    os.preadv(file, [memoryview(page)[:512]], block * 4096)
    number = struct.unpack_from('<Q', page)[0]
    assert seen[block] <= number <= rounds, (block, seen[block], number)
    seen[block] = number
print('done')`
    await python(`import os, sys; os.pwrite(os.open(sys.argv[1], os.O_RDWR), bytes(16384), 0)`, path)
    const rounds = '150'
    const reading = Promise.all(['direct', 'buffered'].map(async (way) => (await python(reader, path, '4', way, rounds)).trim()))
    await Promise.all(['0', '1', '2', '3'].map(async (block) => await python(writer, path, block, rounds)))
    expect(await reading).toEqual(['done', 'done'])
  })

  it('has under every name of a working copy what it wrote under another, while both are open', async () => {
    const alias = world.path(BLOB, '1')
    const other = world.path('working', `${BLOB}.1`)
    const follower = new PythonProcess(`
import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(file, 65536)
os.pread(file, 65536, 0)
print('open', flush=True)
for line in sys.stdin:
  at = int(line)
  print(os.pread(file, 3, at), memory[at:at + 3], os.stat(sys.argv[1]).st_size, flush=True)
  os.pwrite(file, b'back', at + 3)
  print('written', flush=True)`, other)
    expect(await follower.line()).toBe('open')
    const write = 'import os, sys; file = os.open(sys.argv[1], os.O_RDWR); os.pwrite(file, b"abc", int(sys.argv[2])); os.ftruncate(file, int(sys.argv[3]))'
    const read = 'import os, sys; print(os.pread(os.open(sys.argv[1], os.O_RDONLY), 7, int(sys.argv[2])))'
    for (const [round, at] of [100, 4095, 40_000].entries()) {
      const size = SIZE + 5000 * (round + 1)
      await python(write, alias, String(at), String(size))
      follower.send(String(at))
      expect(await follower.line()).toBe(`b'abc' b'abc' ${size}`)
      expect(await follower.line()).toBe('written')
      expect((await python(read, alias, String(at))).trim()).toBe(`b'abcback'`)
    }
    await follower.end()
    expect(await sha256OfMounted(alias)).toBe(await sha256OfMounted(other))
    expect(await sha256OfMounted(world.path('by-name', IMAGE, '1'))).toBe(sha256(image))
  })

  it('copies out of it and within it, whoever copies', async () => {
    const copy = join(world.root, 'copy')
    for (const options of [['--reflink=never'], ['--reflink=auto', '--sparse=never']]) {
      await run('cp', ...options, world.path('by-name', IMAGE, '1'), copy)
      expect(await sha256OfMounted(copy)).toBe(sha256(image))
    }
    const within = `
import os, sys
source, target = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_RDWR)
os.pwrite(target, bytes(${SIZE}), 0)
left = ${SIZE}
while left > 0: left -= os.copy_file_range(source, target, left)`
    await python(within, world.path('by-name', IMAGE, '1'), path)
    expect(await sha256OfMounted(path)).toBe(sha256(image))
    await run('cp', '--reflink=never', path, copy)
    expect(await sha256OfMounted(copy)).toBe(sha256(image))
  })

  it('finds no name that is not there, however it is written, and makes none', async () => {
    const program = `${OUTCOMES}
root, image, blob = (os.fsencode(name) for name in sys.argv[1:4])
names = [b'a' * 255, b'a' * 256, b'a' * 1000, b'\\xff\\xfe', 'é'.encode() * 127, 'é'.encode() * 128, b'new\\nline', b'1\\n', b' ', b'...', b'.1', b'-1', b'01', b'%2e%2e', b'1 ',
  b'..\\\\..', b'\\x01\\x7f', bytes(set(range(1, 256)) - {47}), b'*', b'$(x)', b'@', b'by-name\\t', '\\u202e1'.encode(), b'9' * 200]
folders = [root, root + b'/by-name', root + b'/by-name/' + image, root + b'/working', root + b'/' + blob]
found = set()
for folder in folders:
  for name in names:
    path = folder + b'/' + name
    long = len(name) > 255
    for work in (lambda: os.stat(path), lambda: os.open(path, os.O_RDWR), lambda: os.open(path, os.O_CREAT | os.O_RDWR), lambda: os.mkdir(path), lambda: os.symlink(b'x', path),
        lambda: os.rename(root + b'/by-name/' + image + b'/1', path), lambda: os.mknod(path), lambda: os.getxattr(path, 'user.p2pvm.base')):
      found.add(('long' if long else 'short', outcome(work)))
  assert os.listdir(folder) == os.listdir(folder + b'/.') and os.path.samefile(folder + b'/..', os.path.dirname(folder)), folder
print(json.dumps(sorted(found)))`
    expect(JSON.parse(await python(program, world.mountpoint, IMAGE, BLOB))).toEqual([['long', 'ENAMETOOLONG'], ['short', 'ENOENT'], ['short', 'EROFS']])
    expect(await sha256OfMounted(world.path('by-name', IMAGE, '1'))).toBe(sha256(image))
  })

  it('removes, renames, links and chowns nothing', async () => {
    const program = `${OUTCOMES}
path, folder = sys.argv[1:3]
print(json.dumps([outcome(work) for work in (lambda: os.unlink(path), lambda: os.rmdir(folder), lambda: os.rename(path, path + 'x'), lambda: os.link(path, path + 'x'),
  lambda: os.chmod(path, 0o600), lambda: os.chown(path, 1, 1), lambda: os.removexattr(path, 'user.p2pvm.base'), lambda: os.open(folder, os.O_TMPFILE | os.O_RDWR))]))`
    const [unlink, rmdir, rename, link, ...others] = JSON.parse(await python(program, path, world.path('working'))) as string[]
    expect([unlink, rmdir, rename]).toEqual(['EROFS', 'EROFS', 'EROFS'])
    expect(link).toBeOneOf(['EROFS', 'EPERM']) // libfuse asks for a new node first
    expect(others.slice(0, 3)).toEqual(['EPERM', 'EPERM', 'EROFS'])
    expect(others[3]).toBeOneOf(['EROFS', 'ENOTSUP', 'EISDIR'])
  })

  it('asks for extended attributes of any name and with any room', async () => {
    const program = `${OUTCOMES}
libc = ctypes.CDLL(None, use_errno=True)
def call (function, *arguments):
  room = ctypes.create_string_buffer(b'?' * 80)
  path, *name, size = arguments
  result = getattr(libc, function)(path.encode(), *name, room, ctypes.c_size_t(size))
  return errno.errorcode[ctypes.get_errno()] if result < 0 else [result, room.raw[:max(result, 1)].decode('latin1'), room.raw[size:size + 1] == b'?']
path, version, folder = sys.argv[1:4]
base = b'user.p2pvm.base'
print(json.dumps({
  'base': [call('getxattr', path, base, size) for size in (0, 1, 17, 18, 64)],
  'of a version': call('getxattr', version, base, 64),
  'of a folder': call('getxattr', folder, base, 64),
  'list': [call('listxattr', path, size) for size in (1, 15, 16, 64)],
  'list of a folder': call('listxattr', folder, 64),
  'others': [outcome(lambda: os.getxattr(path, name)) for name in ('user.x', 'user.p2pvm.', 'user.' + 'x' * 250, 'security.capability', 'user.\\udcff')],
  'set': [outcome(lambda: os.setxattr(path, name, b'')) for name in ('user.x', 'user.p2pvm.base', 'user.\\udcff')],
  'set too much': [outcome(lambda: os.setxattr(path, 'user.p2pvm.clone', b'x' * size)) for size in (136, 65536, 65537)],
  'none was started': outcome(lambda: os.getxattr(path, 'user.p2pvm.clone')) }))`
    const asked = JSON.parse(await python(program, path, world.path('by-name', IMAGE, '1'), world.path('by-name'))) as Record<string, unknown>
    const base = `${BLOB}@1`
    expect(asked).toMatchObject({
      base: [[18, '?'.repeat(18), true], 'ERANGE', 'ERANGE', [18, base, true], [18, base, true]],
      'of a version': [18, base, true],
      'of a folder': 'ENODATA',
      list: ['ERANGE', 'ERANGE', [16, 'user.p2pvm.base\0', true], [16, 'user.p2pvm.base\0', true]],
      'list of a folder': [0, '?', true],
      others: Array(5).fill('ENODATA'),
      set: Array(3).fill('ENOTSUP'),
      'set too much': ['EINVAL', 'EINVAL', 'E2BIG'],
      'none was started': 'ENODATA'
    })
  })
})
