/** A mount of which another mount namespace was made with a copy, as of a container or a service: `umount` ends it all the same. */
import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest'
import { processId, processIsAlive, type ProcessId } from '../../src/mirror/processes.ts'
import { isOurMount } from '../../src/node/mountpoints.ts'
import { type Fabric, startFabric } from '../../testnet/fabric.ts'
import { describeWith } from '../harness/capabilities.ts'
import { eventually } from '../harness/eventually.ts'
import { LineProcess } from '../harness/line-process.ts'

const run = promisify(execFile)
const DEADLINE_MS = 60_000
const SIZE = 2 * 2 ** 20
/** Does what it is told, a line at a time. */
const SHELL = 'echo ready; while read -r line; do eval "$line"; done'

describeWith(['root', 'fuse', 'mount-namespaces'], 'umount of what another mount namespace has a copy of', () => {
  let folder: string
  let fabric: Fabric
  let mountpoint: string
  let keeper: ProcessId
  let elsewhere: LineProcess
  let umount: (...options: string[]) => ReturnType<Fabric['compute'][number]['cli']>

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'p2pvm-mount-namespaces-'))
    mountpoint = join(folder, 'mnt')
    await mkdir(mountpoint)
    fabric = await startFabric({ storage: 1, compute: 1, folder: join(folder, 'fabric') })
    const image = join(folder, 'image')
    await writeFile(image, randomBytes(SIZE))
    const [peer] = fabric.compute
    expect((await peer!.cli('import', image, '--name', 'disk')).code).toBe(0)
    expect((await peer!.cli('working-copy', 'create', 'vm1', 'disk')).code).toBe(0)
    umount = async (...options) => await peer!.cli('umount', mountpoint, ...options)
  })
  afterAll(async () => {
    await fabric.stop()
    await rm(folder, { recursive: true })
  })

  beforeEach(async () => {
    const { json } = await fabric.compute[0]!.cli('mount', mountpoint, '--detach', '--driver', 'direct')
    keeper = await processId((json as { pid: number }).pid) ?? keeper
    elsewhere = new LineProcess('unshare', ['--mount', '--propagation', 'private', 'sh', '-c', SHELL])
    await elsewhere.line((line) => line === 'ready', DEADLINE_MS)
  })
  afterEach(async () => {
    await elsewhere.kill()
    await umount('--force')
  })

  /** Others may have been made meanwhile. */
  const inNamespaceOf = ({ pid }: LineProcess): RegExp => new RegExp(`in the mount namespace of process (\\d+, )*${pid}\\b`)
  let told = 0
  /** The exit code of what the other one was told. */
  const tell = async (line: string): Promise<number> => {
    const answer = `${++told} gave `
    elsewhere.send(`${line}; echo "${answer}$?"`)
    return Number((await elsewhere.line((said) => said.startsWith(answer), DEADLINE_MS)).slice(answer.length))
  }

  test('ends it, with all that was written there', async () => {
    const path = join(mountpoint, 'working', 'vm1')
    expect(await tell(`printf written-elsewhere | dd of='${path}' bs=1 seek=5000 conv=notrunc status=none`)).toBe(0)
    const startMs = performance.now()
    expect(await umount()).toMatchObject({ code: 0, json: { mountpoint, pid: keeper.pid }, stderr: expect.stringMatching(inNamespaceOf(elsewhere)) })
    expect(performance.now() - startMs).toBeLessThan(30_000) // and not after its deadline
    expect(await processIsAlive(keeper)).toBe(false)
    expect(await tell(`cat '${path}' >/dev/null 2>&1`)).not.toBe(0)
    expect(await readdir(mountpoint)).toEqual([])
    expect(await fabric.compute[0]!.cli('mount', mountpoint, '--detach')).toMatchObject({ code: 0 })
    expect((await readFile(path)).subarray(5000, 5017).toString()).toBe('written-elsewhere')
  })

  test('is a conflict while a file is open there, says who has it, and does it when asked again', async () => {
    expect(await tell(`exec 3<'${join(mountpoint, 'by-name', 'disk', '1')}'`)).toBe(0)
    for (let attempt = 0; attempt < 2; attempt++) {
      const { code, json } = await umount()
      expect({ code, json }).toMatchObject({ code: 11, json: { error: { code: 'ERR_CONFLICT', message: expect.stringMatching(inNamespaceOf(elsewhere)), fields: { path: mountpoint } } } })
      expect(await isOurMount(mountpoint)).toBe(false)
      expect(await processIsAlive(keeper)).toBe(true)
    }
    expect(await tell('cat <&3 >/dev/null')).toBe(0)
    expect(await tell('exec 3<&-')).toBe(0)
    expect(await umount()).toMatchObject({ code: 0 })
    expect(await processIsAlive(keeper)).toBe(false)
  })

  test('is a conflict while it is mounted elsewhere for us, too, and leaves that alone', async () => {
    await elsewhere.kill()
    const other = join(folder, 'other')
    await mkdir(other)
    await run('mount', ['--bind', mountpoint, other])
    try {
      expect(await umount()).toMatchObject({ code: 11, json: { error: { code: 'ERR_CONFLICT', fields: { path: other } } } })
      expect((await readFile(join(other, 'by-name', 'disk', '1'))).length).toBe(SIZE)
    } finally {
      await run('umount', [other])
    }
    await eventually('nobody has it any more', DEADLINE_MS, async () => !await processIsAlive(keeper) || undefined)
  })

  test('with --force takes it from whoever has a file open there', async () => {
    expect(await tell(`exec 3<'${join(mountpoint, 'by-name', 'disk', '1')}'`)).toBe(0)
    expect(await umount()).toMatchObject({ code: 11 })
    expect(await umount('--force')).toMatchObject({ code: 0 })
    expect(await processIsAlive(keeper)).toBe(false)
    expect(await tell('cat <&3 >/dev/null 2>&1')).not.toBe(0)
  })
})
