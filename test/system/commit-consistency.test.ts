/**
 * A commit is a cut: while a process writes on, the new version holds exactly a prefix of its writes, with all that were
 * acknowledged before the call. And what a working copy is through the control primitives: its path stays, its neighbours
 * and the version that it came from do not see it.
 */
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect, it } from 'vitest'
import type { CloneResult, CommitResult, ImportResult, VersionRow, WorkingCopyRow } from '../../src/node/control-api.ts'
import { accountIn, snapshotIn } from '../harness/appended-blocks.ts'
import { describeWith } from '../harness/capabilities.ts'
import { eventually } from '../harness/eventually.ts'
import { LineProcess } from '../harness/line-process.ts'
import { LiveFabric, succeed } from '../harness/live-fabric.ts'
import { sha256OfMounted, writeRunsMounted } from '../harness/mounted-file.ts'
import { BLOCK_BYTES, prefixOfWrites } from '../harness/numbered-image.ts'
import { makeImage, randomRuns, type Run, sha256Of, writeRuns } from '../harness/random-image.ts'
import { Chance, testSeed } from '../harness/seed.ts'

const MIB = 1024 * 1024
const IMAGE_BYTES = 64 * MIB
const IMAGE_RUNS = { count: 8, bytesEach: 2 * MIB, within: IMAGE_BYTES }
/** 16 MiB of the image: the writer comes round again while commits upload, and overwrites what was sealed. */
const SLOTS = 4096
const COMMITS = 5
/** Between two commits, so that each has something new. */
const WRITES_BETWEEN = 1500
const DEADLINE_MS = 60_000
const INCLUDE = fileURLToPath(new URL('../../include', import.meta.url))
/** In the overlay when the first commit of an appending writer comes: 1024 to see what a large one costs. */
const APPENDED_MIB = Number(process.env['P2PVM_APPENDED_MIB'] ?? 256)
const APPEND_DEADLINE_MS = 300_000
/** Blocks: what a second or so writes slowly, so that the kernel has much that it has not written back when a commit comes. */
const FSYNC_EVERY = 1024
/** Between two writes, so that the file lasts for a commit. */
const SLOWLY_MS = 0.5

const chance = new Chance(testSeed())

