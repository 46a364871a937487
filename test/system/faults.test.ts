/**
 * A storage peer is killed, or falls silent, at a random moment of import, read and commit. Whatever the moment: every
 * operation finishes, and every byte is right.
 */
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, beforeAll, expect, it } from 'vitest'
import type { ImportResult } from '../../src/node/control-api.ts'
import { describeWith } from '../harness/capabilities.ts'
import { LiveFabric, succeed } from '../harness/live-fabric.ts'
import { sha256OfMounted, writeRunsMounted } from '../harness/mounted-file.ts'
import { makeImage, randomRuns, sha256Of, writeRuns } from '../harness/random-image.ts'
import { Chance, testSeed } from '../harness/seed.ts'

const ROUNDS = 20
const MIB = 1024 * 1024
const IMAGE_BYTES = 256 * MIB
/** Fresh in each round: 64 MiB that no peer has, so that nothing is spared by being there already. */
const IMAGE_RUNS = { count: 16, bytesEach: 4 * MIB, within: IMAGE_BYTES }
const CHANGED_RUNS = { count: 8, bytesEach: 1 * MIB, within: IMAGE_BYTES }
/** storage[0] is the version manager's peer: its faults are in version-manager-down.test.ts. */
const STORAGE_PEERS = 5
/** The machine has other work, more or less of it: how long a step takes is told by the last rounds. */
const PACE_ROUNDS = 3

const STEPS = ['import', 'read', 'change', 'commit', 'export of the import', 'export of the commit'] as const
type Step = (typeof STEPS)[number]
type Durations = Record<Step, number>
/** Told of each step as it begins, with its end; the step is over when both are. */
type Watch = (step: Step, running: Promise<unknown>) => Promise<void>

const chance = new Chance(testSeed())

describeWith(['root', 'fuse'], `storage peers that fail (P2PVM_TEST_SEED=${chance.seed})`, () => {
  let live: LiveFabric
  let mountpoint: string
  /** Of the rounds so far. */
  const pace: Durations[] = []

  beforeAll(async () => {
    live = await LiveFabric.start({ storage: STORAGE_PEERS, compute: 2 })
    mountpoint = await live.mount(live.compute(1), 'mnt')
    const calm = await round('calm', chance.fork('calm'), async () => {})
    console.log(`without a fault: ${told(calm)}`)
    pace.push(calm)
  })

  afterAll(async () => { await live?.close() })

  for (let index = 0; index < ROUNDS; index++) {
    const draws = chance.fork(index)
    const signal = draws.pick(['SIGKILL', 'SIGSTOP'] as const)
    const victimIndex = 1 + draws.below(STORAGE_PEERS - 1)
    const at = draws.unit()
    it(`round ${index}: ${signal} of storage peer ${victimIndex} at ${(100 * at).toFixed(0)} % of the work`, async () => {
      const victim = live.storage(victimIndex)
      const hit = momentOf(pace.slice(-PACE_ROUNDS), at)
      try {
        const durations = await round(`round-${index}`, draws, async (step, running) => {
          if (step !== hit.step) return
          // Where the step is faster than it was, the fault comes at its end.
          const ended = await Promise.race([delay(hit.afterMs, false), running.then(() => true, () => true)])
          await victim.kill(signal)
          console.log(`round ${index}: ${signal} of storage peer ${victimIndex} ${hit.afterMs.toFixed(0)} ms into ${step}${ended ? ', which had just ended' : ''}`)
        })
        console.log(`round ${index}: ${told(durations)}`)
        pace.push(durations)
      } finally {
        await (signal === 'SIGKILL' ? victim.restart() : victim.kill('SIGCONT'))
      }
      await live.whole()
    })
  }

  async function round (name: string, draws: Chance, watch: Watch): Promise<Durations> {
    const durations: Partial<Durations> = {}
    async function step<T> (what: Step, work: () => Promise<T>): Promise<T> {
      const startedMs = performance.now()
      const running = work()
      const [result] = await Promise.all([running, watch(what, running)])
      durations[what] = performance.now() - startedMs
      return result
    }

    const image = join(live.folder, `${name}.img`)
    await makeImage(image, IMAGE_BYTES, randomRuns(draws.fork('image'), IMAGE_RUNS))
    const imageSum = await sha256Of(image)
    const [importer, machine] = [live.compute(0), live.compute(1)]
    const { blob, version } = await step('import', async () => await succeed<ImportResult>(importer, 'import', image, '--name', name))
    // From here on the image is the model of the working copy.
    const runs = randomRuns(draws.fork('change'), CHANGED_RUNS)
    await writeRuns(image, runs)
    const changedSum = await sha256Of(image)
    await rm(image)

    expect(await step('read', async () => await sha256OfMounted(join(mountpoint, 'by-name', name, String(version))))).toBe(imageSum)
    const workingCopy = join(mountpoint, 'working', name)
    await step('change', async () => {
      await succeed(machine, 'working-copy', 'create', name, `${name}@${version}`)
      await writeRunsMounted(workingCopy, runs)
    })
    const commit = await step('commit', async () => await succeed<{ blob: string, version: number }>(machine, 'commit', workingCopy))
    expect(commit.blob).toBe(blob)
    expect(await step('export of the import', async () => await live.exportedSum(live.compute(0), `${blob}@${version}`))).toBe(imageSum)
    expect(await step('export of the commit', async () => await live.exportedSum(live.compute(0), `${blob}@${commit.version}`))).toBe(changedSum)
    return durations as Durations
  }
})

/** Where a share of all the work is, when each step takes as long as in the fastest of these rounds. */
function momentOf (rounds: readonly Durations[], share: number): { step: Step, afterMs: number } {
  const expected = STEPS.map((step) => ({ step, ms: Math.min(...rounds.map((durations) => durations[step])) }))
  let leftMs = share * expected.reduce((sum, { ms }) => sum + ms, 0)
  for (const { step, ms } of expected) {
    if (leftMs < ms) return { step, afterMs: leftMs }
    leftMs -= ms
  }
  throw new Error(`not a share: ${share}`)
}

function told (durations: Durations): string {
  return STEPS.map((step) => `${step} ${(durations[step] / 1000).toFixed(1)} s`).join(', ')
}
