/** The protocol and its client over a network in memory, with a clock that the test moves. */
import { describe, expect, test } from 'vitest'
import { encodeCbor } from '../../../src/protocols/codec.ts'
import { BODY_BYTES_MAX } from '../../../src/protocols/frame.ts'
import { serveVersions, VERSION_PROTOCOL } from '../../../src/protocols/version-protocol.ts'
import { BlobClient } from '../../../src/versioning/blob-client.ts'
import { VersionClient } from '../../../src/versioning/version-client.ts'
import { FakeClock, settle } from '../../harness/fake-clock.ts'
import type { AssignRequest } from '../../harness/asked-manager.ts'
import { MemoryFabric } from '../../harness/memory-fabric.ts'
import { MemoryNetwork, type MemoryTransport } from '../../harness/memory-transport.ts'
import { KeptLog } from '../../harness/quiet.ts'
import { namedSigner } from '../../harness/signers.ts'

const CHUNK = 4096

class Remote {
  readonly clock = new FakeClock()
  readonly network = new MemoryNetwork(this.clock)
  readonly fabric = new MemoryFabric({ clock: this.clock })
  readonly transport: MemoryTransport
  readonly versions: VersionClient
  readonly blobs: BlobClient

  constructor () {
    serveVersions(this.network.join('manager'), this.fabric.manager.service)
    this.transport = this.network.join('client')
    const { clock, fabric, fabric: { random, records, chunks }, transport } = this
    this.versions = new VersionClient({ transport, clock, random, locate: async () => 'manager' })
    this.blobs = new BlobClient({ chunks, records, versions: this.versions, clock, random, signer: namedSigner('client'), fabricKey: fabric.fabricKey, log: new KeptLog() })
  }

  kill (): void {
    this.network.kill('manager')
  }

  restart (): void {
    serveVersions(this.network.join('manager'), this.fabric.restart().service)
  }

  get requests (): number {
    return this.network.requests.get(VERSION_PROTOCOL) ?? 0
  }

  /** The promise's outcome, with the clock moved by at most `ms`. */
  async within<T> (ms: number, promise: Promise<T>): Promise<T> {
    let open = true
    const outcome = promise.finally(() => { open = false })
    outcome.catch(() => {})
    await settle()
    for (let passed = 0; open && passed < ms; passed += 100) await this.clock.advance(100)
    if (open) throw new Error(`not done after ${ms} ms`)
    return await outcome
  }
}

test('all operations, over the wire', async () => {
  const { blobs, fabric } = new Remote()
  const { blob } = await blobs.create({ chunkSize: CHUNK, fanOut: 4, name: 'image' })
  const written = await blobs.write(blob, [{ offset: 100, bytes: new Uint8Array(9 * CHUNK).fill(1) }], { requestId: 'request-1', message: 'hello' })
  expect(written).toMatchObject({ version: 1, size: 9 * CHUNK + 100, writer: 'client', message: 'hello', bytesChanged: 9 * CHUNK })
  const appended = await blobs.append(blob, new Uint8Array([1, 2, 3]))
  expect(await blobs.recent(blob)).toEqual(appended)
  expect(await blobs.log(blob)).toMatchObject([{ version: 0 }, written, appended])
  const clone = await blobs.clone(written, { name: 'clone' })
  expect(await blobs.images()).toEqual([{ name: 'clone', blob: clone.blob, latest: clone }, { name: 'image', blob, latest: appended }])
  expect(await blobs.outcome('request-1')).toEqual(written)
  expect(await blobs.resolve('image@1')).toEqual(written)
  // What the version manager answered and what the record on storage peers says is the same.
  expect(await fabric.client().version(appended)).toEqual(appended)
})

test('the largest answer fits a message', async () => {
  const { fabric } = new Remote()
  const context = { peer: 'writer', signal: new AbortController().signal }
  const { version: { blob } } = await fabric.manager.create({ op: 'create', requestId: 'create-it', of: { kind: 'new', chunkSize: CHUNK, fanOut: 2 } }, context)
  const offset = 2 ** 50
  const extents = Array.from({ length: 32 }, (_, at) => ({ offset: offset + at * 2 ** 34, size: 2 ** 33 }))
  const request = (number: number): AssignRequest => ({
    op: 'assign', requestId: `request-${number}`, target: { kind: 'blob', blob }, change: { kind: 'write', extents, size: 2 ** 52 }
  })
  for (let number = 0; number < 255; number++) await fabric.manager.assign(request(number), context)
  const last = await fabric.manager.service.assign({ ...request(255), writerKey: namedSigner('writer').publicKey }, context)
  expect(last.inFlight.length).toBe(255)
  const flat = { ...last, inFlight: last.inFlight.map((one) => ({ ...one, extents: one.extents.flatMap(({ offset, size }) => [offset, size]) })) }
  expect(encodeCbor(flat).length).toBeLessThan(BODY_BYTES_MAX - 4096)
  await expect(fabric.manager.assign(request(256), context)).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
})

