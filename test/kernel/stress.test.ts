/**
 * Several processes write 512-byte sectors of the same pages with O_DIRECT, others read all of the image, chunks are evicted,
 * the mount may keep few of them open, and all the time the working copy is sealed, committed, and folded back.
 */
import { mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { describeWith } from '../harness/capabilities.ts'
import { LineProcess } from '../harness/line-process.ts'
import { MountWorld, python } from '../harness/mount-process.ts'
import { bytesOf } from '../harness/random-image.ts'
import { Chance, testSeed } from '../harness/seed.ts'

const KIB = 1024
const CHUNK = 4 * KIB
/** More chunks than the mount may have open. */
const IMAGE_BYTES = 2 * KIB * KIB
const DESCRIPTORS_MAX = 600
/** Shared by all writers. */
const PAGES = 128
const WRITERS = 4
const SECTOR_BYTES = 512
const DURATION_MS = 6_000
const DEADLINE_MS = 60_000

/** Says how often the rest of the image was not what it has to be: read whole, again and again, by chance with O_DIRECT. */
const READER = `
import mmap, os, random, select, sys
path, image_path, skip, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
image = open(image_path, 'rb').read(); chance = random.Random(seed); buffer = mmap.mmap(-1, 65536); count = 0
files = [os.open(path, os.O_RDONLY | os.O_DIRECT), os.open(path, os.O_RDONLY)]
while not select.select([sys.stdin], [], [], 0)[0]:
  offset = chance.randrange(skip // 512, len(image) // 512) * 512; size = min(chance.choice([512, 4096, 65536]), len(image) - offset)
  file = chance.choice(files)
  got = os.preadv(file, [memoryview(buffer)[:size]], offset)
  if got != size or buffer[:size] != image[offset:offset + size]: sys.exit(f'{got} bytes at {offset} are wrong')
  if file == files[1]: os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
  count += 1
print('end', count, flush=True)`

const chance = new Chance(testSeed())

describeWith(['root', 'fuse', 'python3'], `everything at once (P2PVM_TEST_SEED=${chance.seed})`, () => {
  it('leaves in every sector what its writer wrote there last, and the rest as it was', async () => {
    const image = bytesOf({ offset: 0, size: IMAGE_BYTES, key: `${chance.seed}/image` })
    const world = new MountWorld(image, CHUNK)
    const processes: LineProcess[] = []
    try {
      const mount = await world.start({ descriptorsMax: DESCRIPTORS_MAX })
      await mount.call('createWorkingCopy', 'vm1', 1)
      const path = world.path('working', 'vm1')
      for (let writer = 0; writer < WRITERS; writer++) processes.push(LineProcess.python('sector-writer.py', path, PAGES, WRITERS, writer, `${chance.seed}/${writer}`))
      processes.push(new LineProcess('python3', ['-c', READER, path, world.imageFile, String(PAGES * 8 * SECTOR_BYTES), chance.seed]))

      const startedMs = performance.now()
      let commits = 0
      for (; performance.now() - startedMs < DURATION_MS; commits++) {
        evictSome(world)
        const fails = chance.below(2) === 0
        await mount.call('set', { failCommits: fails })
        const outcome = await mount.call('commit', 'vm1').catch((error: unknown) => error)
        expect(outcome instanceof Error).toBe(fails)
      }

      const ends = await Promise.all(processes.map(async (one) => await one.finish(DEADLINE_MS)))
      expect(ends.map(({ code, stderr }) => ({ code, stderr }))).toEqual(ends.map(() => ({ code: 0, stderr: '' })))
      const expected = Buffer.from(image)
      ends.slice(0, WRITERS).forEach(({ stdout }, writer) => { written(expected, writer, stdout) })
      console.log(`${ends.map(({ stdout }) => stdout.split(' ')[1]?.trim()).join(', ')} writes and reads, ${commits} seals`)
      const counters = await mount.call('counters') as Record<string, number>
      expect(counters['chunks_closed']).toBeGreaterThan(0)

      await mount.kill('SIGKILL') // what was answered needs no goodbye
      await world.start()
      const copy = join(world.root, 'copy')
      await python('import shutil, sys; shutil.copyfile(sys.argv[1], sys.argv[2])', path, copy)
      const found = readFileSync(copy)
      for (let at = 0; at < IMAGE_BYTES; at += SECTOR_BYTES) {
        if (!found.subarray(at, at + SECTOR_BYTES).equals(expected.subarray(at, at + SECTOR_BYTES))) throw new Error(`sector ${at / SECTOR_BYTES} is wrong after a kill`)
      }
    } finally {
      for (const one of processes) await one.kill()
      world.end()
    }
  }, 2 * DEADLINE_MS)
})

/** As the daemon does it: the mount is not asked. */
function evictSome (world: MountWorld): void {
  const root = join(world.folders.cache, 'chunks')
  mkdirSync(root, { recursive: true }) // nobody may have read anything yet
  for (const shard of readdirSync(root)) {
    if (chance.below(3) > 0) continue
    for (const name of readdirSync(join(root, shard))) if (!name.endsWith('.new')) rmSync(join(root, shard, name), { force: true })
  }
}

/** What a writer says that it wrote last, sector by sector. */
function written (expected: Buffer, writer: number, line: string): void {
  for (const part of line.trim().split(' ').slice(2)) {
    const [sector = 0, number = 0] = part.split(':').map(Number)
    const bytes = Buffer.alloc(16)
    bytes.writeBigUInt64LE(BigInt(number), 0)
    bytes.writeBigUInt64LE(BigInt(writer), 8)
    expected.fill(bytes, sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES)
  }
}
