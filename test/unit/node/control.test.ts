import { once } from 'node:events'
import { existsSync, renameSync, statSync, symlinkSync, unlinkSync, writeFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { Agent, type IncomingMessage, request as httpRequest } from 'node:http'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { json as readJson } from 'node:stream/consumers'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { ControlClient } from '../../../src/node/control-client.ts'
import { serveControl } from '../../../src/node/control-server.ts'
import type { SocketServer } from '../../../src/node/http-server.ts'
import { requestJson } from '../../../src/node/http-json.ts'
import { connect } from '../../../src/node/index.ts'
import { P2pvmError } from '../../../src/protocols/errors.ts'
import type { SparseItem } from '../../../src/versioning/image-import.ts'
import { FakeDaemon, quiet } from './fake-handlers.ts'

const CHUNK = 64 * 1024

let folder: string
let socket: string
let daemon: FakeDaemon
let server: SocketServer
let client: ControlClient

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'p2pvm-control-'))
  socket = join(folder, 'control.sock')
  daemon = new FakeDaemon()
  server = await serveControl(socket, daemon, quiet)
  client = new ControlClient(socket)
})

afterEach(async () => {
  client.close()
  await server.close()
  await rm(folder, { recursive: true })
})

async function * image (pieces: number, { size = pieces * CHUNK, fail }: { size?: number, fail?: Error } = {}): AsyncGenerator<SparseItem> {
  for (let at = 0; at < pieces; at++) yield { offset: at * CHUNK, bytes: Buffer.alloc(CHUNK, at + 1) }
  if (fail !== undefined) throw fail
  yield { size }
}

const importing = async (source: AsyncIterable<SparseItem>, name = 'disk') => await client.import({ name, chunkSize: CHUNK }, source)

/** What a client that is not ours may send. */
async function raw (method: string, path: string, body: string | undefined): Promise<{ status: number | undefined, code: string }> {
  const agent = new Agent({ keepAlive: true })
  const request = httpRequest({ socketPath: socket, method, path, agent }).end(body)
  const [response] = await once(request, 'response') as [IncomingMessage]
  const { error } = await readJson(response) as { error: { code: string } }
  agent.destroy()
  return { status: response.statusCode, code: error.code }
}

