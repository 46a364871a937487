/**
 * A machine reads an image that is six times as large as the cache of its peer, twice, through a mount that has few files
 * open, with a restart of the daemon in between: every byte is right, and the cache keeps to its bound all the while.
 */
import { execFile } from 'node:child_process'
import { mkdir, readdir, stat } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, it } from 'vitest'
import type { Status } from '../../src/node/control-api.ts'
import { dataDirAt } from '../../src/node/data-dir.ts'
import { describeWith } from '../harness/capabilities.ts'
import { eventually } from '../harness/eventually.ts'
import { counterOf, LiveFabric, succeed } from '../harness/live-fabric.ts'
import { sha256OfMounted } from '../harness/mounted-file.ts'
import { makeImage, randomRuns, sha256Of } from '../harness/random-image.ts'
import { Chance, testSeed } from '../harness/seed.ts'

const MIB = 1024 * 1024
const BOUND = 8 * MIB
const IMAGE_BYTES = 48 * MIB
const CHUNK = 256 * 1024
/** What the kernel reads ahead for one reader, being fetched or just handed to the mount, and the unlinks of a pass. */
const ON_THEIR_WAY = 4 * MIB
/** A mount leaves 512 to others: of the 192 chunks of the image it keeps at most 88 open. */
const DESCRIPTORS = 600
const SETTLED_DEADLINE_MS = 10_000
const READ_DEADLINE_MS = 120_000

const run = promisify(execFile)
const chance = new Chance(testSeed())

describeWith(['root', 'fuse'], `a small cache (P2PVM_TEST_SEED=${chance.seed})`, () => {
  let live: LiveFabric
  let cache: string

  beforeAll(async () => {
    live = await LiveFabric.start({ storage: 2, compute: 1, daemonArgs: ['--cache-size', String(BOUND)] })
    cache = dataDirAt(live.compute(0).data).cache
  })
  afterAll(async () => { await live?.close() })

  it('serves an image that is larger than it, and keeps to its bound', async () => {
    const image = join(live.folder, 'disk.img')
    await makeImage(image, IMAGE_BYTES, randomRuns(chance, { count: 1, bytesEach: IMAGE_BYTES, within: IMAGE_BYTES }))
    const sum = await sha256Of(image)
    const peer = live.compute(0)
    await succeed(peer, 'import', image, '--name', 'disk')
    const mountpoint = await mountWithFewDescriptors(live)
    const mounted = join(mountpoint, 'by-name', 'disk', '1')
    const watch = watchBytesIn(cache)
    try {
      expect(await sha256OfMounted(mounted)).toBe(sum)
      expect(await counterOf(peer, 'cache_evictions_total')).toBeGreaterThan((IMAGE_BYTES - BOUND) / CHUNK - 1)
      const before = await settled()

      await peer.restart()
      const after = (await succeed<Status>(peer, 'status')).cache
      expect(after).toEqual(before)

      expect(await sha256PastPageCache(mounted)).toBe(sum)
      // What the mount had neither open nor found in the cache was fetched again, and something else went for it.
      expect(await counterOf(peer, 'cache_evicted_bytes_total')).toBeGreaterThan(IMAGE_BYTES / 4)
      await settled()
    } finally {
      const most = await watch.stop()
      console.log(`at most ${(most / MIB).toFixed(2)} MiB in a cache of ${BOUND / MIB} MiB`)
      expect(most).toBeGreaterThan(BOUND / 2)
      expect(most).toBeLessThanOrEqual(BOUND + ON_THEIR_WAY)
    }
  })

  /** What the peer says of its cache, when that is what is on disk, and within the bound. */
  async function settled (): Promise<Status['cache']> {
    const { answer } = await eventually('the cache is within its bound', SETTLED_DEADLINE_MS, async () => {
      const { cache: said } = await succeed<Status>(live.compute(0), 'status')
      expect(said?.bytesMax).toBe(BOUND)
      return said !== null && said.bytes <= BOUND && said.bytes === await bytesIn(cache) ? said : undefined
    })
    return answer
  }
})

/** Detached; ended with its peer. */
async function mountWithFewDescriptors (live: LiveFabric): Promise<string> {
  const mountpoint = join(live.folder, 'mnt')
  await mkdir(mountpoint)
  const program = resolve(import.meta.dirname, '..', '..', 'bin', 'p2pvm')
  await run('bash', ['-c', 'ulimit -n "$1" && exec "$2" mount "$3" --detach', 'bash', String(DESCRIPTORS), program, mountpoint], {
    env: { ...process.env, P2PVM_CONTROL: live.compute(0).control }, timeout: READ_DEADLINE_MS, killSignal: 'SIGKILL'
  })
  return mountpoint
}

async function sha256PastPageCache (path: string): Promise<string> {
  const { stdout } = await run('bash', ['-o', 'pipefail', '-c', 'dd if="$1" iflag=direct bs=1M status=none | sha256sum', 'bash', path], { timeout: READ_DEADLINE_MS, killSignal: 'SIGKILL' })
  return stdout.slice(0, 64)
}

/** Looks again and again, until it is stopped: the most that it has seen. */
function watchBytesIn (folder: string): { stop: () => Promise<number> } {
  let stopped = false
  const watching = (async () => {
    let most = 0
    while (!stopped) {
      most = Math.max(most, await bytesIn(folder))
      await delay(5)
    }
    return most
  })()
  return {
    stop: async () => {
      stopped = true
      return await watching
    }
  }
}

async function bytesIn (folder: string): Promise<number> {
  const files = (await readdir(folder, { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile())
  const sizes = await Promise.all(files.map(async (file) => {
    return await stat(join(file.parentPath, file.name)).then(({ size }) => size, () => 0) // evicted since
  }))
  return sizes.reduce((sum, size) => sum + size, 0)
}
