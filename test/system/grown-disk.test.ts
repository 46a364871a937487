/** What a hypervisor does to a disk file, over a fabric: it grows, is punched, and is committed; another peer has the bytes. */
import { execFile } from 'node:child_process'
import { open, truncate } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, it } from 'vitest'
import type { CommitResult } from '../../src/node/control-api.ts'
import { describeWith } from '../harness/capabilities.ts'
import { LiveFabric, succeed } from '../harness/live-fabric.ts'
import { sha256OfMounted, writeRunsMounted } from '../harness/mounted-file.ts'
import { makeImage, randomRuns, sha256Of, writeRuns } from '../harness/random-image.ts'
import { Chance, testSeed } from '../harness/seed.ts'

const MIB = 1024 * 1024
/** Its last chunk is short. */
const IMAGE_BYTES = 8 * MIB + 5000
const GROWN_BYTES = 21 * MIB
const IMAGE_RUNS = { count: 6, bytesEach: 1 * MIB, within: IMAGE_BYTES }
const CHANGED_RUNS = { count: 6, bytesEach: 300_000, within: GROWN_BYTES }
const PUNCHED = { offset: 3 * MIB - 700, length: 2 * MIB }
const COMMAND_DEADLINE_MS = 60_000

const chance = new Chance(testSeed())
const run = promisify(execFile)

describeWith(['root', 'fuse'], `a disk that grows (P2PVM_TEST_SEED=${chance.seed})`, () => {
  let live: LiveFabric

  beforeAll(async () => { live = await LiveFabric.start({ storage: 3, compute: 2 }) })
  afterAll(async () => { await live?.close() })

  it('is committed as it is then, and the versions before it are what they were', async () => {
    const [machine, other] = [live.compute(0), live.compute(1)]
    const image = join(live.folder, 'image.img')
    await makeImage(image, IMAGE_BYTES, randomRuns(chance.fork('image'), IMAGE_RUNS))
    const sums = [await sha256Of(image)]
    await succeed(machine, 'import', image, '--name', 'image')
    const mountpoint = await live.mount(machine, 'mnt')
    await succeed(machine, 'working-copy', 'create', 'disk', 'image')
    const disk = join(mountpoint, 'working', 'disk')
    const command = async (name: string, ...args: string[]): Promise<void> => { await run(name, args, { timeout: COMMAND_DEADLINE_MS, killSignal: 'SIGKILL' }) }

    await command('truncate', '-s', String(GROWN_BYTES), disk)
    await truncate(image, GROWN_BYTES)
    const runs = randomRuns(chance.fork('change'), CHANGED_RUNS)
    await writeRunsMounted(disk, runs)
    await writeRuns(image, runs)
    await command('fallocate', '--punch-hole', '--offset', String(PUNCHED.offset), '--length', String(PUNCHED.length), disk)
    const file = await open(image, 'r+')
    await file.write(Buffer.alloc(PUNCHED.length), 0, PUNCHED.length, PUNCHED.offset)
    await file.close()
    sums.push(await sha256Of(image))
    expect(await sha256OfMounted(disk)).toBe(sums[1])
    expect(await succeed<CommitResult>(machine, 'commit', disk)).toMatchObject({ version: 2 })
    expect(await succeed(other, 'info', 'image')).toMatchObject({ version: 2, size: GROWN_BYTES })

    await command('truncate', '-s', String(GROWN_BYTES + 100), disk)
    await truncate(image, GROWN_BYTES + 100)
    sums.push(await sha256Of(image))
    expect(await succeed<CommitResult>(machine, 'commit', disk, '--as', 'larger')).toMatchObject({ name: 'larger' })
    expect(await succeed(other, 'info', 'larger')).toMatchObject({ size: GROWN_BYTES + 100 })
    expect(await sha256OfMounted(disk)).toBe(sums[2])

    for (const [index, ref] of ['image@1', 'image@2', 'larger'].entries()) expect(await live.exportedSum(other, ref), ref).toBe(sums[index])
  })
})
