/** Random operations on a mounted working copy, compared with a file in memory (`fsx.ts`). */
import { expect, it } from 'vitest'
import { Fsx, fsxImage } from '../harness/fsx.ts'
import { MountWorld } from '../harness/mount-process.ts'
import { mountSuite } from '../harness/mount-suite.ts'
import { Chance, testSeed } from '../harness/seed.ts'

const CHUNK = 64 * 1024
const OPERATIONS = Number(process.env['P2PVM_FSX_OPERATIONS'] ?? 3000)
const DEADLINE_MS = 60_000 + OPERATIONS * 30

const chance = new Chance(testSeed())

mountSuite(`random operations (P2PVM_TEST_SEED=${chance.seed})`, (driver) => {
  it(`leave in the file what they leave in memory, ${OPERATIONS} of them, and in its versions`, async () => {
    const draws = chance.fork(driver.name)
    const image = fsxImage(draws)
    const world = new MountWorld(image, CHUNK, driver.name)
    let fsx: Fsx | undefined
    try {
      const mount = await world.start()
      await mount.call('createWorkingCopy', 'vm1', 1)
      fsx = new Fsx(world, mount, image, draws, { lacks: driver.fallocate ? [] : ['punch', 'zero'] })
      const { operations, commits, mounts } = await fsx.run(OPERATIONS)
      console.log(`${driver.name}: ${operations} operations, ${commits} commits, ${mounts} mounts`)
      expect(commits).toBeGreaterThan(1)
    } finally {
      await fsx?.end()
      world.end()
    }
  }, DEADLINE_MS)
})
