/**
 * A mount outlives its FUSE server: whoever uses it notices a pause, whatever the server was doing when it was killed. It ends when
 * its keeper does, or when servers die one after the other; and then it is gone, with nobody hanging in it.
 */
import { cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { bundle } from '../../scripts/bundle.ts'
import { processIsAlive } from '../../src/mirror/processes.ts'
import type { ImportResult, VersionRow, WorkingCopyRow } from '../../src/node/control-api.ts'
import { requestJson } from '../../src/node/http-json.ts'
import { isOurMount } from '../../src/node/mountpoints.ts'
import type { MountEntry } from '../../src/node/mounts.ts'
import { describeWith } from '../harness/capabilities.ts'
import { eventually } from '../harness/eventually.ts'
import { LineProcess, runToEnd } from '../harness/line-process.ts'
import { LiveFabric, succeed } from '../harness/live-fabric.ts'
import { sha256OfMounted } from '../harness/mounted-file.ts'
import { commandOf, entryOf, killNow, serverOf } from '../harness/mounts.ts'
import { makeImage, randomRuns, sha256Of } from '../harness/random-image.ts'
import { Chance, testSeed } from '../harness/seed.ts'

const MIB = 1024 * 1024
const IMAGE_BYTES = 8 * MIB
const DEADLINE_MS = 60_000
const KILLS = 20
/** From a server that runs to the moment of its kill: also before it is ready, which takes it a tenth of a second or more. */
const KILL_AFTER_MS_MAX = 500
/** A command that commits takes so long before it begins, at most. */
const COMMAND_MS = 150
/** Far above what a busy machine needs: a quiet one takes a fifth of a second. */
const STALL_MS_MAX = 20_000
const CONTROL_PRIMITIVES = fileURLToPath(new URL('../harness/control-primitives.py', import.meta.url))
const PROGRAM = fileURLToPath(new URL('../../bin/p2pvm', import.meta.url))

const chance = new Chance(testSeed())

describeWith(['root', 'fuse', 'python3', 'attr'], `the keeper of a mount (P2PVM_TEST_SEED=${chance.seed})`, () => {
  let live: LiveFabric
  let image: string
  let original: ImportResult

  beforeAll(async () => {
    live = await LiveFabric.start({ storage: 1, compute: 1, env: { P2PVM_TEST_HOOKS: '1', P2PVM_TEST_CRASHES_MAX: '1000' } })
    image = join(live.folder, 'original.img')
    await makeImage(image, IMAGE_BYTES, randomRuns(chance.fork('image'), { count: 1, bytesEach: IMAGE_BYTES - 4096, within: IMAGE_BYTES }))
    original = await p2pvm<ImportResult>('import', image, '--name', 'original', '--chunk-size', '64KiB')
  })

  afterAll(async () => { await live?.close() })

  it(`a program reads and writes on, byte for byte, while the server is killed ${KILLS} times`, async () => {
    const { mountpoint, entry } = await mounted('killed')
    const draws = chance.fork('kills')
    await withBusyDisk(mountpoint, async (program) => {
      for (let kill = 0; kill < KILLS; kill++) {
        const server = await serverOf(entry)
        await delay(draws.below(KILL_AFTER_MS_MAX))
        killNow(server)
      }
      await goesOn(program)
    })
    await p2pvm('umount', mountpoint)
    expect(await leftovers(entry)).toEqual([])
  })

  it('a read that waits for the daemon is answered by the next server', async () => {
    const { mountpoint, entry } = await mounted('missing')
    const unseen = join(live.folder, 'unseen.img')
    await makeImage(unseen, IMAGE_BYTES, randomRuns(chance.fork('unseen'), { count: 1, bytesEach: IMAGE_BYTES - 4096, within: IMAGE_BYTES }))
    await succeed(live.storage(0), 'import', unseen, '--name', 'unseen')
    const path = join(mountpoint, 'by-name', 'unseen', '1')
    await runToEnd('stat', [path], DEADLINE_MS)
    process.kill(live.compute(0).pid, 'SIGSTOP')
    let reader: LineProcess | undefined
    try {
      reader = new LineProcess('sha256sum', [path])
      await readReaches(entry)
      const before = await serverOf(entry)
      killNow(before)
      await eventually('another server', DEADLINE_MS, async () => (await serverOf(entry)).pid !== before.pid || undefined)
      await readReaches(entry)
      process.kill(live.compute(0).pid, 'SIGCONT')
      expect((await reader.ended(DEADLINE_MS)).stdout.slice(0, 64)).toBe(await sha256Of(unseen))
    } finally {
      process.kill(live.compute(0).pid, 'SIGCONT')
      await reader?.kill()
    }
    await p2pvm('umount', mountpoint)
  })

  it('a commit is made once, with the right bytes, wherever in it the server is killed', async () => {
    const { mountpoint, entry } = await mounted('committing')
    const { path } = await p2pvm<WorkingCopyRow>('working-copy', 'create', 'committed', `original@${original.version}`)
    const draws = chance.fork('commits')
    const folder = join(live.compute(0).data, 'working', 'committed')
    // Where in it, by what is on disk then.
    const points: Record<string, () => boolean> = {
      begun: () => true,
      sealing: () => readFileSync(join(folder, 'state.json'), 'utf8').includes('"sealed"'),
      publishing: () => existsSync(join(folder, 'commit.json'))
    }
    let round = 0
    for (const how of ['ioctl', 'command', 'attribute'] as const) {
      for (const [point, isThere] of Object.entries(points)) {
        await runToEnd('dd', ['if=/dev/urandom', `of=${path!}`, 'conv=notrunc', 'bs=64k', `seek=${round++ * 8}`, 'count=40'], DEADLINE_MS)
        const before = await latest()
        const server = await serverOf(entry)
        const committing = how === 'command' ? p2pvm<{ version: number }>('commit', path!) : how === 'ioctl' ? byIoctl(path!) : byAttribute(path!)
        let over = false
        committing.finally(() => { over = true }).catch(() => {})
        if (point === 'begun') await delay(draws.below(COMMAND_MS))
        while (!isThere() && !over) await delay(1)
        killNow(server)
        const { version } = await committing
        expect([await latest(), version], `${how}, killed when ${point}`).toEqual([before + 1, before + 1])
        expect(await live.exportedSum(live.storage(0), `original@${version}`)).toBe(await sha256OfMounted(path!))
      }
    }
    await p2pvm('umount', mountpoint)
    expect(readdirSync(join(live.compute(0).data, 'working', 'committed')).filter((name) => name.startsWith('lock.'))).toEqual([])
  })

  it('ends in order when the keeper is killed, and is cleaned away by the next mount when both are', async () => {
    const { mountpoint, entry } = await mounted('orphaned')
    const server = await serverOf(entry)
    const reader = await holder(mountpoint)
    try {
      process.kill(entry.pid, 'SIGKILL')
      await eventually('the mount and its server are gone', DEADLINE_MS, async () =>
        (!await isOurMount(mountpoint) && !await processIsAlive(server)) || undefined)
      expect(await reader.ended(DEADLINE_MS)).toMatchObject({ code: 1, stderr: expect.stringMatching(/ENOTCONN|ECONNABORTED|ENODEV/) as string })
    } finally {
      await reader.kill()
    }
    await succeed(live.compute(0), 'mount', mountpoint, '--detach')
    const again = await entryOf(live.compute(0), mountpoint)
    const secondServer = await serverOf(again)
    const secondReader = await holder(mountpoint)
    try {
      process.kill(again.pid, 'SIGKILL')
      killNow(secondServer)
      expect(await secondReader.ended(DEADLINE_MS)).toMatchObject({ code: 1 })
      await eventually('both are gone', DEADLINE_MS, async () => !await processIsAlive(secondServer) || undefined)
    } finally {
      await secondReader.kill()
    }
    await succeed(live.compute(0), 'mount', mountpoint, '--detach')
    expect(await sha256OfMounted(join(mountpoint, 'by-name', 'original', String(original.version)))).toBe(await sha256Of(image))
    await p2pvm('umount', mountpoint)
    expect(await leftovers(again)).toEqual([])
  })

  it('is given up, with an error, when servers die one after the other', async () => {
    const mountpoint = join(live.folder, 'looping')
    await mkdir(mountpoint)
    const keeper = new LineProcess(PROGRAM, ['mount', mountpoint, '--json', '--control', live.compute(0).control], { env: { ...process.env, P2PVM_TEST_HOOKS: '1' } })
    try {
      await keeper.line((line) => line.includes(mountpoint), DEADLINE_MS)
      const entry = await entryOf(live.compute(0), mountpoint)
      const reader = await holder(mountpoint)
      try {
        await eventually('the keeper has given up', DEADLINE_MS, async () => {
          await requestJson(entry.socket, 'POST', '/v1/test/throw', { body: {}, deadlineMs: DEADLINE_MS }).catch(() => {}) // nobody is there just now
          return !await processIsAlive(entry) || undefined
        })
        expect(await reader.ended(DEADLINE_MS)).toMatchObject({ code: 1 })
      } finally {
        await reader.kill()
      }
      const { code, stderr, stdout } = await keeper.ended(DEADLINE_MS)
      expect({ code, stdout }).toMatchObject({ code: 1, stdout: expect.stringContaining('the mount is given up') as string })
      expect(stderr).toContain('thrown by a test hook')
      expect(await isOurMount(mountpoint)).toBe(false)
    } finally {
      await keeper.kill()
    }
  })

  it('is handed over to another program under load, and stays with the old one when the new one is broken', async () => {
    const mountpoint = join(live.folder, 'upgraded')
    const dist = join(live.folder, 'dist')
    await mkdir(mountpoint)
    await bundle(dist)
    const keeper = new LineProcess(process.execPath, [join(dist, 'p2pvm.js'), 'mount', mountpoint, '--json', '--control', live.compute(0).control])
    try {
      await keeper.line((line) => line.includes(mountpoint), DEADLINE_MS)
      const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as { version: string }
      await withBusyDisk(mountpoint, async (program) => {
        const newer = join(live.folder, 'newer')
        cpSync(dist, newer, { recursive: true })
        for (const file of readdirSync(newer)) writeFileSync(join(dist, file), readFileSync(join(newer, file), 'utf8').replaceAll(`"${version}"`, '"99.0.0"'))
        expect(await p2pvm('mount', '--upgrade', mountpoint)).toMatchObject({ mountpoint, before: version, after: '99.0.0' })
        await goesOn(program)
        writeFileSync(join(dist, 'mount-server.js'), 'throw new Error("a broken build")\n')
        expect(await live.compute(0).cli('mount', '--upgrade', mountpoint)).toMatchObject({ code: 1, stdout: expect.stringContaining('goes on with the one that it has') as string })
        await goesOn(program)
      })
      await p2pvm('umount', mountpoint)
      expect(await keeper.ended(DEADLINE_MS)).toMatchObject({ code: 0 })
    } finally {
      await keeper.kill()
    }
  })

  async function p2pvm<T> (...args: string[]): Promise<T> {
    return await succeed<T>(live.compute(0), ...args)
  }

  async function mounted (name: string): Promise<{ mountpoint: string, entry: MountEntry }> {
    const mountpoint = await live.mount(live.compute(0), name)
    return { mountpoint, entry: await entryOf(live.compute(0), mountpoint) }
  }

  /** Runs `busy-disk.py` there meanwhile: it must have met no error and no wrong byte. */
  async function withBusyDisk (mountpoint: string, work: (program: LineProcess) => Promise<void>): Promise<void> {
    await p2pvm('working-copy', 'create', 'machine', `original@${original.version}`)
    const program = LineProcess.python('busy-disk.py', image, join(mountpoint, 'working'), join(mountpoint, original.blob, String(original.version)), chance.seed)
    try {
      await program.line((line) => line === 'ready', DEADLINE_MS)
      await work(program)
      const { code, stdout, stderr } = await program.finish(DEADLINE_MS)
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
      const [, done, longestMs] = /done (\d+)\nlongest (\d+)/.exec(stdout) ?? []
      console.log(`${done} operations, the longest took ${longestMs} ms`)
      expect(Number(longestMs)).toBeLessThan(STALL_MS_MAX)
    } finally {
      await program.kill()
    }
    for (const name of ['machine', `${original.blob}.${original.version}`]) {
      await eventually(`${name} is closed`, DEADLINE_MS, async () => (await live.compute(0).cli('working-copy', 'rm', name)).code === 0 || undefined)
    }
  }

  /** A program that reads one page of the image again and again, and has the folder as its own. */
  async function holder (mountpoint: string): Promise<LineProcess> {
    const reader = LineProcess.python('timed-reads.py', join(mountpoint, 'by-name', 'original', String(original.version)), 1)
    await reader.line((line) => line === 'ready', DEADLINE_MS)
    return reader
  }

  async function latest (): Promise<number> {
    return (await p2pvm<{ versions: VersionRow[] }>('log', 'original')).versions.at(-1)!.version
  }

  async function byIoctl (path: string): Promise<{ version: number }> {
    const { stdout } = await runToEnd('python3', [CONTROL_PRIMITIVES, 'ioctl', 'commit', path], DEADLINE_MS)
    return JSON.parse(stdout) as { version: number }
  }

  async function byAttribute (path: string): Promise<{ version: number }> {
    await runToEnd('setfattr', ['-n', 'user.p2pvm.commit', '-v', '', path], DEADLINE_MS)
    const { answer } = await eventually('the commit has ended', DEADLINE_MS, async () => {
      const { stdout } = await runToEnd('getfattr', ['--only-values', '--absolute-names', '-n', 'user.p2pvm.commit', path], DEADLINE_MS)
      const outcome = JSON.parse(stdout) as { state: string, version: number }
      return outcome.state === 'running' ? undefined : outcome
    })
    expect(answer).toMatchObject({ state: 'done' })
    return answer
  }
})

/** Returns when the kernel has asked the server for bytes that it does not have. */
async function readReaches (entry: MountEntry): Promise<void> {
  await eventually('the server is asked', DEADLINE_MS, async () => {
    const { counters } = await requestJson<{ counters: Record<string, number> }>(entry.socket, 'GET', '/v1/status', { deadlineMs: DEADLINE_MS })
    return (counters['FUSE_READ'] ?? 0) > 0 || undefined
  })
}

async function goesOn (program: LineProcess): Promise<void> {
  const done = Number(/\d+$/.exec(program.lines.at(-1) ?? '')?.[0] ?? 0)
  await program.line((line) => line.startsWith('done ') && Number(line.slice(5)) > done + 100, DEADLINE_MS)
}

/** Files of a mount in the registry, and fsync processes that somebody has left over. */
async function leftovers ({ socket, mountpoint }: MountEntry): Promise<string[]> {
  const id = socket.split('/').at(-1)!.replace('.sock', '')
  const files = readdirSync(join(socket, '..')).filter((name) => name.startsWith(id))
  const mounts = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n').filter((line) => line.includes(mountpoint))
  const processes = readdirSync('/proc').filter((name) => /^\d+$/.test(name)).map(commandOf).filter((command) => command.includes(mountpoint))
  return [...files, ...mounts, ...processes]
}
