/**
 * The FUSE server's main thread is not in the way of what is local: cached reads go on while it is blocked. And when it throws,
 * the server ends, the next one takes over, and who has a file open notices a pause.
 */
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import type { ImportResult } from '../../src/node/control-api.ts'
import { requestJson } from '../../src/node/http-json.ts'
import type { MountEntry } from '../../src/node/mounts.ts'
import { describeWith } from '../harness/capabilities.ts'
import { eventually } from '../harness/eventually.ts'
import { LineProcess } from '../harness/line-process.ts'
import { LiveFabric, succeed } from '../harness/live-fabric.ts'
import { sha256OfMounted } from '../harness/mounted-file.ts'
import { entryOf, serverOf } from '../harness/mounts.ts'
import { makeImage, randomRuns, sha256Of } from '../harness/random-image.ts'
import { Chance, testSeed } from '../harness/seed.ts'

const MIB = 1024 * 1024
const IMAGE_BYTES = 16 * MIB
const PAGES = 512
const DEADLINE_MS = 30_000
const BLOCKED_MS = 2000
/** A reader that had to wait for the main thread would pause for BLOCKED_MS; one that is scheduled away pauses for less than this. */
const PAUSE_MS_MAX = BLOCKED_MS / 2

const chance = new Chance(testSeed())

describeWith(['root', 'fuse', 'python3'], 'the main thread of a mount', () => {
  let live: LiveFabric
  let image: string
  let original: ImportResult

  beforeAll(async () => {
    live = await LiveFabric.start({ storage: 1, compute: 1, env: { P2PVM_TEST_HOOKS: '1' } })
    image = join(live.folder, 'original.img')
    await makeImage(image, IMAGE_BYTES, randomRuns(chance.fork('image'), { count: 1, bytesEach: IMAGE_BYTES - 4096, within: IMAGE_BYTES }))
    original = await succeed<ImportResult>(live.compute(0), 'import', image, '--name', 'original')
    await succeed(live.compute(0), 'working-copy', 'create', 'machine', 'original')
  })

  afterAll(async () => { await live?.close() })

  for (const kind of ['version', 'working copy'] as const) {
    it(`cached reads of a ${kind} go on while it is blocked for two seconds`, async () => {
      const { mountpoint, entry } = await mounted(`blocked-${kind.replace(' ', '-')}`)
      const reader = LineProcess.python('timed-reads.py', pathOf(kind, mountpoint), PAGES)
      try {
        await reader.line((line) => line === 'ready', DEADLINE_MS)
        await reader.line((line) => line !== 'ready', DEADLINE_MS)
        const startMs = nowMs()
        await requestJson(entry.socket, 'POST', '/v1/test/block', { body: { ms: BLOCKED_MS }, deadlineMs: DEADLINE_MS })
        // Answered by the main thread: it is free again.
        await requestJson(entry.socket, 'POST', '/v1/test/block', { body: { ms: 0 }, deadlineMs: DEADLINE_MS })
        const endMs = nowMs()
        expect(endMs - startMs).toBeGreaterThanOrEqual(BLOCKED_MS)
        await reader.line((line) => Number(line) > endMs, DEADLINE_MS)

        const reads = reader.lines.map(Number).filter((ms) => ms >= startMs)
        const pauses = reads.map((ms, at) => ms - (reads[at - 1] ?? startMs))
        console.log(`${reads.length} reads in ${(endMs - startMs).toFixed(0)} ms, the longest pause ${Math.max(...pauses).toFixed(1)} ms`)
        expect(Math.max(...pauses)).toBeLessThan(PAUSE_MS_MAX)
        expect(await reader.finish(DEADLINE_MS)).toMatchObject({ code: 0 })
      } finally {
        await reader.kill()
      }
      await succeed(live.compute(0), 'umount', mountpoint)
    })

    it(`when it throws while a ${kind} is open, another server answers the next read`, async () => {
      const { mountpoint, entry } = await mounted(`thrown-${kind.replace(' ', '-')}`)
      const { pid } = await serverOf(entry)
      const reader = LineProcess.python('timed-reads.py', pathOf(kind, mountpoint), PAGES)
      try {
        await reader.line((line) => line === 'ready', DEADLINE_MS)
        // The answer may still get out, or not.
        await requestJson(entry.socket, 'POST', '/v1/test/throw', { body: {}, deadlineMs: DEADLINE_MS })
          .catch((error: unknown) => { expect(error).toMatchObject({ code: 'ERR_UNAVAILABLE' }) })
        await eventually('there is another server', DEADLINE_MS, async () => (await serverOf(entry)).pid !== pid || undefined)
        const afterMs = nowMs()
        await reader.line((line) => Number(line) > afterMs, DEADLINE_MS)
        expect(await reader.finish(DEADLINE_MS)).toMatchObject({ code: 0, stderr: '' })
      } finally {
        await reader.kill()
      }
      expect(await sha256OfMounted(pathOf(kind, mountpoint))).toBe(await sha256Of(image))
      await succeed(live.compute(0), 'umount', mountpoint)
    })
  }

  async function mounted (name: string): Promise<{ mountpoint: string, entry: MountEntry }> {
    const mountpoint = await live.mount(live.compute(0), name)
    const entry = await entryOf(live.compute(0), mountpoint)
    return { mountpoint, entry }
  }

  function pathOf (kind: 'version' | 'working copy', mountpoint: string): string {
    return kind === 'version' ? join(mountpoint, 'by-name', 'original', String(original.version)) : join(mountpoint, 'working', 'machine')
  }
})

/** The clock of timed-reads.py: CLOCK_MONOTONIC. */
function nowMs (): number {
  return Number(process.hrtime.bigint()) / 1e6
}