describe('a version manager that goes away', () => {
  test('and is back within ten seconds fails nothing', async () => {
    const remote = new Remote()
    const { blob } = await remote.blobs.create({ chunkSize: CHUNK })
    remote.kill()
    const written = remote.blobs.write(blob, [{ offset: 0, bytes: new Uint8Array(CHUNK).fill(1) }])
    await remote.clock.advance(10_000)
    remote.restart()
    expect(await remote.within(2000, written)).toMatchObject({ version: 1 })
  })

  test('while somebody waits for a publication: the wait goes on at the next one', async () => {
    const remote = new Remote()
    const context = { peer: 'other', signal: new AbortController().signal }
    const { blob } = await remote.blobs.create({ chunkSize: CHUNK })
    await remote.fabric.manager.assign({ op: 'assign', requestId: 'slow-one', target: { kind: 'blob', blob }, change: { kind: 'append', size: 0 } }, context)
    const written = remote.blobs.write(blob, [{ offset: 0, bytes: new Uint8Array(CHUNK).fill(1) }])
    await settle()
    remote.kill()
    await remote.clock.advance(5000)
    remote.restart()
    await remote.clock.advance(15_000)
    const slow = { op: 'complete', requestId: 'slow-one', blob, version: 1, message: '', bytesChanged: 0 } as const
    // Its tree, which nobody has written here, is not read: the other one covers all of it.
    await remote.fabric.manager.complete(slow, context)
    expect(await remote.within(1000, written)).toMatchObject({ version: 2 })
  })

  test('and an earlier writer that takes very long: the wait has an end', async () => {
    const remote = new Remote()
    const context = { peer: 'other', signal: new AbortController().signal }
    const { blob } = await remote.blobs.create({ chunkSize: CHUNK })
    await remote.fabric.manager.assign({ op: 'assign', requestId: 'slow-one', target: { kind: 'blob', blob }, change: { kind: 'append', size: 0 } }, context)
    const written = remote.blobs.write(blob, [{ offset: 0, bytes: new Uint8Array(CHUNK).fill(1) }])
    const ended = expect(written).rejects.toMatchObject({ code: 'ERR_TIMEOUT', message: expect.stringContaining('not published yet') })
    for (let count = 0; count < 7; count++) {
      await remote.versions.ask({ op: 'renew', requestId: 'slow-one', blob, version: 1 })
      await remote.clock.advance(10_000)
    }
    await ended
    await remote.fabric.manager.stop()
    expect(remote.clock.pending).toBe(0)
  })

  test('and an earlier writer that does not come back: the wait goes on without it', async () => {
    const remote = new Remote()
    const context = { peer: 'other', signal: new AbortController().signal }
    const { blob } = await remote.blobs.create({ chunkSize: CHUNK })
    await remote.fabric.manager.assign({ op: 'assign', requestId: 'dead-one', target: { kind: 'blob', blob }, change: { kind: 'append', size: 0 } }, context)
    const written = remote.blobs.write(blob, [{ offset: 0, bytes: new Uint8Array(CHUNK).fill(1) }])
    expect(await remote.within(31_000, written)).toMatchObject({ version: 2, attempt: 1, exceptions: 1 })
  })

  test('for good is ERR_UNAVAILABLE after twenty seconds, with what was wrong', async () => {
    const remote = new Remote()
    remote.kill()
    const startMs = remote.clock.monotonic()
    await expect(remote.within(30_000, remote.blobs.create())).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE', message: 'asking the version manager: manager cannot be reached' })
    expect(remote.clock.monotonic() - startMs).toBeGreaterThanOrEqual(20_000)
    expect(remote.clock.pending).toBe(0)
  })

  test('silently is asked again', async () => {
    const remote = new Remote()
    remote.network.hang('manager')
    const created = remote.blobs.create()
    await remote.clock.advance(3000)
    remote.network.resume('manager')
    await remote.within(3000, created)
    expect(remote.requests).toBe(2)
  })

  test('is not waited for by a caller who gives up', async () => {
    const remote = new Remote()
    remote.kill()
    const caller = new AbortController()
    const created = remote.blobs.create({}, { signal: caller.signal })
    await remote.clock.advance(500)
    caller.abort()
    await expect(created).rejects.toMatchObject({ code: 'ERR_ABORTED' })
  })

  test('a refusal is not asked for twice', async () => {
    const remote = new Remote()
    await expect(remote.blobs.recent('a'.repeat(16))).rejects.toMatchObject({ code: 'ERR_NOT_FOUND' })
    expect(remote.requests).toBe(1)
  })
})

test('storage peers that are away while the tree is written are waited for: the version is assigned, and others wait for it', async () => {
  const remote = new Remote()
  const { blob } = await remote.blobs.create({ chunkSize: CHUNK })
  remote.fabric.records.down = true
  const written = remote.blobs.write(blob, [{ offset: 0, bytes: new Uint8Array(CHUNK).fill(1) }])
  await remote.clock.advance(10_000)
  remote.fabric.records.down = false
  expect(await remote.within(2000, written)).toMatchObject({ version: 1 })
})
