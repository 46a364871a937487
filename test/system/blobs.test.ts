/**
 * BlobSeer's interface as commands, over real daemons: CREATE, WRITE, APPEND, READ, GET_RECENT and CLONE of bytes at any offset,
 * against the same bytes in memory. Written on one compute peer, read on the other.
 */
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { buffer, text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { AppendResult, CloneResult, CreateResult, VersionRow, WriteResult } from '../../src/node/control-api.ts'
import { connect } from '../../src/node/index.ts'
import type { FabricPeer } from '../../testnet/fabric.ts'
import { LiveFabric, succeed } from '../harness/live-fabric.ts'

const PROGRAM = fileURLToPath(new URL('../../bin/p2pvm', import.meta.url))
const DEADLINE_MS = 60_000
const CHUNK = 4096
const TIB = 2 ** 40
const NO_BLOB = 'aaaaaaaaaaaaaaaa'

interface Ran {
  readonly code: number | null
  readonly stdout: Buffer
  readonly stderr: string
}

describe('blobs', () => {
  let live: LiveFabric
  let writer: FabricPeer
  let reader: FabricPeer

  beforeAll(async () => {
    live = await LiveFabric.start({ storage: 2, compute: 2 })
    writer = live.compute(0)
    reader = live.compute(1)
  })

  afterAll(async () => { await live?.close() })

  /** As in a pipeline: bytes in, bytes out. */
  async function piped (peer: FabricPeer, args: readonly string[], input: Uint8Array = new Uint8Array(0)): Promise<Ran> {
    const child = spawn(PROGRAM, args, { env: { ...process.env, P2PVM_CONTROL: peer.control }, timeout: DEADLINE_MS })
    child.stdin.on('error', () => {}) // it ended before it had read all: its exit code says how
    child.stdin.end(input)
    const ended = new Promise<number | null>((resolve) => { child.once('close', resolve) })
    const [stdout, stderr, code] = await Promise.all([buffer(child.stdout), text(child.stderr), ended])
    return { code, stdout, stderr }
  }

  async function read (ref: string, ...range: string[]): Promise<Buffer> {
    const { code, stdout, stderr } = await piped(reader, ['blob', 'read', ref, ...range])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    return stdout
  }

  async function file (name: string, bytes: Uint8Array): Promise<string> {
    const path = join(live.folder, name)
    await writeFile(path, bytes)
    return path
  }

  const same = (a: Uint8Array, b: Uint8Array): void => {
    expect(a.length).toBe(b.length)
    expect(Buffer.compare(a, b)).toBe(0)
  }

  async function refused (args: readonly string[], code: number, error: string, fields: Record<string, unknown> = {}): Promise<void> {
    const answer = await writer.cli('blob', ...args)
    expect({ args, ...answer }).toMatchObject({ args, code, json: { error: { code: error, fields } } })
  }

  it('are created, written, appended to, read and cloned, each version as it was', async () => {
    const created = await succeed<CreateResult>(writer, 'blob', 'create', '--name', 'bytes', '--chunk-size', '4KiB', '--fan-out', '4')
    expect(created).toMatchObject({ version: 0, chunkSize: CHUNK, fanOut: 4, name: 'bytes' })
    const { blob } = created

    // Chunks and a half, from standard input.
    const first = randomBytes(6 * CHUNK + 1000)
    const one = await piped(writer, ['blob', 'write', 'bytes', '--at', '0', '--message', 'first', '--json'], first)
    expect(JSON.parse(one.stdout.toString())).toEqual({ blob, version: 1, size: first.length, bytes: first.length })

    // Unaligned, over what was there: the edges are merged with version 1.
    const patch = randomBytes(2 * CHUNK + 77)
    expect(await succeed<WriteResult>(writer, 'blob', 'write', blob, '--at', String(CHUNK - 33), await file('patch', patch), '--expected-base', '1'))
      .toEqual({ blob, version: 2, size: first.length, bytes: patch.length })
    const second = Buffer.from(first)
    patch.copy(second, CHUNK - 33)
    same(await read('bytes'), second)
    same(await read('bytes@1'), first)

    // Two extents are one version, and what lies between the end and the second is a hole.
    const [head, far] = [randomBytes(10), randomBytes(CHUNK + 5)]
    const farAt = 40 * CHUNK + 9
    expect(await succeed<WriteResult>(writer, 'blob', 'write', 'bytes', '--at', `${farAt}=${await file('far', far)}`, '--at', `5=${await file('head', head)}`))
      .toEqual({ blob, version: 3, size: farAt + far.length, bytes: head.length + far.length })
    const third = Buffer.concat([second, Buffer.alloc(farAt - second.length), far])
    head.copy(third, 5)
    same(await read(`${blob}@3`), third)
    // Across the hole, from bytes to bytes.
    same(await read('bytes', '--at', '5000', '--size', '160KiB'), third.subarray(5000, 5000 + 160 * 1024))
    same(await read('bytes', '--at', String(third.length - 3), '--size', '1GiB'), third.subarray(-3))
    same(await read('bytes', '--at', '1TiB'), Buffer.alloc(0))

    const tail = randomBytes(3 * CHUNK)
    const appended = await piped(writer, ['blob', 'append', 'bytes', '-', '--json'], tail)
    expect(JSON.parse(appended.stdout.toString()) as AppendResult).toEqual({ blob, version: 4, offset: third.length, size: third.length + tail.length, bytes: tail.length })
    const fourth = Buffer.concat([third, tail])
    expect(await succeed<VersionRow>(reader, 'blob', 'recent', 'bytes')).toMatchObject({ blob, version: 4, size: fourth.length, bytesChanged: tail.length })

    // Nothing to write is a version too.
    expect(JSON.parse((await piped(writer, ['blob', 'write', 'bytes', '--at', '1TiB', '--json'])).stdout.toString())).toMatchObject({ version: 5, size: fourth.length, bytes: 0 })

    const clone = await succeed<CloneResult>(writer, 'blob', 'clone', 'bytes@2', '--name', 'twin')
    expect(clone).toMatchObject({ version: 0, name: 'twin' })
    await succeed(writer, 'blob', 'write', 'twin', '--at', '0', await file('twin', head))
    same(await read('twin'), Buffer.concat([head, second.subarray(head.length)]))
    same(await read('twin@0'), second)

    const out = join(live.folder, 'read')
    expect(await succeed(reader, 'blob', 'read', 'bytes', '-o', out)).toEqual({ blob, version: 5, offset: 0, size: fourth.length })
    same(await readFile(out), fourth)
  })

  it('of a terabyte, nearly all holes, are quick to write and to read around', async () => {
    const startedMs = performance.now()
    const { blob } = await succeed<CreateResult>(writer, 'blob', 'create', '--chunk-size', '4KiB')
    const ten = randomBytes(10)
    expect(await succeed(writer, 'blob', 'write', blob, '--at', '1TiB', await file('ten', ten))).toEqual({ blob, version: 1, size: TIB + 10, bytes: 10 })
    expect(await succeed(writer, 'blob', 'append', blob, await file('more', ten))).toMatchObject({ version: 2, offset: TIB + 10 })
    same(await read(blob, '--at', String(TIB - 5), '--size', '20'), Buffer.concat([Buffer.alloc(5), ten, ten.subarray(0, 5)]))
    same(await read(blob, '--at', '512GiB', '--size', '1MiB'), Buffer.alloc(2 ** 20))
    const out = join(live.folder, 'terabyte')
    expect(await succeed(reader, 'blob', 'read', blob, '-o', out)).toMatchObject({ size: TIB + 20 })
    expect((await stat(out)).blocks).toBeLessThan(64)
    expect(performance.now() - startedMs).toBeLessThan(DEADLINE_MS / 2)
  })

  it('are written once when the same is asked again with its request id', async () => {
    const { blob } = await succeed<CreateResult>(writer, 'blob', 'create', '--chunk-size', '4KiB')
    const bytes = await file('again', randomBytes(3 * CHUNK + 5))
    for (const [version, request] of [['write', blob, '--at', '7', '--expected-base', '0', '--request-id', 'write-once'], ['append', blob, '--request-id', 'append-once']].entries()) {
      const first = await succeed<WriteResult>(writer, 'blob', ...request, bytes)
      expect(first.version).toBe(version + 1)
      expect(await succeed(writer, 'blob', ...request, bytes)).toEqual(first)
    }
    expect(await succeed<VersionRow>(writer, 'blob', 'recent', blob)).toMatchObject({ version: 2 })
    await refused(['append', blob, await file('other', randomBytes(9)), '--request-id', 'append-once'], 2, 'ERR_USAGE')
    await refused(['append', blob, bytes, '--request-id', 'short'], 2, 'ERR_USAGE')
  })

  it('are there for programs: streams in, ranges out', async () => {
    const fabric = await connect({ control: writer.control })
    try {
      const { blob } = await fabric.createBlob({ chunkSize: 65_536 })
      const bytes = randomBytes(20 * 65_536 + 1)
      const pieces = async function * (): AsyncGenerator<Uint8Array> {
        for (let at = 0; at < bytes.length; at += 100_000) yield bytes.subarray(at, at + 100_000)
      }
      expect(await fabric.appendBlob({ ref: blob }, pieces())).toMatchObject({ version: 1, offset: 0, size: bytes.length })
      const parts = [{ offset: 1, bytes: Buffer.from('one') }, { offset: 9 * 65_536, bytes: new Uint8Array(65_536) }]
      expect(await fabric.writeBlob({ ref: blob, expectedBase: 1 }, parts)).toMatchObject({ version: 2, bytes: 65_539 })
      for (const { offset, bytes: part } of parts) bytes.set(part, offset)
      same(await fabric.readBytes(`${blob}@2`), bytes)
      same(await fabric.readBytes(blob, { offset: 70_000, size: 600_000 }), bytes.subarray(70_000, 670_000))
    } finally {
      fabric.close()
    }
  })

  it('that have moved on, are not there, or are asked for what cannot be: refused, with nothing written', async () => {
    const { blob } = await succeed<CreateResult>(writer, 'blob', 'create', '--name', 'kept')
    const path = await file('kept', randomBytes(100))
    await succeed(writer, 'blob', 'append', 'kept', path)
    for (const base of ['0', '2']) {
      await refused(['write', 'kept', '--at', '0', path, '--expected-base', base], 11, 'ERR_CONFLICT', { reason: 'moved-on', latest: 1 })
      await refused(['append', 'kept', path, '--expected-base', base], 11, 'ERR_CONFLICT', { reason: 'moved-on', latest: 1 })
    }
    await refused(['create', '--name', 'kept'], 11, 'ERR_CONFLICT')
    for (const ref of ['nobody', NO_BLOB]) {
      await refused(['write', ref, '--at', '0', path], 10, 'ERR_NOT_FOUND')
      await refused(['append', ref, path], 10, 'ERR_NOT_FOUND')
      await refused(['read', ref, '-o', `${path}.out`], 10, 'ERR_NOT_FOUND')
      await refused(['recent', ref], 10, 'ERR_NOT_FOUND')
      await refused(['clone', ref], 10, 'ERR_NOT_FOUND')
    }
    await refused(['read', 'kept@9', '-o', `${path}.out`], 10, 'ERR_NOT_FOUND')
    for (const args of [
      ['write', 'kept', '--at', '-1', path], ['write', 'kept', '--at', '0.5', path], ['write', 'kept', '--at', 'end', path],
      // The last byte that a blob can have is not there: 2^53 less a chunk of 4 MiB.
      ['write', 'kept', '--at', '9007199254740991', path], ['write', 'kept@1', '--at', '0', path], ['recent', 'kept@1'],
      ['write', 'kept', '--at', `0=${path}`, '--at', `99=${path}`], ['read', 'kept', '--at', '-1', '-o', `${path}.out`],
      ['read', 'kept'], ['create', '--fan-out', '3'], ['create', '--chunk-size', '5000']
    ]) await refused(args, 2, 'ERR_USAGE')
    expect(await succeed<VersionRow>(reader, 'blob', 'recent', blob)).toMatchObject({ version: 1, size: 100 })
    same(await read('kept'), await readFile(path))
  })
})
