/**
 * The version manager's peer is killed. Back within ten seconds: import and commit finish. Away for longer: they say so,
 * nothing is lost, what is stored can be read, and machines read and write on.
 */
import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, beforeAll, expect, it } from 'vitest'
import type { CommitResult, ImportResult, WorkingCopyRow } from '../../src/node/control-api.ts'
import type { ErrorDocument } from '../../src/node/error-document.ts'
import { describeWith } from '../harness/capabilities.ts'
import { eventually } from '../harness/eventually.ts'
import { counterOf, LiveFabric, succeed } from '../harness/live-fabric.ts'
import { sha256OfMounted, sha256OfMountedRange, writeRunsMounted } from '../harness/mounted-file.ts'
import { bytesOf, makeImage, randomRuns, sha256Of, writeRuns } from '../harness/random-image.ts'
import { Chance, testSeed } from '../harness/seed.ts'

const MIB = 1024 * 1024
const IMAGE_BYTES = 128 * MIB
const IMAGE_RUNS = { count: 16, bytesEach: 2 * MIB, within: IMAGE_BYTES }
const CHANGED_RUNS = { count: 16, bytesEach: 2 * MIB, within: IMAGE_BYTES }
/** Killed and back within 10 s, as the issue asks, with the time that a start takes. */
const AWAY_MS_MAX = 8_000
/** From the start of a command until its first chunk has left: the process, the socket, the file. */
const UNDER_WAY_DEADLINE_MS = 20_000
/** A command that cannot reach the version manager says so by then. */
const GIVE_UP_MS = 90_000
const EXIT_UNAVAILABLE = 14

const chance = new Chance(testSeed())