describeWith(['root', 'fuse', 'python3', 'cc'], `commit and clone of a working copy (P2PVM_TEST_SEED=${chance.seed})`, () => {
  let live: LiveFabric
  let mountpoint: string
  let image: string
  let imageSum: string
  let original: ImportResult

  beforeAll(async () => {
    live = await LiveFabric.start({ storage: 3, compute: 1 })
    mountpoint = await live.mount(live.compute(0), 'mnt')
    image = join(live.folder, 'original.img')
    await makeImage(image, IMAGE_BYTES, randomRuns(chance.fork('image'), IMAGE_RUNS))
    imageSum = await sha256Of(image)
    original = await p2pvm<ImportResult>('import', image, '--name', 'original')
  })

  afterAll(async () => { await live?.close() })

  it(`holds a prefix of the writes, with all acknowledged before the call, ${COMMITS} times while a process writes on`, async () => {
    const { path } = await workingCopy('numbered')
    const writer = LineProcess.python('numbered-blocks.py', path, SLOTS)
    const commits: Array<CommitResult & { acknowledgedBefore: number, acknowledgedAfter: number }> = []
    try {
      for (let round = 1; round <= COMMITS; round++) {
        const more = (commits.at(-1)?.acknowledgedAfter ?? 0) + WRITES_BETWEEN
        const acknowledgedBefore = 1 + Number(await writer.line((line) => Number(line) >= more, DEADLINE_MS))
        const commit = await p2pvm<CommitResult>('commit', path, '--message', `cut ${round}`)
        commits.push({ ...commit, acknowledgedBefore, acknowledgedAfter: 1 + Number(writer.lines.at(-1)) })
      }
      expect(await writer.finish(DEADLINE_MS)).toMatchObject({ code: 0, stderr: '' })
    } finally {
      await writer.kill()
    }
    const written = 1 + Number(writer.lines.at(-2))

    let before = 0
    for (const { blob, version, acknowledgedBefore, acknowledgedAfter, freezeMs } of commits) {
      const prefix = await exported(`${blob}@${version}`, async (path) => await prefixOfWrites(path, image, SLOTS))
      console.log(`version ${version}: ${acknowledgedBefore} writes acknowledged before, ${prefix} in it, ${acknowledgedAfter} after; held for ${freezeMs.toFixed(1)} ms`)
      expect(blob).toBe(original.blob)
      expect(prefix).toBeGreaterThanOrEqual(acknowledgedBefore)
      // One more may have been delivered and not yet reported.
      expect(prefix).toBeLessThanOrEqual(acknowledgedAfter + 1)
      expect(prefix).toBeGreaterThan(before)
      before = prefix
    }
    expect(await copied(path, async (copy) => await prefixOfWrites(copy, image, SLOTS))).toBe(written)
    expect(await exported(`original@${original.version}`, sha256Of)).toBe(imageSum)
    expect((await p2pvm<{ versions: VersionRow[] }>('log', 'original')).versions.slice(-COMMITS).map(({ message }) => message))
      .toEqual(commits.map((_, index) => `cut ${index + 1}`))
  })

  // Buffered, the fsyncs between cost most of the time, and a smaller overlay shows the same.
  it.each([['direct', APPENDED_MIB], ['buffered', APPENDED_MIB / 4]] as const)('holds what was appended before the call, and a prefix: %s, with %d MiB in the overlay', async (mode, mib) => {
    const size = mib * MIB * 5 / 4
    const log = join(live.folder, `${mode}.img`)
    const account = join(live.folder, `${mode}.account`)
    await makeImage(log, size, [])
    await p2pvm('import', log, '--name', `log-${mode}`)
    const { path } = await workingCopy(`log-${mode}`, `log-${mode}`)
    const writer = LineProcess.python('append-blocks.py', path, account, mode === 'buffered' ? FSYNC_EVERY : 0, mode)
    const blocks = size / BLOCK_BYTES
    const at = (share: number): number => Math.floor(blocks * share)
    /** A commit when the writer is past `from`, while it goes on slowly; it is at `to` when this returns. */
    const cut = async (from: number, to: number): Promise<void> => {
      writer.send(`${from} 0`)
      await writer.line((line) => line.startsWith(`at ${from} `), APPEND_DEADLINE_MS)
      writer.send(`${to} ${SLOWLY_MS}`)
      await eventually(`${from} blocks`, APPEND_DEADLINE_MS, async () => (await accountIn(account)).returned > from || undefined)
      const before = await accountIn(account)
      const commit = await p2pvm<CommitResult>('commit', path)
      const after = await accountIn(account)
      writer.send(`${to} 0`)
      const [, , longestMs] = (await writer.line((line) => line.startsWith(`at ${to} `), APPEND_DEADLINE_MS)).split(' ')
      const { prefix, end } = await exported(`${commit.blob}@${commit.version}`, snapshotIn)
      console.log(`${mode}: ${before.returned} returned before, ${prefix} in a row in version ${commit.version}, ${end} the last, ${after.returned} after; longest write ${longestMs} ms, held for ${commit.freezeMs.toFixed(1)} ms`)
      expect(prefix).toBeGreaterThanOrEqual(before.returned)
      expect(end).toBeLessThanOrEqual(after.returned + 1)
      // With fsyncs: nothing is there of what was written after one, when something from before it is not.
      expect(end).toBeLessThanOrEqual(mode === 'direct' ? prefix : (Math.floor(prefix / FSYNC_EVERY) + 1) * FSYNC_EVERY)
    }
    try {
      await cut(at(0.75), at(0.85))
      await cut(at(0.86), at(0.92))
      await cut(at(0.93), at(1))
      expect(await writer.finish(DEADLINE_MS)).toMatchObject({ code: 0, stderr: '' })
      expect(await copied(path, snapshotIn)).toEqual({ prefix: blocks, end: blocks })
    } finally {
      await writer.kill()
    }
  })

  it('lets two working copies of one version diverge, and leaves the version as it was', async () => {
    const copies = await Promise.all(['left', 'right'].map(async (name) => {
      const copy = await workingCopy(name)
      const runs = changes(name)
      await writeRunsMounted(copy.path, runs)
      return { ...copy, sum: await sumAfter(runs) }
    }))
    for (const { path, sum } of copies) expect(await sha256OfMounted(path)).toBe(sum)
    expect(await sha256OfMounted(join(mountpoint, 'by-name', 'original', String(original.version)))).toBe(imageSum)

    for (const { name, path, sum } of copies) {
      const commit = await p2pvm<CommitResult>('commit', path, '--as', `${name}-image`)
      expect(commit).toMatchObject({ name: `${name}-image`, path })
      expect(commit.blob).not.toBe(original.blob)
      expect(await exported(`${name}-image`, sha256Of)).toBe(sum)
    }
    for (const { path, sum } of copies) expect(await sha256OfMounted(path)).toBe(sum)
    expect(await exported(`${original.blob}@${original.version}`, sha256Of)).toBe(imageSum)
  })

  it('bases a working copy on what it has committed: its path stays, and nothing is dirty', async () => {
    const { path } = await workingCopy('kept', 'original@latest')
    await writeRunsMounted(path, changes('kept'))
    const before = await sha256OfMounted(path)
    const first = await p2pvm<CommitResult>('commit', path)
    expect(first).toMatchObject({ blob: original.blob, path })
    expect(await rowOf('kept')).toMatchObject({ blob: first.blob, version: first.version, dirtyBytes: 0, path })
    expect(await sha256OfMounted(path)).toBe(before)

    await writeRunsMounted(path, changes('kept again'))
    const second = await p2pvm<CommitResult>('commit', path)
    expect(second.version).toBe(first.version + 1)
    expect(await exported(`${first.blob}@${first.version}`, sha256Of)).toBe(before)
    expect(await exported(`${second.blob}@${second.version}`, sha256Of)).toBe(await sha256OfMounted(path))
  })

  it('clones a working copy: it then belongs to the new blob, with what it has written, under the same path', async () => {
    const { path } = await workingCopy('cloned')
    const runs = changes('cloned')
    await writeRunsMounted(path, runs)
    const sum = await sumAfter(runs)
    const { dirtyBytes } = await rowOf('cloned')

    const clone = await p2pvm<CloneResult>('clone', path, '--name', 'sibling')
    expect(clone).toMatchObject({ name: 'sibling', path })
    expect(clone.blob).not.toBe(original.blob)
    expect(await rowOf('cloned')).toMatchObject({ blob: clone.blob, version: clone.version, path, dirtyBytes })
    expect(await sha256OfMounted(path)).toBe(sum)
    expect(await exported(`${clone.blob}@${clone.version}`, sha256Of)).toBe(imageSum)

    const commit = await p2pvm<CommitResult>('commit', path)
    expect(commit).toMatchObject({ blob: clone.blob, version: clone.version + 1 })
    expect(await exported('sibling', sha256Of)).toBe(sum)
    expect(await exported(`original@${original.version}`, sha256Of)).toBe(imageSum)
  })

  it('clones a version without touching a byte of it', async () => {
    const clone = await p2pvm<CloneResult>('clone', `original@${original.version}`, '--name', 'twin')
    expect(clone).toMatchObject({ name: 'twin', path: null })
    expect(await exported('twin', sha256Of)).toBe(imageSum)
  })

  it('commits and clones through the ioctls of include/p2pvm.h', async () => {
    const { path } = await workingCopy('by-ioctl')
    const stale = await workingCopy('stale')
    await writeRunsMounted(path, changes('by-ioctl'))
    const sum = await sha256OfMounted(path)

    const clone = await primitive('ioctl', 'clone', path, 'ioctl-image')
    expect(clone).toMatchObject({ version: 0, status: 0 })
    const commit = await primitive('ioctl', 'commit', path, '', 'from Python')
    expect(commit).toEqual({ blob: clone['blob'], version: 1, status: 0 })
    expect(await exported('ioctl-image@1', sha256Of)).toBe(sum)
    expect(await p2pvm('info', 'ioctl-image')).toMatchObject({ blob: clone['blob'], version: 1, message: 'from Python' })

    const named = await primitive('ioctl', 'commit', path, 'ioctl-other')
    expect(named).toMatchObject({ version: 1, status: 0 })
    expect(await exported('ioctl-other', sha256Of)).toBe(sum)

    // Others have committed to the original's blob since its first version.
    await writeRunsMounted(stale.path, changes('stale'))
    expect(await primitive('ioctl', 'commit', stale.path)).toEqual({ errno: 'EBUSY' })
    expect(await primitive('ioctl', 'commit', path, 'Not A Name')).toEqual({ errno: 'EINVAL' })
    expect(await primitive('ioctl', 'commit', join(mountpoint, 'by-name', 'original', String(original.version)))).toEqual({ errno: 'EROFS' })
  })

  it('commits as the examples in C and Python do it', async () => {
    const { path } = await workingCopy('by-example')
    const program = join(live.folder, 'commit')
    await ran('cc', '-Wall', '-Werror', '-I', INCLUDE, join(INCLUDE, 'examples/commit.c'), '-o', program)
    await writeRunsMounted(path, changes('by-example'))
    const fromC = await ran(program, path, 'example-image')
    expect(await p2pvm('info', fromC)).toMatchObject({ version: 1, message: 'from C' })
    expect(await exported('example-image', sha256Of)).toBe(await sha256OfMounted(path))
    await writeRunsMounted(path, changes('by-example again'))
    const fromPython = await ran('python3', join(INCLUDE, 'examples/commit.py'), path)
    expect(await p2pvm('info', fromPython)).toMatchObject({ version: 2, message: 'from Python' })
    expect(await exported('example-image', sha256Of)).toBe(await sha256OfMounted(path))
  })

  it('commits and clones through extended attributes', async () => {
    const { path } = await workingCopy('by-attribute')
    await writeRunsMounted(path, changes('by-attribute'))
    const sum = await sha256OfMounted(path)
    expect(await primitive('get-attribute', path, 'user.p2pvm.base')).toEqual({ value: `${original.blob}@${original.version}` })
    expect(await primitive('get-attribute', path, 'user.p2pvm.commit')).toEqual({ errno: 'ENODATA' })

    const clone = await throughAttribute(path, 'user.p2pvm.clone', 'attribute-image')
    expect(clone).toMatchObject({ state: 'done', version: 0 })
    expect(await throughAttribute(path, 'user.p2pvm.commit', '')).toEqual({ state: 'done', blob: clone['blob'], version: 1 })
    expect(await exported('attribute-image', sha256Of)).toBe(sum)
    expect(await primitive('get-attribute', path, 'user.p2pvm.base')).toEqual({ value: `${clone['blob'] as string}@1` })
    expect(await throughAttribute(path, 'user.p2pvm.commit', 'original')).toMatchObject({ state: 'failed', code: 'ERR_CONFLICT' })
    expect(await sha256OfMounted(path)).toBe(sum)
  })

  it('reverts a working copy to its base, and removes one', async () => {
    const { path } = await workingCopy('reverted')
    await writeRunsMounted(path, changes('reverted'))
    expect(await sha256OfMounted(path)).not.toBe(imageSum)
    expect(await p2pvm<WorkingCopyRow>('working-copy', 'revert', 'reverted')).toMatchObject({ name: 'reverted', dirtyBytes: 0 })
    expect(await sha256OfMounted(path)).toBe(imageSum)

    await writeRunsMounted(path, changes('reverted again'))
    await p2pvm('working-copy', 'rm', 'reverted')
    expect(await rowOf('reverted')).toBeUndefined()
    await expect(sha256OfMounted(path)).rejects.toThrow('No such file')
    // The name is free, and nothing of the old one comes back under it.
    await workingCopy('reverted')
    expect(await sha256OfMounted(path)).toBe(imageSum)
  })

  async function p2pvm<T> (...args: string[]): Promise<T> {
    return await succeed<T>(live.compute(0), ...args)
  }

  async function primitive (...args: string[]): Promise<Record<string, unknown>> {
    const script = LineProcess.python('control-primitives.py', ...args)
    try {
      const ended = await script.ended(DEADLINE_MS)
      expect(ended).toMatchObject({ code: 0, stderr: '' })
      return JSON.parse(ended.stdout) as Record<string, unknown>
    } finally {
      await script.kill()
    }
  }

  /** What it printed. */
  async function ran (command: string, ...args: string[]): Promise<string> {
    const process = new LineProcess(command, args)
    try {
      const ended = await process.ended(DEADLINE_MS)
      expect(ended).toMatchObject({ code: 0, stderr: '' })
      return ended.stdout.trim()
    } finally {
      await process.kill()
    }
  }

  /** Setting it starts one; reading it says what has become of it. */
  async function throughAttribute (path: string, attribute: string, value: string): Promise<Record<string, unknown>> {
    expect(await primitive('set-attribute', path, attribute, value)).toEqual({})
    const { answer } = await eventually(`${attribute} of ${path} is over`, DEADLINE_MS, async () => {
      const outcome = JSON.parse((await primitive('get-attribute', path, attribute))['value'] as string) as Record<string, unknown>
      return outcome['state'] === 'running' ? undefined : outcome
    })
    return answer
  }

  async function workingCopy (name: string, ref = `original@${original.version}`): Promise<{ name: string, path: string }> {
    const { path } = await p2pvm<WorkingCopyRow>('working-copy', 'create', name, ref)
    expect(path).toBe(join(mountpoint, 'working', name))
    return { name, path: path! }
  }

  async function rowOf (name: string): Promise<WorkingCopyRow> {
    const { workingCopies } = await p2pvm<{ workingCopies: WorkingCopyRow[] }>('working-copy', 'ls')
    return workingCopies.find((row) => row.name === name)!
  }

  /** What `use` makes of the file that the export wrote, not of the sum that the command says. */
  async function exported<T> (ref: string, use: (path: string) => Promise<T>): Promise<T> {
    const path = join(live.folder, 'exported.img')
    await p2pvm('export', ref, path)
    return await used(path, use)
  }

  async function copied<T> (path: string, use: (path: string) => Promise<T>): Promise<T> {
    const copy = join(live.folder, 'copied.img')
    const process = new LineProcess('cp', [path, copy])
    try {
      expect(await process.ended(DEADLINE_MS)).toMatchObject({ code: 0 })
    } finally {
      await process.kill()
    }
    return await used(copy, use)
  }

  async function used<T> (path: string, use: (path: string) => Promise<T>): Promise<T> {
    try {
      return await use(path)
    } finally {
      await rm(path)
    }
  }

  function changes (label: string): Run[] {
    return randomRuns(chance.fork(label), { count: 4, bytesEach: 300_000, within: IMAGE_BYTES })
  }

  /** The sum that the original has after these changes. */
  async function sumAfter (runs: readonly Run[]): Promise<string> {
    const path = join(live.folder, `${runs[0]!.key.replace(/\W/g, '-')}.img`)
    await makeImage(path, IMAGE_BYTES, randomRuns(chance.fork('image'), IMAGE_RUNS))
    await writeRuns(path, runs)
    return await used(path, sha256Of)
  }
})
