/**
 * Import and export as people use them: an image in another format, through the real qemu-img and real daemons, and a terminal
 * on which both show how far they are.
 */
import { mkdir, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect, it } from 'vitest'
import type { ImportResult } from '../../src/node/control-api.ts'
import type { FabricPeer } from '../../testnet/fabric.ts'
import { describeWith } from '../harness/capabilities.ts'
import { runToEnd } from '../harness/line-process.ts'
import { LiveFabric, succeed } from '../harness/live-fabric.ts'
import { makeImage, randomRuns, sha256Of } from '../harness/random-image.ts'
import { Chance, testSeed } from '../harness/seed.ts'
import { type Shown, Terminal } from '../harness/terminal.ts'

const PROGRAM = fileURLToPath(new URL('../../bin/p2pvm', import.meta.url))
const MIB = 1024 * 1024
const DEADLINE_MS = 60_000
const IMAGE_BYTES = 64 * MIB
/** Half of it is holes. */
const IMAGE_RUNS = { count: 16, bytesEach: 2 * MIB, within: IMAGE_BYTES }
/** Enough for a second or more: progress is shown five times in one. */
const LONG_BYTES = 384 * MIB
const LONG_RUNS = { count: 6, bytesEach: 48 * MIB, within: LONG_BYTES }

const chance = new Chance(testSeed())

describeWith(['qemu-img'], `a qcow2 image (P2PVM_TEST_SEED=${chance.seed})`, () => {
  let live: LiveFabric
  let peer: FabricPeer

  beforeAll(async () => {
    live = await LiveFabric.start({ storage: 2, compute: 1 })
    peer = live.compute(0)
  })

  afterAll(async () => { await live?.close() })

  it('comes back as the bytes that qemu-img reads, and its holes take no room', async () => {
    const [raw, qcow2, asRaw] = ['image.raw', 'image.qcow2', 'as.raw'].map((name) => join(live.folder, name)) as [string, string, string]
    await makeImage(raw, IMAGE_BYTES, randomRuns(chance.fork('image'), IMAGE_RUNS))
    await qemuImg('convert', '-f', 'raw', '-O', 'qcow2', raw, qcow2)
    await qemuImg('convert', '-f', 'qcow2', '-O', 'raw', qcow2, asRaw)

    const imported = await succeed<ImportResult>(peer, 'import', qcow2, '--name', 'image')
    expect(imported.size).toBe(IMAGE_BYTES)
    expect(imported.storedBytes).toBeLessThan(IMAGE_BYTES / 2 + 2 * IMAGE_RUNS.count * imported.chunkSize)
    expect(await live.exportedSum(peer, 'image')).toBe(await sha256Of(asRaw))
  })

  it('over a file of this machine is refused, and nothing of it is on the fabric', async () => {
    const image = join(live.folder, 'over.qcow2')
    await qemuImg('create', '-f', 'qcow2', '-b', '/etc/passwd', '-F', 'raw', image)
    expect(await peer.cli('import', image, '--name', 'over')).toMatchObject({ code: 2, json: { error: { code: 'ERR_USAGE', message: expect.stringContaining('/etc/passwd') as string } } })
    expect((await peer.cli('info', 'over')).code).toBe(10)
  })
})

describeWith(['python3'], `on a terminal (P2PVM_TEST_SEED=${chance.seed})`, () => {
  let live: LiveFabric
  let image: string

  beforeAll(async () => {
    live = await LiveFabric.start({ storage: 2, compute: 1 })
    image = join(live.folder, 'image.raw')
    await makeImage(image, LONG_BYTES, randomRuns(chance.fork('long'), LONG_RUNS))
  })

  afterAll(async () => { await live?.close() })

  it('import and export show rate and shares in one line, which is gone at the end', async () => {
    const first = await onTerminal('import', image, '--name', 'first')
    expect(first.screen.erased.length).toBeGreaterThan(1)
    for (const shown of first.screen.erased) expect(shown).toMatch(/^\S+ (KiB|MiB) of 384 MiB {2}\S+ \S+\/s {2}\d+% holes( {2}0% already there)?$/)
    expect(first.screen.lines).toEqual(['image', 'size', 'chunks', 'new', 'sent'].map(lineOf))

    const second = await onTerminal('import', image, '--name', 'second')
    expect(second.screen.erased.at(-1)).toMatch(/ {2}(99|100)% already there$/)

    const folder = join(live.folder, 'out')
    await mkdir(folder)
    const exported = await onTerminal('export', 'second', join(folder, 'out.raw'))
    expect(exported.screen.erased.length).toBeGreaterThan(1)
    for (const shown of exported.screen.erased) expect(shown).toMatch(/^\S+ (KiB|MiB) of 384 MiB {2}\S+ \S+\/s {2}\d+%$/)
    expect(exported.screen.lines).toEqual(['version', 'size', 'sha256'].map(lineOf))
    expect(await readdir(folder)).toEqual(['out.raw'])
    expect(await sha256Of(join(folder, 'out.raw'))).toBe(await sha256Of(image))
  })

  async function onTerminal (...args: string[]): Promise<Shown> {
    const shown = await new Terminal([PROGRAM, ...args], { columns: 100, env: { ...process.env, P2PVM_CONTROL: live.compute(0).control } }).ended()
    expect(shown.code).toBe(0)
    return shown
  }
})

async function qemuImg (...args: string[]): Promise<void> {
  expect(await runToEnd('qemu-img', args, DEADLINE_MS)).toMatchObject({ code: 0 })
}

function lineOf (name: string): unknown {
  return expect.stringMatching(new RegExp(`^${name} {2}`)) as unknown
}
