/** `p2pvm mount` by somebody without privileges: through fuse-native and fusermount, with a daemon and folders of his own. */
import { mkdir, readFile, symlink } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { processIsAlive, startTimeOf } from '../../src/mirror/processes.ts'
import { describeWith } from '../harness/capabilities.ts'
import { eventually } from '../harness/eventually.ts'
import { type Ended, LineProcess } from '../harness/line-process.ts'
import { makeImage, randomRuns, sha256Of } from '../harness/random-image.ts'
import { Chance, testSeed } from '../harness/seed.ts'
import { Unprivileged } from '../harness/unprivileged.ts'

const PROGRAM = fileURLToPath(new URL('../../bin/p2pvm', import.meta.url))
const MIB = 1024 * 1024
const DEADLINE_MS = 60_000

const chance = new Chance(testSeed())

describeWith(['root', 'fuse', 'fuse-native', 'fusermount', 'nobody'], 'a mount without root', () => {
  let user: Unprivileged
  let daemon: LineProcess
  let mountpoint: string
  let disk: string
  let sum: string

  const p2pvm = async (...args: string[]): Promise<Ended> => await user.run(DEADLINE_MS, PROGRAM, ...args, '--control', join(user.folder, 'control.sock'), '--json')
  const succeed = async (...args: string[]): Promise<Record<string, unknown>> => {
    const { code, stdout, stderr } = await p2pvm(...args)
    expect(code, `${args.join(' ')}: ${stdout} ${stderr}`).toBe(0)
    return JSON.parse(stdout) as Record<string, unknown>
  }
  const read = async (...command: string[]): Promise<string> => {
    const { code, stdout, stderr } = await user.run(DEADLINE_MS, ...command)
    expect(code, stderr).toBe(0)
    return stdout
  }
  const sumOf = async (path: string): Promise<string> => (await read('sha256sum', path)).slice(0, 64)

  beforeAll(async () => {
    user = await Unprivileged.start()
    mountpoint = join(user.folder, 'mnt')
    disk = join(mountpoint, 'working', 'disk')
    await read('mkdir', mountpoint)
    const data = join(user.folder, 'data')
    const roles = ['--role', 'storage,versions,compute', '--replicas', '1', '--write-quorum', '1', '--listen', '/ip4/127.0.0.1/tcp/0']
    daemon = new LineProcess(...user.command(PROGRAM, 'daemon', '--data', data, '--control', join(user.folder, 'control.sock'), ...roles))
    await daemon.line((line) => line.startsWith('{'), DEADLINE_MS)
    const image = join(user.folder, 'image')
    await makeImage(image, 4 * MIB + 777, randomRuns(chance, { count: 3, bytesEach: MIB, within: 4 * MIB }))
    sum = await sha256Of(image)
    await succeed('import', image, '--name', 'image')
    await succeed('working-copy', 'create', 'disk', 'image')
  })

  afterAll(async () => {
    await daemon?.kill()
    await user?.end()
  })

  it('is what --driver auto comes to; it reads, writes and commits, and only its user looks in', async () => {
    const mounted = await succeed('mount', mountpoint, '--detach')
    expect(mounted).toEqual({ mountpoint, pid: expect.any(Number) as number, driver: 'fuse-native' })
    expect((await succeed('status'))['mounts']).toEqual([mounted])
    expect(await sumOf(join(mountpoint, 'by-name', 'image', '1'))).toBe(sum)
    expect(await read('stat', '-c', '%u %a', disk)).toBe('65534 644\n')
    await read('sh', '-c', 'printf changed | dd of="$1" bs=1 seek=5000 conv=notrunc status=none && sync "$1"', 'sh', disk)
    const commit = await succeed('commit', disk)
    expect(commit).toMatchObject({ version: 2 })
    expect(await sumOf(join(mountpoint, 'by-name', 'image', '2'))).toBe(await sumOf(disk))
    const alias = join(mountpoint, String(commit['blob']), '1')
    expect(await sumOf(alias)).toBe(sum)
    expect(await succeed('commit', alias, '--as', 'other')).toMatchObject({ name: 'other' })
    expect((await user.runAsRoot(DEADLINE_MS, 'ls', mountpoint)).code).not.toBe(0)

    const pid = Number(mounted['pid'])
    const startTime = await startTimeOf(pid) ?? ''
    const holder = new LineProcess(...user.command('sh', '-c', 'exec 3<"$1"; echo open; cat', 'sh', disk))
    await holder.line((line) => line === 'open', DEADLINE_MS)
    expect(await p2pvm('umount', mountpoint)).toMatchObject({ code: 11 })
    await holder.finish(DEADLINE_MS)
    expect(await succeed('umount', mountpoint)).toEqual({ mountpoint, pid })
    expect(await processIsAlive({ pid, startTime })).toBe(false)
    expect(await user.mounts()).not.toContain(mountpoint)
  })

  it('is gone with its process, also after kill -9, and nothing is lost', async () => {
    const { pid } = await succeed('mount', mountpoint, '--detach', '--driver', 'fuse-native')
    await read('sh', '-c', 'printf again | dd of="$1" bs=1 seek=100000 conv=notrunc status=none', 'sh', disk)
    const written = await sumOf(disk)
    process.kill(Number(pid), 'SIGKILL')
    await eventually('fusermount has unmounted it', DEADLINE_MS, async () => !(await user.mounts()).includes(mountpoint) || undefined)
    await succeed('mount', mountpoint, '--detach', '--trace')
    expect(await sumOf(disk)).toBe(written)
    await succeed('umount', mountpoint, '--force')
    const log = await readFile(join(user.folder, 'data', 'mounts', `${mountpoint.slice(1).replaceAll('/', '-')}.log`), 'utf8')
    expect(log).toMatch(/^open "\/working\/disk" → 1 \d+ µs$/m)
  })

  it('is refused with the reasons of each driver that was asked for', async () => {
    // All that it needs but fusermount.
    const programs = join(user.folder, 'programs')
    await mkdir(programs)
    for (const program of ['sh', 'mount', 'readlink', 'dirname', 'env']) await symlink(`/bin/${program}`, join(programs, program))
    const mount = async (path: string, driver: string): Promise<Ended> =>
      await user.run(DEADLINE_MS, 'env', `PATH=${path}`, PROGRAM, 'mount', mountpoint, '--driver', driver, '--control', join(user.folder, 'control.sock'))
    expect(await mount(programs, 'fuse-native')).toMatchObject({ code: 12, stderr: expect.stringContaining('apt-get install fuse3') as string })
    expect(await mount(process.env['PATH'] ?? '', 'direct')).toMatchObject({ code: 12, stderr: expect.stringContaining('CAP_SYS_ADMIN') as string })
    expect(await mount(programs, 'auto')).toMatchObject({ code: 12, stderr: expect.stringMatching(/CAP_SYS_ADMIN.*apt-get install fuse3/) as string })
    expect(await mount(programs, 'other')).toMatchObject({ code: 2 })
  })
})
