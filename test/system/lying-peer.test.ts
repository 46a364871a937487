/**
 * Storage peers whose copies are bad: one that alters what it hands out, one whose disk has rotted. Every read is right
 * nevertheless; the first is found out and avoided, the second's copies are seen by `verify`.
 */
import { open, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import type { ImportResult, VerifyResult } from '../../src/node/control-api.ts'
import { describeWith } from '../harness/capabilities.ts'
import { counterOf, LiveFabric, succeed } from '../harness/live-fabric.ts'
import { type LyingPeer, startLyingPeer } from '../harness/lying-peer.ts'
import { sha256OfMounted } from '../harness/mounted-file.ts'
import { makeImage, randomRuns, sha256Of } from '../harness/random-image.ts'
import { Chance, testSeed } from '../harness/seed.ts'

const MIB = 1024 * 1024
const IMAGE_BYTES = 64 * MIB
const IMAGE_RUNS = { count: 16, bytesEach: 2 * MIB, within: IMAGE_BYTES }
const EXIT_INTEGRITY = 13
/** Gets that a peer has under way when the first lie arrives: 8 MiB that an export fetches ahead, and their hedges. */
const UNDER_WAY_MAX = 64

const chance = new Chance(testSeed())

describeWith(['root', 'fuse'], `storage peers with bad copies (P2PVM_TEST_SEED=${chance.seed})`, () => {
  let live: LiveFabric
  let liar: LyingPeer
  let mountpoint: string

  beforeAll(async () => {
    live = await LiveFabric.start({ storage: 3, compute: 2 })
    liar = await startLyingPeer({
      dataDir: join(live.folder, 'liar'), bootstrap: live.storage(0).addresses, control: join(live.folder, 'liar.sock')
    })
    await live.knows([liar.peerId])
    mountpoint = await live.mount(live.compute(1), 'mnt')
  })

  afterAll(async () => {
    await liar?.kill()
    await live?.close()
  })

  it('a peer that alters what it hands out is found out and avoided, and every read is right', async () => {
    const [first, second] = [await imported('first'), await imported('second')]
    await liar.lie()
    for (const [reader, read] of [
      [live.compute(0), async (name: string) => await live.exportedSum(live.compute(0), name)],
      [live.compute(1), async (name: string) => await sha256OfMounted(join(mountpoint, 'by-name', name, '1'))]
    ] as const) {
      const before = await liar.lies()
      expect(await read('first')).toBe(first.sum)
      const told = await liar.lies() - before
      const foundOut = await counterOf(reader, 'chunk_corrupt_total', { peer: liar.peerId })
      console.log(`${first.chunks} chunks read: ${told} lies told, ${foundOut} found out`)
      expect(foundOut).toBeGreaterThan(0)
      expect(told).toBeLessThanOrEqual(UNDER_WAY_MAX)
      expect(await counterOf(reader, 'chunk_corrupt_total')).toBe(foundOut)

      const heard = await counterOf(reader, 'chunk_bytes_received_total')
      expect(await read('second')).toBe(second.sum)
      expect(await counterOf(reader, 'chunk_bytes_received_total') - heard).toBeGreaterThanOrEqual(second.storedBytes)
      expect(await liar.lies(), 'it is not asked again').toBe(before + told)
    }
  })

  it('copies that have rotted on a disk are never handed out, and verify counts them', async () => {
    const { sum } = await imported('rotten')
    const rotten = await rot(join(live.storage(2).data, 'chunks'))
    expect(rotten).toBeGreaterThan(0)
    expect(await sha256OfMounted(join(mountpoint, 'by-name', 'rotten', '1'))).toBe(sum)
    expect(await live.exportedSum(live.compute(0), 'rotten')).toBe(sum)

    const verified = await live.compute(0).cli('verify', 'rotten')
    expect(verified.code).toBe(EXIT_INTEGRITY)
    expect(verified.json).toMatchObject({ missing: 0 })
    expect((verified.json as VerifyResult).corrupt).toBeGreaterThan(0)
    // A lie is told on the way out; what lies on that peer's disk is good, and so is all that verify saw of the others.
    expect(await counterOf(live.storage(2), 'chunk_quarantined_total')).toBeGreaterThan(0)
  })

  async function imported (name: string): Promise<ImportResult & { sum: string }> {
    const image = join(live.folder, `${name}.img`)
    await makeImage(image, IMAGE_BYTES, randomRuns(chance.fork(name), IMAGE_RUNS))
    return { ...await succeed<ImportResult>(live.storage(0), 'import', image, '--name', name), sum: await sha256Of(image) }
  }
})

/** Flips one bit in the middle of every chunk file under a folder; how many. */
async function rot (folder: string): Promise<number> {
  let flipped = 0
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue
    const file = await open(join(entry.parentPath, entry.name), 'r+')
    try {
      const at = Math.floor((await file.stat()).size / 2)
      const byte = Buffer.alloc(1)
      await file.read(byte, 0, 1, at)
      byte[0]! ^= 0x10
      await file.write(byte, 0, 1, at)
      flipped += 1
    } finally {
      await file.close()
    }
  }
  return flipped
}
