import { execFile } from 'node:child_process'
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'

const SCRIPT = new URL('../../../bin/p2pvm', import.meta.url).pathname
/** sh, readlink, dirname: but no node. */
const TOOLS = ['sh', 'readlink', 'dirname']

let folder: string
let checkout: string
let path: string

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'p2pvm-bin-'))
  checkout = join(folder, 'some where', 'checkout')
  mkdirSync(join(checkout, 'bin'), { recursive: true })
  mkdirSync(join(checkout, 'dist'))
  cpSync(SCRIPT, join(checkout, 'bin', 'p2pvm'))
  writeFileSync(join(checkout, 'dist', 'p2pvm.js'), '')
  path = join(folder, 'path')
  mkdirSync(path)
  for (const tool of TOOLS) {
    const place = ['/bin', '/usr/bin'].find((bin) => existsSync(join(bin, tool))) ?? ''
    symlinkSync(join(place, tool), join(path, tool))
  }
})
afterEach(() => { rmSync(folder, { recursive: true }) })

/** A node that says its version, or the name it goes by and what it was asked to run. */
function node (folder: string, name: string, version: string): void {
  mkdirSync(folder, { recursive: true })
  const file = join(folder, 'node')
  writeFileSync(file, `#!/bin/sh\nif [ "$1" = --version ]; then echo ${version}; else echo ${name} $MALLOC_ARENA_MAX "$@"; fi\n`)
  chmodSync(file, 0o755)
}

async function run (program: string, ...args: string[]): Promise<{ code: number, stdout: string, stderr: string }> {
  return await new Promise((resolve) => {
    execFile(program, args, { env: { PATH: path }, cwd: '/' }, (error, stdout, stderr) => { resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }) })
  })
}

const inCheckout = (): string => join(checkout, 'bin', 'p2pvm')

test.each(['v22.15.0', 'v22.23.3', 'v24.0.0', 'v100.1.0'])('the node on the PATH is taken when it is new enough: %s', async (version) => {
  node(path, 'from-path', version)
  node(join(checkout, 'node_modules', 'node', 'bin'), 'from-checkout', 'v22.23.3')
  expect((await run(inCheckout(), 'ls', 'a b')).stdout).toBe(`from-path ${checkout}/dist/p2pvm.js ls a b\n`)
})

test.each(['v20.20.2', 'v22.14.9', 'v8.0.0', 'garbage'])('the one of the checkout otherwise: %s', async (version) => {
  node(path, 'from-path', version)
  node(join(checkout, 'node_modules', 'node', 'bin'), 'from-checkout', 'v22.23.3')
  expect((await run(inCheckout(), 'ls')).stdout).toMatch(/^from-checkout /)
})

test('also when there is none on the PATH', async () => {
  node(join(checkout, 'node_modules', '.bin'), 'from-checkout', 'v22.23.3')
  expect((await run(inCheckout(), 'ls')).stdout).toMatch(/^from-checkout /)
})

test('through symbolic links, from anywhere', async () => {
  node(path, 'node', 'v22.15.0')
  symlinkSync(inCheckout(), join(folder, 'first'))
  symlinkSync('../first', join(path, 'p2pvm'))
  expect((await run(join(path, 'p2pvm'), 'ls')).stdout).toBe(`node ${checkout}/dist/p2pvm.js ls\n`)
})

test('a daemon gets a small young generation and one malloc arena, and neither it nor a mount collects all for a few chunks', async () => {
  node(path, 'node', 'v22.15.0')
  expect((await run(inCheckout(), 'daemon', '--data', 'x')).stdout).toBe(`node 1 --max-semi-space-size=1 --initial-heap-size=40 ${checkout}/dist/p2pvm.js daemon --data x\n`)
  expect((await run(inCheckout(), 'mount', '/mnt')).stdout).toBe(`node --initial-heap-size=48 ${checkout}/dist/p2pvm.js mount /mnt\n`)
})

test('what is missing is named, and how to mend it', async () => {
  expect(await run(inCheckout(), 'ls')).toMatchObject({ code: 1, stdout: '', stderr: expect.stringMatching(/22\.15 or newer.*missing[^]*npm ci/) })
  node(path, 'node', 'v20.1.0')
  expect(await run(inCheckout(), 'ls')).toMatchObject({ code: 1, stderr: expect.stringMatching(/v20\.1\.0[^]*npm ci/) })
  node(path, 'node', 'v22.15.0')
  rmSync(join(checkout, 'dist'), { recursive: true })
  expect(await run(inCheckout(), 'ls')).toMatchObject({ code: 1, stderr: expect.stringMatching(/npm run build/) })
})
