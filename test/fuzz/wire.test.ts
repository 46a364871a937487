/**
 * Garbage, and right bytes that were changed, on everything that takes bytes or bodies from a peer: the stream is reset and
 * counted, or nothing happens; the peer answers the next good request.
 */
import { peerIdFromString } from '@libp2p/peer-id'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { decodeFabricRecord } from '../../src/dht/fabric.ts'
import { ByteBudget } from '../../src/protocols/byte-budget.ts'
import { AnswerChannel, RequestChannel } from '../../src/protocols/channel.ts'
import { CHUNK_PROTOCOL, auditChunks, getChunk, haveChunks, putChunk, serveChunks } from '../../src/protocols/chunk-protocol.ts'
import { chunkIdOf } from '../../src/protocols/cid.ts'
import { decodeCbor, encodeCbor } from '../../src/protocols/codec.ts'
import { P2pvmError, errorCodeOf } from '../../src/protocols/errors.ts'
import { FABRIC_PROTOCOL, askFabric } from '../../src/protocols/fabric-protocol.ts'
import { FRAME, FrameReader, encodeFrameHeader } from '../../src/protocols/frame.ts'
import type { FrameKind } from '../../src/protocols/frame.ts'
import { MEMBER_PROTOCOL, describeMember, exchangeMembers, serveMembers } from '../../src/protocols/member-protocol.ts'
import { RECORD_PROTOCOL, getRecords, putRecords, serveRecords } from '../../src/protocols/record-protocol.ts'
import type { Message, Transport } from '../../src/protocols/transport.ts'
import { FakeClock, settle } from '../harness/fake-clock.ts'
import { startLivePeer } from '../harness/live-nodes.ts'
import { MemoryDuplex } from '../harness/memory-duplex.ts'
import { MemoryNetwork } from '../harness/memory-transport.ts'
import { peerIdOf } from '../harness/peer-ids.ts'
import { KeptLog, PlainCounters } from '../harness/quiet.ts'

const never = new AbortController().signal
const chunk = new Uint8Array(300).fill(7)
const id = chunkIdOf(chunk)

const frame = fc.record({ kind: fc.nat(8), id: fc.nat(3), body: fc.oneof(fc.uint8Array({ maxLength: 40 }), fc.anything().map(safeCbor)) })
  .map(({ kind, id: requestId, body }) => Buffer.concat([encodeFrameHeader(kind as FrameKind, requestId, body.length), body]))

function safeCbor (value: unknown): Uint8Array {
  try {
    return encodeCbor([null, value])
  } catch {
    return encodeCbor(0)
  }
}

/** A good conversation's bytes: requests with payloads, a credit, a cancel. */
const conversation = Buffer.concat([1, 2, 3].flatMap((requestId) => {
  const body = encodeCbor([chunk.length, { kind: 'put', n: requestId }])
  return [encodeFrameHeader(FRAME.REQUEST, requestId, body.length), body, encodeFrameHeader(FRAME.DATA, requestId, chunk.length), chunk]
}).concat([encodeFrameHeader(FRAME.CREDIT, 0, 4), Buffer.from([0, 0, 1, 0]), encodeFrameHeader(FRAME.CANCEL, 2, 0)]))

const changed = (good: Uint8Array): fc.Arbitrary<Uint8Array> => fc.array(fc.record({ at: fc.nat(good.length - 1), to: fc.nat(255) }), { minLength: 1, maxLength: 4 })
  .map((changes) => changes.reduce((bytes, { at, to }) => bytes.with(at, to), Uint8Array.from(good)))

const hostileBytes = fc.oneof(fc.uint8Array({ minLength: 1, maxLength: 200 }), fc.array(frame, { minLength: 1, maxLength: 12 }).map((frames) => new Uint8Array(Buffer.concat(frames))), changed(conversation))

const hostileBody = fc.anything({
  values: [fc.boolean(), fc.integer(), fc.string(), fc.constant(null), fc.uint8Array({ maxLength: 70 }), fc.constantFrom('have', 'put', 'get', 'audit', 'describe', 'exchange', 'push')],
  key: fc.constantFrom('kind', 'ids', 'id', 'names', 'sizes', 'priority', 'from', 'to', 'beats', 'rows', 'complete', 'pull', 'row', 'want', 'more', 'present', 'isNew', 'found', 'outcomes', 'conditions', 'fabric'),
  maxDepth: 3
}).filter((value) => safeCbor(value).length > 1)

