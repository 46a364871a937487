import { spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { appendFileSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { bundle } from '../../../scripts/bundle.ts'
import { serveControl } from '../../../src/node/control-server.ts'
import { rowOf } from '../../../src/node/control-handlers.ts'
import type { SocketServer } from '../../../src/node/http-server.ts'
import { P2pvmError } from '../../../src/protocols/errors.ts'
import { ABORTED_ATTEMPT, FIRST_ATTEMPT } from '../../../src/versioning/attempts.ts'
import type { Version } from '../../../src/versioning/blobs.ts'
import { FakeDaemon, quiet } from './fake-handlers.ts'

const MIB = 2 ** 20
/** A dozen processes one after the other: seconds, unless the machine is busy with something else. */
const MANY_COMMANDS_MS = 120_000

interface Ran {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

const folder = mkdtempSync(join(tmpdir(), 'p2pvm-commands-'))
const control = join(folder, 'control.sock')
let daemon: FakeDaemon
let server: SocketServer

beforeAll(async () => {
  writeFileSync(join(folder, 'config.json'), '{}')
  await bundle(join(folder, 'dist'))
})
beforeEach(async () => {
  daemon = new FakeDaemon()
  server = await serveControl(control, daemon, quiet)
  return async () => { await server.close() }
})
afterAll(() => { rmSync(folder, { recursive: true }) })

function start (args: readonly string[], env: NodeJS.ProcessEnv = {}): ReturnType<typeof spawn> {
  return spawn(process.execPath, [join(folder, 'dist', 'p2pvm.js'), ...args], {
    env: { PATH: process.env.PATH, P2PVM_CONFIG: join(folder, 'config.json'), P2PVM_CONTROL: control, ...env }
  })
}

async function run (args: readonly string[], { input, env }: { input?: Uint8Array, env?: NodeJS.ProcessEnv } = {}): Promise<Ran> {
  const child = start(args, env)
  child.stdin?.on('error', () => {}) // a command that does not read it
  child.stdin?.end(input)
  const exited = new Promise<number | null>((resolve) => { child.once('close', resolve) })
  const [stdout, stderr, code] = await Promise.all([text(child.stdout!), text(child.stderr!), exited])
  return { code, stdout, stderr }
}

async function document (...args: string[]): Promise<unknown> {
  const { code, stdout, stderr } = await run([...args, '--json'])
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
  return JSON.parse(stdout)
}

async function failure (...args: string[]): Promise<{ code: number | null, error: string }> {
  const { code, stdout, stderr } = await run([...args, '--json'])
  expect(stderr).toBe('')
  const parsed = JSON.parse(stdout) as { error: { code: string, message: string } }
  expect(parsed.error.message).not.toBe('')
  return { code, error: parsed.error.code }
}

/** 5 MiB and some bytes, with holes at the beginning, in the middle and at the end. */
function imageFile (name: string): { path: string, sha256: string, size: number } {
  const bytes = Buffer.alloc(5 * MIB + 100)
  randomBytes(300_000).copy(bytes, MIB - 7)
  randomBytes(10).copy(bytes, 3 * MIB)
  const path = join(folder, name)
  writeFileSync(path, bytes)
  return { path, size: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') }
}

describe('results', () => {
  test('import leaves holes out, export puts them back: file, sparse, and pipe', async () => {
    const { path, sha256, size } = imageFile('disk.raw')
    expect(await document('import', path, '--name', 'disk', '--message', 'first')).toMatchObject({ name: 'disk', blob: 'blob-disk', version: 1, size, chunks: 4, holes: 17 })
    expect(daemon.calls.at(-1)?.argument).toMatchObject({ name: 'disk', chunkSize: 256 * 1024, message: 'first' })

    const out = join(folder, 'out.raw')
    writeFileSync(out, 'what was there before')
    expect(await document('export', 'disk', out)).toMatchObject({ size, sha256 })
    expect(createHash('sha256').update(readFileSync(out)).digest('hex')).toBe(sha256)
    expect(statSync(out).blocks * 512).toBeLessThan(2 * MIB)

    const piped = await run(['export', 'disk', '-', '--json'])
    expect(piped.stdout.length).toBeGreaterThan(0)
    expect(JSON.parse(piped.stderr)).toMatchObject({ size, sha256 })

    const { code, stdout } = await run(['import', '-', '--name', 'piped', '--chunk-size', '64KiB', '--json'], { input: readFileSync(path) })
    expect(code).toBe(0)
    expect(JSON.parse(stdout)).toMatchObject({ size, chunkSize: 65536 })
    expect(await document('export', 'piped', out)).toMatchObject({ sha256 })
  }, MANY_COMMANDS_MS)

  test('an image of nothing but zeros, and an empty one', async () => {
    for (const size of [3 * MIB, 0]) {
      const path = join(folder, 'zeros')
      writeFileSync(path, Buffer.alloc(size))
      expect(await document('import', path, '--name', `zeros-${size}`)).toMatchObject({ size, chunks: 0 })
      expect(await document('export', `zeros-${size}`, `${path}.out`)).toMatchObject({ size, sha256: createHash('sha256').update(Buffer.alloc(size)).digest('hex') })
      expect(statSync(`${path}.out`).size).toBe(size)
    }
  })

  test('each command prints the document that the table of the issue names', async () => {
    await document('import', imageFile('disk.raw').path, '--name', 'disk')
    expect(await document('ls')).toMatchObject({ images: [{ name: 'disk', version: 1 }] })
    expect(await document('log', 'disk')).toMatchObject({ versions: [{ version: 1, timeMs: 0, writer: 'peer', bytesChanged: expect.any(Number) }] })
    expect(await document('info', 'disk@1')).toMatchObject({ blob: 'blob-disk', version: 1, size: expect.any(Number), chunkSize: 262144 })
    expect(await document('working-copy', 'create', 'vm1', 'disk')).toMatchObject({ name: 'vm1', blob: 'blob-disk', version: 1, path: null, dirtyBytes: 0 })
    expect(await document('working-copy', 'ls')).toEqual({ workingCopies: [] })
    expect(await document('working-copy', 'revert', 'vm1')).toMatchObject({ name: 'vm1' })
    expect(await document('working-copy', 'rm', 'vm1')).toEqual({ name: 'vm1' })
    expect(await document('clone', 'disk', '--name', 'two')).toMatchObject({ blob: 'c', version: 0, name: 'two', path: null })
    expect(daemon.calls.at(-1)?.argument).toEqual({ ref: 'disk', name: 'two' })
    expect(await document('clone', './x')).toMatchObject({ path: join(process.cwd(), 'x') })
    expect(await document('commit', 'vm1', '--as', 'three', '--message', 'm')).toMatchObject({ blob: 'b', version: 2, chunks: 1, bytes: 4096, freezeMs: 0.5, path: join(process.cwd(), 'vm1') })
    expect(daemon.calls.at(-1)?.argument).toMatchObject({ as: 'three', message: 'm' })
    expect(await document('commit', '--group', 'vm1', 'vm2')).toMatchObject({ members: [{ path: join(process.cwd(), 'vm1'), name: null }, { path: join(process.cwd(), 'vm2') }] })
    expect(await document('commit', '--as', 'x', '--as', 'y', 'vm1', 'vm2', '--group')).toMatchObject({ members: [{ name: 'x' }, { name: 'y' }] })
    expect(await document('status')).toMatchObject({ roles: ['storage'], stored: { chunks: 0, bytes: 0 }, cache: { chunks: 3, bytesMax: 2 ** 30 } })
    expect((await run(['status'])).stdout).toMatch(/^cache +3 chunks, 768 KiB of 1 GiB$/m)
    expect(await document('peers')).toMatchObject({ members: [{ peerId: 'peer', state: 'up' }] })
    expect(await document('config')).toMatchObject({ settings: expect.arrayContaining([{ name: 'control', value: control, origin: 'environment', from: 'P2PVM_CONTROL' }]) })
  }, MANY_COMMANDS_MS)

  test('a version whose writer died says so', async () => {
    const published: Version = {
      blob: 'blob-dead', version: 3, size: 4096, chunkSize: 4096, fanOut: 64, root: null, parent: null, timeMs: 0, writer: 'peer', message: '', bytesChanged: 0,
      attempt: FIRST_ATTEMPT, exceptions: 0, hash: ''
    }
    for (const [name, version, aborted] of [['alive', published, false], ['dead', { ...published, attempt: ABORTED_ATTEMPT, exceptions: 1 }, true]] as const) {
      daemon.images_.set(name, { ...rowOf(version), name, items: [] })
      expect(await document('log', name)).toMatchObject({ versions: [{ version: 3, aborted }] })
      expect(await document('info', name)).toMatchObject({ version: 3, aborted })
      for (const command of ['log', 'info']) expect((await run([command, name])).stdout.includes('aborted')).toBe(aborted)
    }
  }, MANY_COMMANDS_MS)

  test('blob: the six commands, from files, standard input and to both', async () => {
    const file = join(folder, 'part')
    writeFileSync(file, 'from a file')
    expect(await document('blob', 'create', '--name', 'b', '--chunk-size', '4KiB', '--fan-out', '2')).toEqual({ blob: 'blob-b', version: 0, chunkSize: 4096, fanOut: 2, name: 'b' })
    expect(await document('blob', 'create')).toMatchObject({ chunkSize: 262_144, fanOut: 64, name: null })
    expect(await document('blob', 'write', 'b', '--at', '1KiB', file, '--expected-base', '0', '--message', 'm', '--request-id', 'request-1')).toEqual({ blob: 'blob-b', version: 1, size: 1035, bytes: 11 })
    expect(daemon.calls.at(-1)).toEqual({ name: 'writeBlob', argument: { ref: 'b', expectedBase: 0, message: 'm', requestId: 'request-1' } })

    // In any order, one from standard input, one whose name has the sign in it.
    writeFileSync(`${file}=2`, 'two')
    const several = await run(['blob', 'write', 'b', '--at', `20=${file}=2`, '--at', '3', '-', '--at', `0=${file}=2`, '--json'], { input: Buffer.from('stdin') })
    expect(several).toMatchObject({ code: 0, stderr: '' })
    expect(JSON.parse(several.stdout)).toEqual({ blob: 'blob-b', version: 2, size: 1035, bytes: 11 })
    expect(Buffer.from(daemon.blobs_.get('b')!.bytes).toString('latin1', 0, 23)).toBe(`twostdin${'\0'.repeat(12)}two`)

    const appended = await run(['blob', 'append', 'b', '--json'], { input: Buffer.from('tail') })
    expect(JSON.parse(appended.stdout)).toEqual({ blob: 'blob-b', version: 3, offset: 1035, size: 1039, bytes: 4 })
    expect(await document('blob', 'append', 'b', file)).toMatchObject({ offset: 1039, bytes: 11 })

    expect(await run(['blob', 'read', 'b', '--at', '1020', '--size', '10'])).toEqual({ code: 0, stdout: '\0\0\0\0from a', stderr: '' })
    expect((await run(['blob', 'read', 'b', '--at', '9GiB'])).stdout).toBe('')
    const out = join(folder, 'read')
    expect(await document('blob', 'read', 'b', '--at', '1035', '--size', '4', '-o', out)).toEqual({ blob: 'blob-b', version: 4, offset: 1035, size: 4 })
    expect(readFileSync(out, 'utf8')).toBe('tail')

    expect(await document('blob', 'recent', 'b')).toMatchObject({ blob: 'blob-b', version: 4, size: 1050 })
    expect(await document('blob', 'clone', 'b@1', '--name', 'c')).toEqual({ blob: 'c', version: 0, name: 'c' })
  }, MANY_COMMANDS_MS)

  test('verify ends with 3 when replicas are short', async () => {
    await document('import', imageFile('disk.raw').path, '--name', 'disk')
    const { code, stdout } = await run(['verify', 'disk', '--json'])
    expect(code).toBe(3)
    expect(JSON.parse(stdout)).toMatchObject({ chunks: 4, replicas: { wanted: 12, found: 11 }, missing: 0, corrupt: 0 })
  })

  test('for people there are tables, on stdout alone', async () => {
    await document('import', imageFile('disk.raw').path, '--name', 'disk')
    const { stdout, stderr, code } = await run(['ls'])
    expect({ stderr, code }).toEqual({ stderr: '', code: 0 })
    expect(stdout).toMatch(/^NAME {2}VERSION +SIZE +WRITTEN \(UTC\) +BLOB\ndisk +1 +5\.0 MiB +1970-01-01 00:00:00 +blob-disk\n$/)
  })
})

describe('failures', () => {
  test('exit codes and documents', async () => {
    await document('import', imageFile('disk.raw').path, '--name', 'disk')
    expect(await failure('info', 'nobody')).toEqual({ code: 10, error: 'ERR_NOT_FOUND' })
    expect(await failure('import', join(folder, 'disk.raw'), '--name', 'disk')).toEqual({ code: 11, error: 'ERR_CONFLICT' })
    expect(await failure('import', join(folder, 'disk.raw'), '--name', 'x', '--chunk-size', '5000')).toEqual({ code: 2, error: 'ERR_USAGE' })
    expect(await failure('import', join(folder, 'disk.raw'), '--name', 'x', '--chunk-size', '8MiB')).toEqual({ code: 2, error: 'ERR_USAGE' })
    expect(await failure('import', join(folder, 'nothing'), '--name', 'x')).toEqual({ code: 10, error: 'ERR_NOT_FOUND' })
    expect(await failure('import', folder, '--name', 'x')).toEqual({ code: 2, error: 'ERR_USAGE' })
    expect(await failure('import', 'x')).toEqual({ code: 2, error: 'ERR_USAGE' })
    expect(await failure('frobnicate')).toEqual({ code: 2, error: 'ERR_USAGE' })
    expect(await failure('ls', '--frob')).toEqual({ code: 2, error: 'ERR_USAGE' })
    expect(await failure('daemon', '--write-quorum', '3', '--replicas', '2')).toEqual({ code: 2, error: 'ERR_USAGE' })
    expect(await failure('ls', '--control', join(folder, 'nobody.sock'))).toEqual({ code: 14, error: 'ERR_UNAVAILABLE' })
    daemon.failures.set('images', new P2pvmError('ERR_MISSING', 'gone'))
    expect(await failure('ls')).toEqual({ code: 13, error: 'ERR_MISSING' })
    expect(await failure('export', 'disk', join(folder, 'no', 'such', 'folder'))).toEqual({ code: 10, error: 'ERR_NOT_FOUND' })
  }, MANY_COMMANDS_MS)

  test('of blobs', async () => {
    await document('blob', 'create', '--name', 'b')
    const file = join(folder, 'bytes')
    writeFileSync(file, 'bytes')
    for (const at of ['-1', '1.5', 'here', '9PiB', '']) {
      expect(await failure('blob', 'write', 'b', '--at', at, file)).toEqual({ code: 2, error: 'ERR_USAGE' })
      expect(await failure('blob', 'read', 'b', '--at', at, '-o', `${file}.out`)).toEqual({ code: 2, error: 'ERR_USAGE' })
    }
    for (const args of [
      ['write', 'b', file], ['write', 'b', '--at', `0=${file}`, file], ['write', 'b', '--at', '0', '--at', '10', file],
      ['write', 'b', '--at', '0=-', '--at', '9'], ['write', 'b', '--at', `0=${file}`, '--at', `4=${file}`],
      ['write', 'b', '--at', '0', folder], ['append', 'b', file, '--expected-base', 'one'],
      ['create', '--fan-out', 'two'], ['create', '--chunk-size', 'small'], ['read', 'b'], ['read', 'b', '--size', '-1', '-o', file]
    ]) expect({ args, ...await failure('blob', ...args) }).toEqual({ args, code: 2, error: 'ERR_USAGE' })
    expect(await failure('blob', 'write', 'b', '--at', '0', join(folder, 'nothing'))).toEqual({ code: 10, error: 'ERR_NOT_FOUND' })
    expect(await failure('blob', 'append', 'nobody', file)).toEqual({ code: 10, error: 'ERR_NOT_FOUND' })
    expect(await failure('blob', 'write', 'b', '--at', '0', file, '--expected-base', '7')).toEqual({ code: 11, error: 'ERR_CONFLICT' })
    expect(daemon.blobs_.get('b')).toMatchObject({ version: 0 })
  }, MANY_COMMANDS_MS)

  test('a socket with nobody behind it: how to start a daemon', async () => {
    const { code, stderr, stdout } = await run(['ls', '--control', join(folder, 'nobody.sock')])
    expect({ code, stdout }).toEqual({ code: 14, stdout: '' })
    expect(stderr).toContain('p2pvm daemon')
    expect(stderr).toContain(join(folder, 'nobody.sock'))
  })

  test.each<[string, (path: string) => void]>([
    ['shrinks', (path) => { truncateSync(path, MIB) }],
    ['grows', (path) => { appendFileSync(path, 'more') }],
    ['is written to', (path) => { writeFileSync(path, Buffer.alloc(24 * MIB, 2)) }]
  ])('an image that %s while it is imported is not published', async (_, change) => {
    const path = join(folder, 'changing.raw')
    writeFileSync(path, Buffer.alloc(24 * MIB, 1))
    daemon.onPiece = () => {
      daemon.onPiece = () => {}
      change(path)
    }
    expect(await failure('import', path, '--name', 'changing')).toEqual({ code: 1, error: 'ERR_SOURCE_CHANGED' })
    expect(daemon.images_.size).toBe(0)
  })

  test('a file that changes while it is written to a blob is not', async () => {
    await document('blob', 'create', '--name', 'b')
    const path = join(folder, 'changing.part')
    writeFileSync(path, Buffer.alloc(24 * MIB, 1))
    daemon.onPiece = () => {
      daemon.onPiece = () => {}
      appendFileSync(path, 'more')
    }
    expect(await failure('blob', 'append', 'b', path)).toEqual({ code: 1, error: 'ERR_SOURCE_CHANGED' })
    expect(daemon.blobs_.get('b')).toMatchObject({ version: 0 })
  })

  test('an export that fails leaves nothing behind, and what was there as it was', async () => {
    await document('import', imageFile('disk.raw').path, '--name', 'disk')
    const there = join(folder, 'there')
    mkdirSync(there)
    writeFileSync(join(there, 'out'), 'before')
    daemon.failures.set('export items', new P2pvmError('ERR_CORRUPT', 'bad chunk'))
    expect(await failure('export', 'disk', join(there, 'out'))).toEqual({ code: 13, error: 'ERR_CORRUPT' })
    expect(readdirSync(there)).toEqual(['out'])
    expect(readFileSync(join(there, 'out'), 'utf8')).toBe('before')
  })

  test('a format that is not raw needs qemu-img, and a file', async () => {
    const path = join(folder, 'disk.qcow2')
    writeFileSync(path, Buffer.concat([Buffer.from('QFI\xfb', 'latin1'), Buffer.alloc(1000)]))
    const { code, stdout } = await run(['import', path, '--name', 'x', '--json'], { env: { PATH: '/nonexistent' } })
    expect(code).toBe(2)
    expect(stdout).toMatch(/qemu-utils/)
    expect((await run(['import', '-', '--name', 'x', '--json'], { input: readFileSync(path) })).code).toBe(2)
  })

  test('SIGINT ends with 130, and aborts what the daemon does', async () => {
    let aborted = false
    daemon.onVerify = async (signal) => {
      child.kill('SIGINT')
      await new Promise((_, reject) => {
        signal.addEventListener('abort', () => {
          aborted = true
          reject(signal.reason)
        })
      })
    }
    const child = start(['verify', 'disk', '--json'])
    const exited = new Promise<number | null>((resolve) => { child.once('close', resolve) })
    const stdout = await text(child.stdout!)
    expect(await exited).toBe(130)
    expect(JSON.parse(stdout)).toMatchObject({ error: { code: 'ERR_ABORTED' } })
    expect(aborted).toBe(true)
  })
})

describe('help', () => {
  test('each command has its exit codes, and costs no daemon', async () => {
    const { stdout } = await run(['--help'])
    const verbs = [...stdout.matchAll(/^ {2}([a-z-]+) .*$/gm)].map(([, verb]) => verb).filter((verb) => verb !== undefined && !verb.startsWith('-'))
    expect(verbs).toEqual(expect.arrayContaining(['import', 'export', 'ls', 'log', 'info', 'mount', 'umount', 'working-copy', 'clone', 'commit', 'blob', 'verify', 'status', 'peers', 'doctor', 'daemon', 'config']))
    const helps = await Promise.all([['import'], ['umount'], ['daemon'], ['blob', 'write'], ['blob', 'read']].map(async (verb) => await run([...verb, '--help'])))
    for (const { code, stdout } of helps) {
      expect(code).toBe(0)
      expect(stdout).toMatch(/Exit codes:\n +0 {2}done\n +1 {2}failed\n +2 /)
    }
  })
})