describeWith(['root', 'fuse'], `the version manager's peer is killed (P2PVM_TEST_SEED=${chance.seed})`, () => {
  let live: LiveFabric
  let mountpoint: string

  beforeAll(async () => {
    live = await LiveFabric.start({ storage: 4, compute: 2 })
    mountpoint = await live.mount(live.compute(1), 'mnt')
  })

  afterAll(async () => { await live?.close() })

  for (const round of [0, 1]) {
    const draws = chance.fork(`back/${round}`)
    const awayMs = draws.below(AWAY_MS_MAX)
    it(`and is back after ${awayMs} ms: import and commit finish`, async () => {
      const name = `back-${round}`
      const { image, sum } = await anImage(name, draws)
      const imported = await whileAway(awayMs, 0, async () => await succeed<ImportResult>(live.compute(0), 'import', image, '--name', name))
      expect(await live.exportedSum(live.compute(0), `${imported.blob}@${imported.version}`)).toBe(sum)

      const { workingCopy, sum: changedSum } = await aChangedWorkingCopy(name, image, draws)
      const commit = await whileAway(awayMs, 1, async () => await succeed<CommitResult>(live.compute(1), 'commit', workingCopy))
      expect(commit.version).toBe(imported.version + 1)
      expect(await live.exportedSum(live.compute(0), `${commit.blob}@${commit.version}`)).toBe(changedSum)
      expect(await sha256OfMounted(workingCopy)).toBe(changedSum)
    })
  }

  it('and stays away: import and commit exit 14, nothing is lost, and all is well when it is back', async () => {
    const name = 'away'
    const draws = chance.fork(name)
    const { image, sum } = await anImage(name, draws)
    const { blob, version } = await succeed<ImportResult>(live.compute(0), 'import', image, '--name', name)
    const another = await anImage('another', draws.fork('another'))
    const { workingCopy, sum: changedSum } = await aChangedWorkingCopy(name, image, draws)

    // Both under way when it goes, and a third that begins without it.
    const sentBefore = await Promise.all([0, 1].map(sentBytes))
    const committing = live.compute(1).cli('commit', workingCopy)
    const importing = live.compute(0).cli('import', another.image, '--name', 'another')
    await eventually('both send chunks', UNDER_WAY_DEADLINE_MS, async () => {
      const sent = await Promise.all([0, 1].map(sentBytes))
      return sent.every((bytes, index) => bytes > sentBefore[index]!) || undefined
    })
    await live.storage(0).kill('SIGKILL')
    const startedMs = performance.now()
    const outcomes = await Promise.all([committing, importing, live.compute(0).cli('import', another.image, '--name', 'third')])
    const errors = outcomes.map(({ json }) => (json as ErrorDocument).error)
    console.log(`gave up after ${Math.round(performance.now() - startedMs)} ms: ${errors.map(({ message }) => message).join(' | ')}`)
    expect(outcomes.map(({ code }) => code)).toEqual([EXIT_UNAVAILABLE, EXIT_UNAVAILABLE, EXIT_UNAVAILABLE])
    for (const error of errors) expect(error).toMatchObject({ code: 'ERR_UNAVAILABLE', message: expect.stringContaining('version manager') })
    expect(performance.now() - startedMs).toBeLessThan(GIVE_UP_MS)

    expect(await sha256OfMounted(workingCopy)).toBe(changedSum)
    expect(await live.exportedSum(live.compute(0), `${blob}@${version}`)).toBe(sum)
    // Nobody has read the image through this mount yet: its chunks come from the peers that are left.
    const first = randomRuns(draws.fork('image'), IMAGE_RUNS)[0]!
    expect(await sha256OfMountedRange(join(mountpoint, blob, String(version)), first.offset, first.size)).toBe(createHash('sha256').update(bytesOf(first)).digest('hex'))
    const more = randomRuns(draws.fork('more'), CHANGED_RUNS)
    await writeRunsMounted(workingCopy, more)
    await writeRuns(image, more)
    const sumWithMore = await sha256Of(image)
    expect(await sha256OfMounted(workingCopy)).toBe(sumWithMore)

    await live.storage(0).restart()
    await live.whole()
    const commit = await succeed<CommitResult>(live.compute(1), 'commit', workingCopy)
    expect(commit).toMatchObject({ blob })
    expect(commit.version).toBeGreaterThan(version)
    expect(await live.exportedSum(live.compute(0), `${blob}@${commit.version}`)).toBe(sumWithMore)
    const { workingCopies } = await succeed<{ workingCopies: WorkingCopyRow[] }>(live.compute(1), 'working-copy', 'ls')
    expect(workingCopies.find((row) => row.name === name)).toMatchObject({ blob, version: commit.version, dirtyBytes: 0 })
    const late = await succeed<ImportResult>(live.compute(0), 'import', another.image, '--name', 'late')
    expect(await live.exportedSum(live.compute(0), `${late.blob}@${late.version}`)).toBe(another.sum)
  })

  /** Runs `work`; kills the version manager's peer when its first chunk has left the compute peer, and starts it again. */
  async function whileAway<T> (awayMs: number, driverIndex: number, work: () => Promise<T>): Promise<T> {
    const sentBefore = await sentBytes(driverIndex)
    let ended = false
    const running = work().finally(() => { ended = true })
    running.catch(() => {}) // awaited below
    await eventually('the first chunk is sent', UNDER_WAY_DEADLINE_MS, async () => {
      return ended || await sentBytes(driverIndex) > sentBefore || undefined
    })
    const manager = live.storage(0)
    await manager.kill('SIGKILL')
    expect(ended, 'the command had not ended when the peer was killed').toBe(false)
    await delay(awayMs)
    await manager.restart()
    const result = await running
    await live.whole()
    return result
  }

  async function sentBytes (computeIndex: number): Promise<number> {
    return await counterOf(live.compute(computeIndex), 'chunk_bytes_sent_total')
  }

  async function anImage (name: string, draws: Chance): Promise<{ image: string, sum: string }> {
    const image = join(live.folder, `${name}.img`)
    await makeImage(image, IMAGE_BYTES, randomRuns(draws.fork('image'), IMAGE_RUNS))
    return { image, sum: await sha256Of(image) }
  }

  /** A working copy of the named image with changes; they are in `image` too. */
  async function aChangedWorkingCopy (name: string, image: string, draws: Chance): Promise<{ workingCopy: string, sum: string }> {
    await succeed(live.compute(1), 'working-copy', 'create', name, name)
    const workingCopy = join(mountpoint, 'working', name)
    const runs = randomRuns(draws.fork('change'), CHANGED_RUNS)
    await writeRunsMounted(workingCopy, runs)
    await writeRuns(image, runs)
    return { workingCopy, sum: await sha256Of(image) }
  }
})
