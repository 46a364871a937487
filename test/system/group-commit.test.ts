/**
 * `p2pvm commit --group`: the disks of one machine in one cut, and versions of all of them or of none.
 */
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import type { CommitResult, GroupCommitResult, ImportResult, VersionRow, WorkingCopyRow } from '../../src/node/control-api.ts'
import { describeWith } from '../harness/capabilities.ts'
import { LineProcess } from '../harness/line-process.ts'
import { LiveFabric, succeed } from '../harness/live-fabric.ts'
import { writeRunsMounted } from '../harness/mounted-file.ts'
import { prefixOfWrites } from '../harness/numbered-image.ts'
import { makeImage, randomRuns } from '../harness/random-image.ts'
import { Chance, testSeed } from '../harness/seed.ts'

const MIB = 1024 * 1024
const IMAGE_BYTES = 16 * MIB
const SLOTS = 1024
const COMMITS = 4
const WRITES_BETWEEN = 500
const DEADLINE_MS = 60_000

const chance = new Chance(testSeed())

describeWith(['root', 'fuse', 'python3'], `commits of several working copies (P2PVM_TEST_SEED=${chance.seed})`, () => {
  let live: LiveFabric
  let images: readonly [ImportResult, ImportResult]
  let files: readonly [string, string]

  beforeAll(async () => {
    live = await LiveFabric.start({ storage: 3, compute: 1 })
    await live.mount(live.compute(0), 'mnt')
    files = [join(live.folder, 'data.img'), join(live.folder, 'log.img')]
    for (const file of files) await makeImage(file, IMAGE_BYTES, randomRuns(chance.fork(file), { count: 4, bytesEach: MIB, within: IMAGE_BYTES }))
    images = [await p2pvm('import', files[0], '--name', 'data'), await p2pvm('import', files[1], '--name', 'log')]
  })

  afterAll(async () => { await live?.close() })

  it('are one moment: a write that another disk already had is in no version without it', async () => {
    const paths = [await workingCopy('data-1', 'data'), await workingCopy('log-1', 'log')] as const
    // Each number goes to the first, and when that has it to the second.
    const writer = LineProcess.python('numbered-blocks.py', paths[0], SLOTS, paths[1])
    const groups: Array<{ members: readonly CommitResult[], acknowledgedBefore: number }> = []
    try {
      for (let round = 1; round <= COMMITS; round++) {
        const more = Number(writer.lines.at(-1) ?? 0) + WRITES_BETWEEN
        const acknowledgedBefore = 1 + Number(await writer.line((line) => Number(line) >= more, DEADLINE_MS))
        groups.push({ ...await p2pvm<GroupCommitResult>('commit', '--group', ...paths), acknowledgedBefore })
      }
      expect(await writer.finish(DEADLINE_MS)).toMatchObject({ code: 0, stderr: '' })
    } finally {
      await writer.kill()
    }
    for (const { members: [data, log], acknowledgedBefore } of groups) {
      const [inData, inLog] = [await prefixIn(data!, files[0]), await prefixIn(log!, files[1])]
      console.log(`${acknowledgedBefore} writes acknowledged before, ${inData} and ${inLog} in it; held for ${data!.freezeMs.toFixed(1)} and ${log!.freezeMs.toFixed(1)} ms`)
      expect(inLog).toBeGreaterThanOrEqual(acknowledgedBefore)
      expect([inLog, inLog + 1]).toContain(inData)
    }
  })

  it('are of all or of none, and what could not be committed together can be committed alone', async () => {
    const paths = [await workingCopy('data-2', `data@${images[0].version}`), await workingCopy('log-2', 'log')] as const
    await Promise.all(paths.map(async (path) => { await writeRunsMounted(path, [{ offset: 0, size: MIB, key: 'changed' }]) }))
    const before = [await versions('data'), await versions('log')]
    // The first lies on a version that others have gone on from.
    expect(await live.compute(0).cli('commit', '--group', paths[1], paths[0])).toMatchObject({ json: { error: { code: 'ERR_CONFLICT' } } })
    expect([await versions('data'), await versions('log')]).toEqual(before)
    expect(await p2pvm<CommitResult>('commit', paths[1])).toMatchObject({ version: before[1]! + 1 })
    // Under names of their own they can go together; the one whose file nobody has open is sealed on its files.
    expect(await p2pvm<GroupCommitResult>('commit', '--group', ...paths, '--as', 'data-two', '--as', 'log-two'))
      .toMatchObject({ members: [{ name: 'data-two', path: paths[0] }, { name: 'log-two', path: paths[1] }] })
    expect(await versions('data-two')).toBe(1)
  })

  it('are refused when they make no sense', async () => {
    const path = await workingCopy('data-3', 'data')
    const usage = { json: { error: { code: 'ERR_USAGE' } } }
    expect(await live.compute(0).cli('commit', path, path)).toMatchObject(usage)
    expect(await live.compute(0).cli('commit', '--group', path, path)).toMatchObject(usage)
    expect(await live.compute(0).cli('commit', '--group', path, '--as', 'one', '--as', 'two')).toMatchObject(usage)
  })

  async function p2pvm<T> (...args: string[]): Promise<T> {
    return await succeed<T>(live.compute(0), ...args)
  }

  async function workingCopy (name: string, ref: string): Promise<string> {
    return (await p2pvm<WorkingCopyRow>('working-copy', 'create', name, ref)).path!
  }

  async function versions (image: string): Promise<number> {
    return (await p2pvm<{ versions: VersionRow[] }>('log', image)).versions.length - 1
  }

  async function prefixIn ({ blob, version }: CommitResult, base: string): Promise<number> {
    const path = join(live.folder, 'exported.img')
    await p2pvm('export', `${blob}@${version}`, path)
    try {
      return await prefixOfWrites(path, base, SLOTS)
    } finally {
      await rm(path)
    }
  }
})