describe('control socket', () => {
  test('answers and arguments go through', async () => {
    expect(await client.status()).toMatchObject({ peerId: 'peer' })
    expect(await client.chunkIds({ blob: 'b', version: 3, first: 2, count: 3 })).toEqual([null, 'id-3', null])
    expect(daemon.calls.at(-1)?.argument).toEqual({ blob: 'b', version: 3, first: 2, count: 3 })
    expect(await client.fetch(['x', 'y'], { priority: 'prefetch' })).toEqual(['y'])
    expect(daemon.calls.at(-1)?.argument).toEqual({ chunks: ['x', 'y'], priority: 'prefetch' })
    await client.removeWorkingCopy('a/b c%')
    expect(daemon.calls.at(-1)?.argument).toBe('a/b c%')
    expect(await client.commit({ path: '/m/working/a', as: 'new' })).toMatchObject({ name: 'new', path: '/m/working/a' })
    expect(await client.commitGroup({ members: [{ path: '/a' }, { workingCopy: 'b', as: 'new' }], message: 'both' })).toMatchObject({ members: [{ path: '/a', name: null }, { name: 'new' }] })
    expect(daemon.calls.at(-1)?.argument).toEqual({ members: [{ path: '/a' }, { workingCopy: 'b', as: 'new' }], message: 'both' })
    expect(await client.metrics()).toContain('p2pvm_x_total 1')
  })

  test('the library connects, or says that nobody is there', async () => {
    const fabric = await connect({ control: socket })
    expect(await fabric.images()).toEqual([])
    fabric.close()
    await expect(connect({ control: join(folder, 'nobody.sock') })).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
  })

  test('errors come out with code, message and fields', async () => {
    await expect(client.resolve('nobody')).rejects.toMatchObject({ code: 'ERR_NOT_FOUND', message: 'no such image: nobody', fields: { ref: 'nobody' } })
    daemon.failures.set('status', new TypeError('a bug'))
    await expect(client.status()).rejects.toMatchObject({ code: 'ERR_INTERNAL', message: 'a bug' })
  })

  test('import and export carry an image and its holes', async () => {
    const progress = vi.fn()
    async function * sparse (): AsyncGenerator<SparseItem> {
      yield { offset: 10 * CHUNK - 5, bytes: Buffer.alloc(10, 9) }
      yield { offset: 20 * CHUNK, bytes: Buffer.alloc(CHUNK) }
      yield { size: 30 * CHUNK + 1 }
    }
    const result = await client.import({ name: 'disk', chunkSize: CHUNK, message: 'ü' }, sparse(), { onProgress: progress })
    expect(result).toMatchObject({ chunks: 2, holes: 29, size: 30 * CHUNK + 1 })
    expect(progress).toHaveBeenCalled()
    const { version, items } = await client.export('disk')
    expect(version).toMatchObject({ message: 'ü', size: 30 * CHUNK + 1 })
    const back = Buffer.alloc(version.size)
    for await (const item of items) if ('bytes' in item) back.set(item.bytes, item.offset)
    expect(back.subarray(10 * CHUNK - 5, 10 * CHUNK + 5).equals(Buffer.alloc(10, 9))).toBe(true)
    expect(back.reduce((sum, byte) => sum + byte, 0)).toBe(90)
  })

  test('an import that is refused at once says why, whatever is still being sent', async () => {
    await importing(image(1))
    await expect(importing(image(400))).rejects.toMatchObject({ code: 'ERR_CONFLICT', fields: { name: 'disk' } })
    daemon.failures.set('import', new P2pvmError('ERR_DISK_FULL', 'full'))
    await expect(importing(image(400), 'other')).rejects.toMatchObject({ code: 'ERR_DISK_FULL' })
    await expect(client.import({ name: 'x', chunkSize: 12345 }, image(400))).rejects.toMatchObject({ code: 'ERR_USAGE' })
    daemon.onPiece = () => { throw new P2pvmError('ERR_DISK_FULL', 'full now') }
    await expect(importing(image(400), 'other')).rejects.toMatchObject({ code: 'ERR_DISK_FULL', message: 'full now' })
  })

  test('a source that fails is the daemon\'s failure too, and the caller gets it back', async () => {
    await expect(importing(image(3, { fail: new P2pvmError('ERR_SOURCE_CHANGED', 'it grew') }))).rejects.toMatchObject({ code: 'ERR_SOURCE_CHANGED' })
    expect(daemon.images_.size).toBe(0)
  })

  test('an export that fails half-way keeps its code', async () => {
    await importing(image(3))
    daemon.failures.set('export items', new P2pvmError('ERR_MISSING', 'chunk is gone', { cid: 'bafk' }))
    const { items } = await client.export('disk')
    await expect((async () => { for await (const _ of items); })()).rejects.toMatchObject({ code: 'ERR_MISSING', fields: { cid: 'bafk' } })
  })

  test('a daemon that dies during an import or export is unavailable', async () => {
    async function * endless (): AsyncGenerator<SparseItem> {
      for (let at = 0; ; at++) {
        if (at === 50) await server.close()
        yield { offset: at * CHUNK, bytes: Buffer.alloc(CHUNK, 1) }
      }
    }
    await expect(importing(endless())).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
    server = await serveControl(socket, daemon, quiet)
    await importing(image(300))
    const { items } = await client.export('disk')
    await expect((async () => { for await (const _ of items) await server.close() })()).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
    server = await serveControl(socket, daemon, quiet)
  })

  test('giving up aborts the handler, and is thrown as ERR_ABORTED', async () => {
    const giveUp = new AbortController()
    const fetching = client.fetch(['never'], { signal: giveUp.signal })
    await vi.waitFor(() => { expect(daemon.calls.at(-1)?.name).toBe('fetch') })
    giveUp.abort()
    await expect(fetching).rejects.toMatchObject({ code: 'ERR_ABORTED' })
    await vi.waitFor(() => { expect(daemon.calls.at(-1)?.name).toBe('fetch aborted') })
  })

  test('giving up an import ends the handler\'s source', async () => {
    const giveUp = new AbortController()
    async function * stuck (): AsyncGenerator<SparseItem> {
      yield { offset: 0, bytes: Buffer.alloc(CHUNK, 1) }
      giveUp.abort()
      await new Promise(() => {})
    }
    await expect(client.import({ name: 'disk', chunkSize: CHUNK }, stuck(), { signal: giveUp.signal })).rejects.toMatchObject({ code: 'ERR_ABORTED' })
    expect(daemon.images_.size).toBe(0)
  })

  test('a deadline that passes is a timeout', async () => {
    await expect(requestJson(socket, 'POST', '/v1/fetch', { body: { chunks: ['never'] }, deadlineMs: 20 })).rejects.toMatchObject({ code: 'ERR_TIMEOUT' })
  })

  test('a kept connection that dies under the next question is not noticed', async () => {
    const name = join(folder, 'name')
    symlinkSync(socket, name)
    const named = new ControlClient(name)
    await named.status()
    const next = await serveControl(join(folder, 'next.sock'), daemon, quiet)
    unlinkSync(name)
    symlinkSync(join(folder, 'next.sock'), name)
    const [answer] = await Promise.all([named.status(), server.close()])
    expect(answer).toMatchObject({ peerId: 'peer' })
    named.close()
    server = next
  })

  test.each([
    ['GET', '/v1/nothing', undefined, 404, 'ERR_NOT_FOUND'],
    ['GET', '/v1/resolve', undefined, 400, 'ERR_USAGE'],
    ['GET', '/v1/chunk-ids?blob=b&version=-1&first=0&count=1', undefined, 400, 'ERR_USAGE'],
    ['GET', '/v1/chunk-ids?blob=b&version=1&first=0&count=999999', undefined, 400, 'ERR_USAGE'],
    ['DELETE', '/v1/working-copies/%zz', undefined, 400, 'ERR_USAGE'],
    ['POST', '/v1/fetch', '[]', 400, 'ERR_USAGE'],
    ['POST', '/v1/fetch', '{"chunks": [1]}', 400, 'ERR_USAGE'],
    ['POST', '/v1/fetch', '{"chunks": [], "priority": "soon"}', 400, 'ERR_USAGE'],
    ['POST', '/v1/clone', '{"ref": "a", "path": "/b"}', 400, 'ERR_USAGE'],
    ['POST', '/v1/commit', '{}', 400, 'ERR_USAGE'],
    ['POST', '/v1/commit-group', '{}', 400, 'ERR_USAGE'],
    ['POST', '/v1/commit-group', '{"members": [{}]}', 400, 'ERR_USAGE'],
    ['POST', '/v1/commit-group', '{"members": [null]}', 400, 'ERR_USAGE'],
    ['POST', '/v1/import?name=a&chunkSize=65536', 'garbage', 400, 'ERR_PROTOCOL'],
    ['POST', '/v1/blobs', '{"chunkSize": "4096"}', 400, 'ERR_USAGE'],
    ['POST', '/v1/blobs', '{"fanOut": 2.5}', 400, 'ERR_USAGE'],
    ['POST', '/v1/write', '', 400, 'ERR_USAGE'],
    ['POST', '/v1/write?ref=a&expectedBase=-1', '', 400, 'ERR_USAGE'],
    ['POST', '/v1/append?ref=a&expectedBase=latest', '', 400, 'ERR_USAGE'],
    ['POST', '/v1/append?ref=a', '', 404, 'ERR_NOT_FOUND'],
    ['GET', '/v1/read?ref=a&offset=-1', undefined, 400, 'ERR_USAGE'],
    ['GET', '/v1/read?ref=a&size=9007199254740993', undefined, 400, 'ERR_USAGE'],
    ['GET', '/v1/recent', undefined, 400, 'ERR_USAGE']
  ])('%s %s with %s is refused with %d', async (method, path, body, status, code) => {
    expect(await raw(method, path, body)).toEqual({ status, code })
    expect(await client.status()).toBeDefined()
  })

  test('a body without end is refused', async () => {
    expect(await raw('POST', '/v1/fetch', 'x'.repeat(5 * 2 ** 20))).toEqual({ status: 400, code: 'ERR_USAGE' })
  })
})

