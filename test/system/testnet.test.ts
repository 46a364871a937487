/** What a newcomer starts first, as they start it: `testnet up, status, down`, and the quickstart, also when it is interrupted. */
import { randomBytes } from 'node:crypto'
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { processIsAlive } from '../../src/mirror/processes.ts'
import { describeWith } from '../harness/capabilities.ts'
import { LineProcess, runToEnd } from '../harness/line-process.ts'

const MIB = 2 ** 20
const UP_DEADLINE_MS = 120_000
const QUICKSTART_DEADLINE_MS = 300_000
const LOOK_EVERY_MS = 100

const script = (name: string): string => new URL(`../../testnet/${name}`, import.meta.url).pathname

let folder: string
beforeAll(async () => { folder = await mkdtemp(join(tmpdir(), 'p2pvm-testnet-')) })
afterAll(async () => { await rm(folder, { recursive: true }) })

test('up, status, down', async () => {
  const testnet = async (...args: string[]): Promise<{ code: number | null, stdout: string, stderr: string }> =>
    await runToEnd(process.execPath, [script('main.ts'), ...args, '--folder', folder], UP_DEADLINE_MS)
  expect(await testnet('down')).toMatchObject({ code: 1, stderr: expect.stringContaining('no testnet is up') })
  expect(await testnet('up', '--storage', '2', '--compute', '1')).toMatchObject({ code: 0 })
  const peers = JSON.parse(await readFile(join(folder, 'testnet.json'), 'utf8')) as Array<{ pid: number, startTime: string }>
  try {
    expect(await testnet('up')).toMatchObject({ code: 1, stderr: expect.stringContaining('take it down first') })
    const { stdout } = await testnet('status')
    expect(stdout.match(/ up +2\/2 /g)).toHaveLength(3)
  } finally {
    expect(await testnet('down')).toMatchObject({ code: 0 })
  }
  for (const { pid, startTime } of peers) expect(await processIsAlive({ pid, startTime })).toBe(false)
})

describeWith(['root', 'fuse'], 'quickstart', () => {
  let image: string
  beforeAll(async () => {
    image = join(folder, 'image')
    await writeFile(image, Buffer.concat([randomBytes(6 * MIB), Buffer.alloc(20 * MIB), randomBytes(3 * MIB + 12345)]))
  })
  /** In a folder of its own for temporary files, so that what is left in it is the quickstart's. */
  const quickstart = async (): Promise<{ process: LineProcess, temporary: string }> => {
    const temporary = await mkdtemp(join(folder, 'q'))
    const env = { ...process.env, TMPDIR: temporary }
    return { process: new LineProcess(process.execPath, [script('quickstart.ts'), image], { env }), temporary }
  }

  test('does the whole line, and leaves nothing', async () => {
    const { process, temporary } = await quickstart()
    const { code, stdout, stderr } = await process.finish(QUICKSTART_DEADLINE_MS)
    expect({ code, stderr }).toMatchObject({ code: 0 })
    expect(stdout).toMatch(/^verify quickstart-changed@1 on the other peer +every byte is right/m)
    expect(stdout).toMatch(/^verify the original, quickstart@1 +every byte is right/m)
    expect(await readdir(temporary)).toEqual([])
    expect(await readFile('/proc/self/mountinfo', 'utf8')).not.toContain(temporary)
  })

  test('interrupted, it leaves nothing either', async () => {
    const { process: running, temporary } = await quickstart()
    // The first mount stands when it is in the kernel's table: then a peer, a mount and a command are under way.
    while (!(await readFile('/proc/self/mountinfo', 'utf8')).includes(temporary)) {
      const early = await running.ended(LOOK_EVERY_MS).catch(() => undefined)
      if (early !== undefined) throw new Error(`it ended before it could be interrupted: ${early.stderr}`)
    }
    process.kill(running.pid, 'SIGINT')
    expect(await running.finish(QUICKSTART_DEADLINE_MS)).toMatchObject({ code: 130 })
    expect(await readdir(temporary)).toEqual([])
    expect(await readFile('/proc/self/mountinfo', 'utf8')).not.toContain(temporary)
  })
})