describe('frames', () => {
  it('a reader gives frames or ERR_PROTOCOL, however the bytes are cut', () => {
    fc.assert(fc.property(hostileBytes, fc.integer({ min: 1, max: 50 }), (bytes, pieceBytes) => {
      const whole = read(bytes, bytes.length)
      expect(read(bytes, pieceBytes)).toEqual(whole)
    }), { numRuns: 2000 })
  })

  it('an answering channel is reset or goes on, never throws, and gives its budget back', async () => {
    await fc.assert(fc.asyncProperty(hostileBytes, async (bytes) => {
      const [near, far] = MemoryDuplex.pair()
      const counters = new PlainCounters()
      const budget = new ByteBudget(32 * 1024 * 1024)
      near.open({ data: () => {}, drained: () => {}, closed: () => {} })
      const answering = new AnswerChannel({ protocol: 'test/1', peer: 'p', counters, log: new KeptLog(), duplex: far, budget, handler: async ({ body }) => ({ body }) })
      near.send([bytes])
      await settle()
      expect(counters.value('hostile_streams_total')).toBe(answering.isOpen ? 0 : 1)
      near.close()
      await settle()
      expect([answering.isOpen, budget.bytesHeld]).toEqual([false, 0])
    }), { numRuns: 500 })
  })

  it('an asking channel fails its requests or goes on, never throws', async () => {
    await fc.assert(fc.asyncProperty(hostileBytes, async (bytes) => {
      const [near, far] = MemoryDuplex.pair()
      const budget = new ByteBudget(32 * 1024 * 1024)
      far.open({ data: () => {}, drained: () => {}, closed: () => {} })
      const asking = new RequestChannel({ protocol: 'test/1', peer: 'p', counters: new PlainCounters(), log: new KeptLog(), duplex: near, budget })
      const outcomes = [1, 2, 3].map(async () => await asking.request({ body: 0, payload: chunk }, never).then(() => 'answered', errorCodeOf))
      far.send([bytes])
      await settle()
      far.close()
      for (const outcome of await Promise.all(outcomes)) expect(outcome).toEqual(expect.any(String))
      expect(budget.bytesHeld).toBe(0)
    }), { numRuns: 500 })
  })
})

function read (bytes: Uint8Array, pieceBytes: number): unknown[] {
  const seen: Array<[number, number, string]> = []
  const dataBytes = new Map<number, number[]>()
  const reader = new FrameReader({
    frame: (kind, requestId, body) => { seen.push([kind, requestId, Buffer.from(body).toString('hex')]) },
    data: (requestId, part) => { dataBytes.set(requestId, [...dataBytes.get(requestId) ?? [], ...part]) }
  })
  try {
    for (let at = 0; at < bytes.length; at += pieceBytes) reader.push(bytes.subarray(at, at + pieceBytes))
  } catch (error) {
    expect(errorCodeOf(error)).toBe('ERR_PROTOCOL')
    seen.push([-1, -1, 'refused'])
  }
  return [seen, [...dataBytes]]
}

/** Handlers that are right, whatever they are asked. */
function serveAll (transport: Transport): void {
  serveChunks(transport, {
    have: async (ids) => ids.map(() => true),
    put: async () => true,
    get: async () => chunk,
    audit: async (ids) => ids.map(() => 'good')
  })
  serveRecords(transport, { put: async (records) => records.map(() => 'stored'), get: async (names) => names.map(() => chunk) })
  const row = { id: transport.self, addresses: [], roles: ['storage' as const], capacityBytes: 0, incarnation: 1, heartbeat: 1, down: false }
  serveMembers(transport, { describe: () => row, exchange: () => ({ beats: [], rows: [row], want: [], more: false, complete: true }), push: () => {} })
}

const exchange = { from: '0'.repeat(16), to: null, beats: [], complete: false, pull: true }
const options = { deadlineMs: 5000 }

async function expectAllAnswer (transport: Transport, peer: string): Promise<void> {
  expect(await haveChunks(transport, peer, [id], options)).toEqual([true])
  expect(await getChunk(transport, peer, id, options)).toEqual(chunk)
  expect(await getRecords(transport, peer, ['a'], options)).toEqual([chunk])
  expect((await describeMember(transport, peer, options)).id).toBe(peer)
}