describe('blobs over the socket', () => {
  beforeEach(async () => { await client.createBlob({ name: 'b', chunkSize: 4096, fanOut: 2 }) })

  const written = (): Buffer => Buffer.from(daemon.blobs_.get('b')!.bytes)

  test('create says what was asked, and nothing of what was not', async () => {
    expect(daemon.calls.at(-1)).toEqual({ name: 'createBlob', argument: { chunkSize: 4096, fanOut: 2, name: 'b' } })
    expect(await client.createBlob()).toEqual({ blob: 'blob-unnamed', version: 0, chunkSize: 262_144, fanOut: 64, name: null })
  })

  test('write carries several extents, zeros and all, in one version', async () => {
    const parts = [{ offset: 5, bytes: Buffer.from('five') }, { offset: 9, bytes: new Uint8Array(0) }, { offset: 5 * 2 ** 20, bytes: Buffer.alloc(5 * 2 ** 20) }]
    const progress = vi.fn()
    expect(await client.writeBlob({ ref: 'b', expectedBase: 0, message: 'ü' }, parts, { onProgress: progress }))
      .toEqual({ blob: 'blob-b', version: 1, size: 10 * 2 ** 20, bytes: 5 * 2 ** 20 + 4 })
    expect(daemon.calls.at(-1)?.argument).toEqual({ ref: 'b', expectedBase: 0, message: 'ü' })
    expect(written().subarray(0, 10).toString()).toBe('\0\0\0\0\0five\0')
    expect(progress).toHaveBeenCalled()
    // A name and nothing else is enough, and nothing is something to write.
    expect(await client.writeBlob({ ref: 'b' }, [])).toMatchObject({ version: 2, bytes: 0 })
    expect(daemon.calls.at(-1)?.argument).toEqual({ ref: 'b' })
  })

  test('append carries bytes, or a stream of them', async () => {
    expect(await client.appendBlob({ ref: 'b' }, Buffer.from('abc'))).toEqual({ blob: 'blob-b', version: 1, offset: 0, size: 3, bytes: 3 })
    async function * stream (): AsyncGenerator<Uint8Array> {
      yield Buffer.from('d')
      yield Buffer.alloc(0)
      yield Buffer.from('ef')
    }
    expect(await client.appendBlob({ ref: 'b', expectedBase: 1 }, stream())).toEqual({ blob: 'blob-b', version: 2, offset: 3, size: 6, bytes: 3 })
    expect(written().toString()).toBe('abcdef')
  })

  test('read gives a range, counted from its beginning, holes left out', async () => {
    await client.writeBlob({ ref: 'b' }, [{ offset: 100, bytes: Buffer.from('hello') }])
    const { version, items } = await client.readBlob('b', { offset: 90, size: 12 })
    expect(version).toMatchObject({ blob: 'blob-b', version: 1, size: 105 })
    const seen: SparseItem[] = []
    for await (const item of items) seen.push(item)
    expect(seen).toEqual([{ offset: 10, bytes: Buffer.from('he') }, { size: 12 }])
    expect(Buffer.from(await client.readBytes('b', { offset: 90 })).toString()).toBe('\0'.repeat(10) + 'hello')
    expect((await client.readBytes('b', { offset: 99, size: 2 })).length).toBe(2)
    expect((await client.readBytes('b', { offset: 200, size: 2 })).length).toBe(0)
    expect((await client.readBytes('b')).length).toBe(105)
    expect(daemon.calls.at(-1)?.argument).toEqual({ ref: 'b', offset: 0, size: Infinity })
  })

  test('recent and clone', async () => {
    await client.appendBlob({ ref: 'b' }, Buffer.from('x'))
    expect(await client.recent('b')).toMatchObject({ version: 1, size: 1 })
    expect(await client.clone({ ref: 'b@1', name: 'c' })).toMatchObject({ version: 0, name: 'c' })
  })

  test('errors keep their codes, before the bytes, among them and after', async () => {
    const endless = async function * (): AsyncGenerator<Uint8Array> { for (;;) yield Buffer.alloc(CHUNK, 1) }
    const bytes = [{ offset: 0, bytes: Buffer.alloc(100, 1) }]
    await expect(client.appendBlob({ ref: 'nobody' }, endless())).rejects.toMatchObject({ code: 'ERR_NOT_FOUND' })
    await expect(client.writeBlob({ ref: 'b', expectedBase: 7 }, bytes)).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    daemon.onPiece = () => { throw new P2pvmError('ERR_DISK_FULL', 'full now') }
    await expect(client.appendBlob({ ref: 'b' }, endless())).rejects.toMatchObject({ code: 'ERR_DISK_FULL' })
    daemon.onPiece = () => {}
    async function * failing (): AsyncGenerator<Uint8Array> {
      yield Buffer.alloc(100, 1)
      throw new P2pvmError('ERR_SOURCE_CHANGED', 'it grew')
    }
    await expect(client.appendBlob({ ref: 'b' }, failing())).rejects.toMatchObject({ code: 'ERR_SOURCE_CHANGED' })
    expect(daemon.blobs_.get('b')).toMatchObject({ version: 0 })
    await client.writeBlob({ ref: 'b' }, bytes)
    daemon.failures.set('readBlob items', new P2pvmError('ERR_MISSING', 'chunk is gone', { cid: 'bafk' }))
    await expect(client.readBytes('b')).rejects.toMatchObject({ code: 'ERR_MISSING', fields: { cid: 'bafk' } })
  })

  test.each([
    ['overlap', [{ offset: 0, bytes: Buffer.alloc(10) }, { offset: 9, bytes: Buffer.alloc(1) }]],
    ['go back', [{ offset: 10, bytes: Buffer.alloc(1) }, { offset: 0, bytes: Buffer.alloc(1) }]],
    ['are nowhere', [{ offset: -1, bytes: Buffer.alloc(1) }]],
    ['are between bytes', [{ offset: 0.5, bytes: Buffer.alloc(1) }]],
    ['end past all numbers', [{ offset: Number.MAX_SAFE_INTEGER, bytes: Buffer.alloc(1) }]]
  ])('parts that %s are refused', async (_, parts) => {
    await expect(client.writeBlob({ ref: 'b' }, parts)).rejects.toMatchObject({ code: 'ERR_USAGE' })
    expect(daemon.blobs_.get('b')).toMatchObject({ version: 0 })
  })

  test('without progress, for whoever asks by hand', async () => {
    // One byte at 3, and the end at 4, as sparse-stream.ts has it.
    const body = Buffer.from('0000000000000003' + '00000001' + '78' + '0000000000000004' + 'ffffffff', 'hex')
    async function * sent (): AsyncGenerator<Uint8Array> { yield body }
    const asked = { body: sent(), deadlineMs: 10_000 }
    expect(await requestJson(socket, 'POST', '/v1/write?ref=b', asked)).toEqual({ blob: 'blob-b', version: 1, size: 4, bytes: 1 })
    await expect(requestJson(socket, 'POST', '/v1/append?ref=b', { ...asked, body: sent() })).rejects.toMatchObject({ code: 'ERR_PROTOCOL', message: expect.stringContaining('gap') as string })
  })
})

