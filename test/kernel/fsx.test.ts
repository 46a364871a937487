/** Random operations on a mounted working copy, compared with a file in memory (`fsx.ts`). */
import { describe, expect, it } from 'vitest'
import { describeWith } from '../harness/capabilities.ts'
import { Fsx, fsxImage, type FsxDriver } from '../harness/fsx.ts'
import { MountWorld } from '../harness/mount-process.ts'
import { Chance, testSeed } from '../harness/seed.ts'

const CHUNK = 64 * 1024
const OPERATIONS = Number(process.env['P2PVM_FSX_OPERATIONS'] ?? 5000)
const DEADLINE_MS = 60_000 + OPERATIONS * 30

const DRIVERS: readonly FsxDriver[] = [
  { name: '/dev/fuse', start: async (world) => await world.start(), lacks: [] }
]

const chance = new Chance(testSeed())

describeWith(['root', 'fuse', 'python3'], `random operations (P2PVM_TEST_SEED=${chance.seed})`, () => {
  describe.each(DRIVERS)('over $name', (driver) => {
    it(`leave in the file what they leave in memory, ${OPERATIONS} of them, and in its versions`, async () => {
      const draws = chance.fork(driver.name)
      const image = fsxImage(draws)
      const world = new MountWorld(image, CHUNK)
      let fsx: Fsx | undefined
      try {
        const mount = await driver.start(world)
        await mount.call('createWorkingCopy', 'vm1', 1)
        fsx = new Fsx(driver, world, mount, image, draws)
        const { operations, commits, mounts } = await fsx.run(OPERATIONS)
        console.log(`${operations} operations, ${commits} commits, ${mounts} mounts`)
        expect(commits).toBeGreaterThan(1)
      } finally {
        await fsx?.end()
        world.end()
      }
    }, DEADLINE_MS)
  })
})