describe('bodies', () => {
  it.each([CHUNK_PROTOCOL, RECORD_PROTOCOL, MEMBER_PROTOCOL])('%s answers garbage with an answer or ERR_PROTOCOL', async (name) => {
    const network = new MemoryNetwork(new FakeClock())
    const [near, far] = [network.join(peerIdOf('near')), network.join(peerIdOf('far'))]
    serveAll(far)
    await fc.assert(fc.asyncProperty(hostileBody, fc.option(fc.uint8Array({ maxLength: 50 }), { nil: undefined }), async (body, payload) => {
      const outcome = await near.request(far.self, name, payload === undefined ? { body } : { body, payload }, options).then(() => 'answered', errorCodeOf)
      expect(['answered', 'ERR_PROTOCOL']).toContain(outcome)
    }), { numRuns: 1500 })
    await expectAllAnswer(near, far.self)
  })

  it('clients take no garbage for an answer', async () => {
    const network = new MemoryNetwork(new FakeClock())
    const [near, far] = [network.join(peerIdOf('near')), network.join(peerIdOf('far'))]
    let answer: Message = { body: null }
    for (const name of [CHUNK_PROTOCOL, RECORD_PROTOCOL, MEMBER_PROTOCOL, FABRIC_PROTOCOL]) far.handle(name, async () => answer)
    await fc.assert(fc.asyncProperty(hostileBody, fc.option(fc.uint8Array({ maxLength: 50 }), { nil: undefined }), async (body, payload) => {
      answer = payload === undefined ? { body } : { body, payload }
      for (const ask of [
        async () => await haveChunks(near, far.self, [id], options),
        async () => await putChunk(near, far.self, id, chunk, options),
        async () => await getChunk(near, far.self, id, options),
        async () => await auditChunks(near, far.self, [id], options),
        async () => await putRecords(near, far.self, [{ name: 'a', value: chunk }], options),
        async () => await getRecords(near, far.self, ['a', 'b'], options),
        async () => await describeMember(near, far.self, options),
        async () => await exchangeMembers(near, far.self, exchange, options),
        async () => decodeFabricRecord(await askFabric(near, far.self, options))
      ]) {
        expect(['answered', 'ERR_PROTOCOL']).toContain(await ask().then(() => 'answered', errorCodeOf))
      }
    }), { numRuns: 500 })
  })

  it('CBOR is a value or ERR_PROTOCOL', () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 100 }), (bytes) => {
      try {
        decodeCbor(bytes)
      } catch (error) {
        expect(error).toBeInstanceOf(P2pvmError)
        expect((error as P2pvmError).code).toBe('ERR_PROTOCOL')
      }
    }), { numRuns: 5000 })
  })
})

describe('a real peer', () => {
  it('resets hostile streams of every protocol, keeps the connection, and answers the next request', async () => {
    const far = await startLivePeer({ prepare: serveAll })
    const near = await startLivePeer()
    try {
      await near.transport.learnAddresses(far.id, far.addresses)
      await expectAllAnswer(near.transport, far.id)
      const [connection] = near.node.getConnections(peerIdFromString(far.id))
      // What the reader refuses for certain: other bytes may be the beginning of a frame that never ends.
      const certain = fc.oneof(fc.constant(Buffer.alloc(9, 0xff)), frame.filter((bytes) => read(bytes, bytes.length)[0]?.toString().includes('refused') === true))
      let hostile = 0
      await fc.assert(fc.asyncProperty(fc.constantFrom(CHUNK_PROTOCOL, RECORD_PROTOCOL, MEMBER_PROTOCOL), certain, async (name, bytes) => {
        const stream = await connection!.newStream(`/p2pvm/testtesttesttest/${name}`)
        const ended = Promise.withResolvers<void>()
        stream.addEventListener('close', () => { ended.resolve() })
        stream.send(bytes)
        await ended.promise
        expect(stream.status).toBe('reset')
        expect(far.counters.value('hostile_streams_total', { protocol: name })).toBeGreaterThan(0)
        expect(far.counters.value('hostile_streams_total')).toBe(++hostile)
      }), { numRuns: 40 })
      expect(connection!.status).toBe('open')
      await expectAllAnswer(near.transport, far.id)
    } finally {
      await near.stop()
      await far.stop()
    }
  })
})