describe('the socket\'s file', () => {
  test('is for the owner and the group, and goes with the server', async () => {
    expect(statSync(socket).mode & 0o777).toBe(0o660)
    await server.close()
    expect(existsSync(socket)).toBe(false)
    server = await serveControl(socket, daemon, quiet)
  })

  test('of a dead process is replaced', async () => {
    await server.close()
    // What a kill -9 leaves behind: a bound socket with nobody at it. Node unlinks what it closes, so close another name of it.
    const dead = createServer().listen(join(folder, 'dead.sock'))
    await once(dead, 'listening')
    renameSync(join(folder, 'dead.sock'), socket)
    dead.close()
    await once(dead, 'close')
    expect(existsSync(socket)).toBe(true)
    await expect(client.status()).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE', fields: { errno: 'ECONNREFUSED' } })
    server = await serveControl(socket, daemon, quiet)
    expect(await client.status()).toBeDefined()
  })

  test('of a living one is not, nor is a file that is no socket', async () => {
    await expect(serveControl(socket, daemon, quiet)).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    expect(await client.status()).toBeDefined()
    const file = join(folder, 'precious')
    writeFileSync(file, 'x')
    await expect(serveControl(file, daemon, quiet)).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    expect(existsSync(file)).toBe(true)
  })
})
