/**
 * The processes that serve a working copy are killed with -9 at chance moments, while blocks are written with fsyncs and now and
 * then a commit is under way: every block that has to be there is, none is torn, and every version that was made is whole.
 */
import { readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, beforeAll, expect, it } from 'vitest'
import type { CommitResult, WorkingCopyRow } from '../../src/node/control-api.ts'
import type { MountEntry } from '../../src/node/mounts.ts'
import { describeWith } from '../harness/capabilities.ts'
import { type BlockRegion, CheckedBlocks } from '../harness/checked-blocks.ts'
import { eventually } from '../harness/eventually.ts'
import { runToEnd } from '../harness/line-process.ts'
import { LiveFabric, succeed } from '../harness/live-fabric.ts'
import { entryOf, killNow, serverOf } from '../harness/mounts.ts'
import { makeImage, randomRuns } from '../harness/random-image.ts'
import { Chance, testSeed } from '../harness/seed.ts'

const KIB = 1024
const MIB = KIB * KIB
const IMAGE_BYTES = 8 * MIB
const IMAGE_RUNS = { count: 4, bytesEach: MIB, within: IMAGE_BYTES }
const REGIONS: readonly BlockRegion[] = [
  { mode: 'direct', offset: 0, blockBytes: 512, slots: 1024, fsyncEvery: 50 },
  { mode: 'direct', offset: 2 * MIB, blockBytes: 4 * KIB, slots: 256, fsyncEvery: 20 },
  { mode: 'buffered', offset: 5 * MIB, blockBytes: 4 * KIB, slots: 256, fsyncEvery: 20 }
]
/** As many rounds as fit, unless it is said how many. */
const BUDGET_MS = 15_000
const ROUNDS = process.env['P2PVM_CRASH_ROUNDS'] === undefined ? undefined : Number(process.env['P2PVM_CRASH_ROUNDS'])
const ROUNDS_MIN = 5
const LIFE_MS_MAX = 400
const DEADLINE_MS = 60_000

/** Which process is killed. A writer goes on when the mount survives it. */
interface Victim {
  readonly name: string
  readonly endsMount: boolean
  readonly kill: (entry: MountEntry) => Promise<void>
}

const VICTIMS: readonly Victim[] = [
  { name: 'FUSE server', endsMount: false, kill: async (entry) => { killNow(await serverOf(entry)) } },
  { name: 'keeper', endsMount: true, kill: async (entry) => { killNow(entry) } },
  {
    name: 'FUSE server and keeper',
    endsMount: true,
    async kill (entry) {
      const server = await serverOf(entry)
      for (const process of [entry, server]) killNow(process)
    }
  }
]

const chance = new Chance(testSeed())

describeWith(['root', 'fuse', 'python3'], `a working copy whose processes are killed (P2PVM_TEST_SEED=${chance.seed})`, () => {
  let live: LiveFabric
  let image: string
  let base: Buffer

  beforeAll(async () => {
    // No server dies too often here.
    live = await LiveFabric.start({ storage: 3, compute: 1, env: { P2PVM_TEST_HOOKS: '1', P2PVM_TEST_CRASHES_MAX: '1000000' } })
    image = join(live.folder, 'original.img')
    await makeImage(image, IMAGE_BYTES, randomRuns(chance.fork('image'), IMAGE_RUNS))
    base = await readFile(image)
  })

  afterAll(async () => { await live?.close() })

  it.each(VICTIMS)('has every block that has to be there, and none torn: $name', async (victim) => {
    const draws = chance.fork(victim.name)
    const peer = live.compute(0)
    const name = victim.name.replaceAll(' ', '-').toLowerCase()
    await succeed(peer, 'import', image, '--name', name)
    const mountpoint = await live.mount(peer, name)
    const { path } = await succeed<WorkingCopyRow>(peer, 'working-copy', 'create', name, name)
    const regions = REGIONS.map((region) => new CheckedBlocks(region, base))
    const startedMs = performance.now()
    let rounds = 0
    let commits = 0
    /** A server whose keeper was killed unmounts in order: until then the folder is taken. */
    const serving = async (first: boolean): Promise<MountEntry> => {
      if (!first && victim.endsMount) {
        await eventually('it can be mounted again', DEADLINE_MS, async () => (await peer.cli('mount', mountpoint, '--detach')).code === 0 || undefined)
      }
      return await entryOf(peer, mountpoint)
    }
    const check = async (where: string): Promise<void> => {
      const found = await copied(path ?? '')
      expect(regions.flatMap((region) => region.faults(found)), where).toEqual([])
    }
    try {
      for (; ROUNDS === undefined ? performance.now() - startedMs < BUDGET_MS : rounds < ROUNDS; rounds++) {
        const where = `${victim.name}, round ${rounds}`
        const entry = await serving(rounds === 0)
        await check(where)

        const region = draws.pick(regions)
        const writer = region.write(path ?? '')
        const takesDaemon = draws.below(4) === 0
        try {
          await writer.line((line) => line.startsWith('w'), DEADLINE_MS)
          await delay(draws.below(LIFE_MS_MAX))
          region.heard(writer.lines)
          const oldest = regions.map((one) => one.oldest)
          const committing = draws.below(3) === 0 ? peer.cli('commit', path ?? '') : undefined
          // Some are over by then, others in the middle of it.
          if (committing !== undefined) await (draws.below(2) === 0 ? committing : delay(draws.below(2 * LIFE_MS_MAX)))
          if (takesDaemon) await peer.kill('SIGKILL')
          await victim.kill(entry)
          if (takesDaemon) await peer.start()
          const { stdout } = victim.endsMount ? await writer.ended(DEADLINE_MS) : await writer.finish(DEADLINE_MS)
          region.heard(stdout.split('\n'))
          const commit = await committing
          if (commit?.code !== 0) continue
          commits++
          const { blob, version } = commit.json as CommitResult
          const bytes = await exported(`${blob}@${version}`)
          expect(regions.flatMap((one, at) => one.faultsOfVersion(bytes, oldest[at] ?? [])), `${where}: ${blob}@${version}`).toEqual([])
        } finally {
          await writer.kill()
        }
      }
      await serving(rounds === 0)
      await check(`${victim.name}, after ${rounds} rounds`)
    } finally {
      await peer.cli('umount', mountpoint, '--force') // also a dead one
    }
    console.log(`${rounds} kills of the ${victim.name}, ${commits} commits that were answered`)
    expect(rounds).toBeGreaterThanOrEqual(ROUNDS ?? ROUNDS_MIN)
  }, DEADLINE_MS + BUDGET_MS + (ROUNDS ?? ROUNDS_MIN) * DEADLINE_MS)

  async function copied (path: string): Promise<Buffer> {
    const copy = join(live.folder, 'copied.img')
    expect(await runToEnd('cp', [path, copy], DEADLINE_MS)).toMatchObject({ code: 0, stderr: '' })
    return await taken(copy)
  }

  async function exported (ref: string): Promise<Buffer> {
    const path = join(live.folder, 'exported.img')
    await succeed(live.compute(0), 'export', ref, path)
    return await taken(path)
  }
})

async function taken (path: string): Promise<Buffer> {
  const bytes = await readFile(path)
  await rm(path)
  return bytes
}
