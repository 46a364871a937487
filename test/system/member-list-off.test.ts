/** Without the member list every key is placed and found by kad-dht lookups: slower, and the same bytes. */
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import type { CommitResult, ImportResult, VerifyResult } from '../../src/node/control-api.ts'
import { describeWith } from '../harness/capabilities.ts'
import { LiveFabric, succeed } from '../harness/live-fabric.ts'
import { sha256OfMounted, writeRunsMounted } from '../harness/mounted-file.ts'
import { makeImage, randomRuns, sha256Of, writeRuns } from '../harness/random-image.ts'
import { Chance, testSeed } from '../harness/seed.ts'

const MIB = 1024 * 1024
const IMAGE_BYTES = 16 * MIB
const IMAGE_RUNS = { count: 8, bytesEach: 1 * MIB, within: IMAGE_BYTES }
const CHANGED_RUNS = { count: 4, bytesEach: 300_000, within: IMAGE_BYTES }

const chance = new Chance(testSeed())

describeWith(['root', 'fuse'], `--member-list off (P2PVM_TEST_SEED=${chance.seed})`, () => {
  let live: LiveFabric

  beforeAll(async () => { live = await LiveFabric.start({ storage: 5, compute: 2, daemonArgs: ['--member-list', 'off'] }) })
  afterAll(async () => { await live?.close() })

  it('import, export, a mounted read and a commit work as ever', async () => {
    const [importer, machine] = [live.compute(0), live.compute(1)]
    const image = join(live.folder, 'image.img')
    await makeImage(image, IMAGE_BYTES, randomRuns(chance.fork('image'), IMAGE_RUNS))
    const sum = await sha256Of(image)
    const { blob, version, replicas } = await succeed<ImportResult>(importer, 'import', image, '--name', 'image')
    expect(replicas).toMatchObject({ wanted: 3, degradedChunks: 0 })
    expect(await live.exportedSum(machine, 'image')).toBe(sum)

    const mountpoint = await live.mount(machine, 'mnt')
    expect(await sha256OfMounted(join(mountpoint, 'by-name', 'image', '1'))).toBe(sum)
    await succeed(machine, 'working-copy', 'create', 'disk', 'image')
    const workingCopy = join(mountpoint, 'working', 'disk')
    const runs = randomRuns(chance.fork('change'), CHANGED_RUNS)
    await writeRunsMounted(workingCopy, runs)
    await writeRuns(image, runs)
    const commit = await succeed<CommitResult>(machine, 'commit', workingCopy)
    expect(commit).toMatchObject({ blob, version: version + 1 })
    expect(await live.exportedSum(importer, `${blob}@${commit.version}`)).toBe(await sha256Of(image))
    expect(await live.exportedSum(importer, `${blob}@${version}`)).toBe(sum)

    // Everyone finds what everyone placed: each replica is where a lookup by another peer expects it.
    expect(await succeed<VerifyResult>(importer, 'verify', 'image')).toMatchObject({ missing: 0, degraded: 0, corrupt: 0, unreachable: 0 })
  })
})
