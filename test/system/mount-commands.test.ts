/** `p2pvm mount` and `umount` as processes: with and without their daemon, busy, dead, and what a testnet leaves behind. */
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, open, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { isOurMount } from '../../src/node/mountpoints.ts'
import { processIsAlive, startTimeOf } from '../../src/mirror/processes.ts'
import { type Fabric, startFabric } from '../../testnet/fabric.ts'
import { describeWith } from '../harness/capabilities.ts'
import { eventually } from '../harness/eventually.ts'
import { entryOf, killNow, serverOf } from '../harness/mounts.ts'

describeWith(['root', 'fuse'], 'mount and umount', () => {
  let folder: string
  let fabric: Fabric
  let mountpoint: string
  const compute = (): Fabric['compute'][number] => {
    const [peer] = fabric.compute
    if (peer === undefined) throw new Error('no compute peer')
    return peer
  }
  const mount = async (): Promise<number> => {
    const { code, json } = await compute().cli('mount', mountpoint, '--detach')
    expect(code).toBe(0)
    expect(json).toEqual({ mountpoint, pid: expect.any(Number), driver: 'direct' })
    return (json as { pid: number }).pid
  }

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'p2pvm-mount-commands-'))
    mountpoint = join(folder, 'a mountpoint')
    await mkdir(mountpoint)
    fabric = await startFabric({ storage: 1, compute: 1, folder: join(folder, 'fabric') })
    const image = join(folder, 'image')
    await writeFile(image, randomBytes(2 * 2 ** 20))
    expect((await compute().cli('import', image, '--name', 'disk')).code).toBe(0)
  })
  afterAll(async () => {
    await fabric.stop()
    await rm(folder, { recursive: true })
  })

  test('detached, it is a process of its own that serves until it is unmounted', async () => {
    const pid = await mount()
    const startTime = await startTimeOf(pid) ?? ''
    expect(await readdir(join(mountpoint, 'by-name'))).toEqual(['disk'])
    expect(await compute().cli('mount', mountpoint, '--detach')).toMatchObject({ code: 11, json: { error: { code: 'ERR_CONFLICT' } } })
    expect(await compute().cli('umount', mountpoint)).toMatchObject({ code: 0, json: { mountpoint, pid } })
    expect(await processIsAlive({ pid, startTime })).toBe(false)
    expect(await isOurMount(mountpoint)).toBe(false)
    expect(await compute().cli('umount', mountpoint)).toMatchObject({ code: 10 })
  })

  test('one that is in use is not taken away, unless it is asked for', async () => {
    await mount()
    const file = await open(join(mountpoint, 'by-name', 'disk', '1'))
    expect(await compute().cli('umount', mountpoint)).toMatchObject({ code: 11, json: { error: { code: 'ERR_CONFLICT' } } })
    expect((await file.stat()).size).toBe(2 * 2 ** 20)
    expect(await compute().cli('umount', mountpoint, '--force')).toMatchObject({ code: 0 })
    expect(await isOurMount(mountpoint)).toBe(false)
    await file.close().catch(() => {})
  })

  test('without its daemon too', async () => {
    const pid = await mount()
    await compute().kill('SIGTERM')
    expect(await compute().cli('umount', mountpoint, '--data', compute().data)).toMatchObject({ code: 0, json: { pid } })
    expect(await compute().cli('mount', mountpoint, '--detach')).toMatchObject({ code: 14 })
    await compute().start()
  })

  test('a read that nobody answers fails after the --miss-deadline', async () => {
    expect(await compute().cli('mount', mountpoint, '--detach', '--miss-deadline', '1')).toMatchObject({ code: 0 })
    const path = join(mountpoint, 'by-name', 'disk', '1')
    expect((await stat(path)).size).toBe(2 * 2 ** 20)
    await compute().kill('SIGTERM')
    const startMs = performance.now()
    await expect(readFile(path)).rejects.toMatchObject({ code: 'EIO' })
    expect(performance.now() - startMs).toBeLessThan(25_000) // unless told: 30 s
    await compute().start()
    expect((await readFile(path)).length).toBe(2 * 2 ** 20)
    expect(await compute().cli('umount', mountpoint)).toMatchObject({ code: 0 })
  })

  test('what a killed one leaves behind is taken away', async () => {
    const pid = await mount()
    const startTime = await startTimeOf(pid) ?? ''
    // Its FUSE server, too: that would unmount.
    const server = await serverOf(await entryOf(compute(), mountpoint))
    for (const each of [{ pid }, server]) killNow(each)
    await eventually('the mount is dead', 10_000, async () => !await processIsAlive({ pid, startTime }) || undefined)
    expect(await isOurMount(mountpoint)).toBe(true)
    expect(await compute().cli('umount', mountpoint)).toMatchObject({ code: 0, json: { pid: null } })
    expect(await isOurMount(mountpoint)).toBe(false)
  })

  test('a folder that is missing, a file, and a folder that is not empty', async () => {
    expect(await compute().cli('mount', join(folder, 'nothing'), '--detach')).toMatchObject({ code: 10 })
    expect(await compute().cli('mount', join(folder, 'image'), '--detach')).toMatchObject({ code: 2 })
    expect(await compute().cli('mount', folder, '--detach')).toMatchObject({ code: 2 })
  })

  test('a fabric that stops takes its mounts with it', async () => {
    const pid = await mount()
    const startTime = await startTimeOf(pid) ?? ''
    const daemons = await Promise.all([...fabric.storage, ...fabric.compute].map(async ({ id }) => id))
    await fabric.stop()
    expect(await isOurMount(mountpoint)).toBe(false)
    for (const process of [...daemons, { pid, startTime }]) expect(await processIsAlive(process)).toBe(false)
    expect(existsSync(compute().control)).toBe(false)
    expect(await readFile(compute().log, 'utf8')).toContain('stopping')
  })
})
