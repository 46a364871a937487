/** What `p2pvm import` and `export` show to a person at a terminal, and to nobody else. */
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, expect, it } from 'vitest'
import { describeWith } from '../../harness/capabilities.ts'
import { makeImage, sha256Of } from '../../harness/random-image.ts'
import { Chance, testSeed } from '../../harness/seed.ts'
import { Screen, type Shown, Terminal } from '../../harness/terminal.ts'
import { CommandLine } from './command-line.ts'

const MIB = 2 ** 20
const IMAGE_BYTES = 32 * MIB
/** Data, and as much of a hole behind it. */
const HALF = { offset: 0, size: IMAGE_BYTES / 2 }
/** 64 chunks: more than a second, in which progress is shown five times. */
const CHUNK_TAKES_MS = 20
const SHOWN_MIN = 3
const NARROW = 30

const chance = new Chance(testSeed())
const line = new CommandLine()
const PROGRESS = /^\d+(\.\d)? (B|KiB|MiB) of 32(\.0)? MiB {2}\d+(\.\d)? (B|KiB|MiB)\/s {2}\d+%/

describeWith(['python3'], 'progress', () => {
  let image: string

  beforeAll(async () => {
    await line.build()
    image = join(line.folder, 'image.raw')
    await makeImage(image, IMAGE_BYTES, [{ ...HALF, key: String(chance.seed) }])
  })
  beforeEach(async () => {
    await line.freshDaemon()
    line.daemon.onPiece = takeTime
  })
  afterAll(async () => { await line.close() })

  it('of an import: how far, how fast, how much is holes, how much was there; in one line, gone at the end', async () => {
    const { code, screen } = await onTerminal(['import', image, '--name', 'image'])
    expect(code).toBe(0)
    expect(screen.erased.length).toBeGreaterThanOrEqual(SHOWN_MIN)
    for (const shown of screen.erased) expect(shown).toMatch(PROGRESS)
    expect(screen.erased.at(-1)).toMatch(/ {2}\d+% holes {2}\d+% already there$/)
    expect(screen.lines.map((text) => text.split(' ')[0])).toEqual(['image', 'size', 'chunks', 'new', 'sent'])
    expect(screen.cursor).toEqual({ row: 5, column: 0 })
  })

  it('of an export, also when the image goes into a pipe', async () => {
    line.daemon.onPiece = () => {}
    await line.run(['import', image, '--name', 'image'])
    const out = join(line.folder, 'out.raw')
    const { code, screen } = await onTerminal(['export', 'image', out])
    expect(code).toBe(0)
    for (const shown of screen.erased) expect(shown).toMatch(PROGRESS)
    expect(screen.erased.length).toBeGreaterThan(0)
    expect(screen.lines.map((text) => text.split(' ')[0])).toEqual(['version', 'size', 'sha256'])
    expect(await sha256Of(out)).toBe(await sha256Of(image))

    const piped = join(line.folder, 'piped.raw')
    const beside = await shown(['sh', '-c', `exec "$@" >'${piped}'`, 'sh', ...line.command(['export', 'image', '-'])])
    expect(beside.screen.erased.length).toBeGreaterThan(0)
    expect(beside.screen.lines.map((text) => text.split(' ')[0])).toEqual(['version', 'size', 'sha256'])
    expect(await sha256Of(piped)).toBe(await sha256Of(image))
  })

  it('is cut where the terminal ends: what goes on in the next line would stay there', async () => {
    const { code, screen } = await onTerminal(['import', image, '--name', 'image'], { columns: NARROW })
    expect(code).toBe(0)
    expect(screen.erased.length).toBeGreaterThanOrEqual(SHOWN_MIN)
    for (const shown of screen.erased) expect(shown.length).toBeLessThan(NARROW)
    expect(screen.lines[0]).toMatch(/^image/)
  })

  it('is gone before an error, which is red there, unless NO_COLOR says otherwise', async () => {
    for (const [env, coloured] of [[{}, true], [{ NO_COLOR: '1' }, false], [{ NO_COLOR: '' }, true]] as const) {
      let pieces = 0
      line.daemon.onPiece = () => {
        takeTime()
        if (++pieces > 20) throw new Error('half-way')
      }
      const { code, screen } = await onTerminal(['import', image, '--name', 'image'], { env })
      expect(code).toBe(1)
      expect(screen.erased.length).toBeGreaterThan(0)
      expect(screen.lines[0]).toBe('p2pvm: half-way')
      expect(screen.coloured).toBe(coloured)
    }
  })

  it('is gone before the word that Ctrl-C has ended it', async () => {
    line.daemon.onPiece = () => {
      line.daemon.onPiece = takeTime
      terminal.interrupt()
    }
    const terminal = new Terminal(line.command(['import', image, '--name', 'image']), { env: line.env() })
    const { code, screen } = await terminal.ended()
    expect(code).toBe(130)
    expect(screen.lines).toEqual(['p2pvm: interrupted by SIGINT'])
    expect(line.daemon.images_.size).toBe(0)
  })

  it('is not shown with --json, nor without a terminal', async () => {
    const out = join(line.folder, 'out.raw')
    for (const [verb, ...args] of [['import', image, '--name'], ['export', 'as-json', out]] as const) {
      const { code, screen } = await onTerminal([verb, ...args, ...verb === 'import' ? ['as-json'] : [], '--json'])
      expect(code).toBe(0)
      expect(screen.erased).toEqual([])
      expect(JSON.parse(screen.lines.join(''))).toMatchObject({ size: IMAGE_BYTES })

      const { stdout, stderr } = await line.run([verb, ...args, ...verb === 'import' ? ['for-people'] : []])
      expect(stderr).toBe('')
      expect(stdout).toMatch(/^(image|version) /)
      expect(stdout).not.toMatch(/[\r\x1b]/)
    }
  })
})

it('the screen that these look at keeps what is not erased, and wraps', () => {
  const screen = new Screen(5)
  screen.write('123\r\n\x1b[Kabcdefg\r\x1b[Kx')
  expect(screen.lines).toEqual(['123', 'abcde', 'x'])
  expect(screen.erased).toEqual(['fg'])
  expect(screen.cursor).toEqual({ row: 2, column: 1 })
})

async function onTerminal (args: readonly string[], { columns, env }: { columns?: number, env?: NodeJS.ProcessEnv } = {}): Promise<Shown> {
  return await shown(line.command(args), { columns, env })
}

async function shown (command: readonly string[], { columns = 100, env }: { columns?: number | undefined, env?: NodeJS.ProcessEnv | undefined } = {}): Promise<Shown> {
  return await new Terminal(command, { columns, env: line.env(env) }).ended()
}

/** What is behind the daemon cannot keep up with the file, and the socket between them is full. */
function takeTime (): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, CHUNK_TAKES_MS)
}
