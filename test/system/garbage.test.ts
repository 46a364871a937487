/**
 * Garbage on every protocol of a live daemon: the stream is reset and counted, the connection and the peer stay, and good
 * requests are answered between bad ones.
 */
import type { Connection } from '@libp2p/interface'
import { peerIdFromString } from '@libp2p/peer-id'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { CHUNK_PROTOCOL, getChunk, putChunk } from '../../src/protocols/chunk-protocol.ts'
import { chunkIdOf, digestOf } from '../../src/protocols/cid.ts'
import { encodeCbor } from '../../src/protocols/codec.ts'
import { FABRIC_PROTOCOL } from '../../src/protocols/fabric-protocol.ts'
import { encodeFrameHeader, FRAME, FRAME_HEADER_BYTES, type FrameKind } from '../../src/protocols/frame.ts'
import { MEMBER_PROTOCOL } from '../../src/protocols/member-protocol.ts'
import { RECORD_PROTOCOL } from '../../src/protocols/record-protocol.ts'
import { FRAME_BYTES_MAX, PAYLOAD_BYTES_MAX } from '../../src/protocols/transport.ts'
import { VERSION_PROTOCOL } from '../../src/protocols/version-protocol.ts'
import type { FabricPeer } from '../../testnet/fabric.ts'
import { FabricGuest } from '../harness/fabric-guest.ts'
import { counterOf, LiveFabric, withClient } from '../harness/live-fabric.ts'
import { RawStream } from '../harness/raw-stream.ts'
import { testSeed } from '../harness/seed.ts'

const DEADLINE_MS = 10_000
const RUNS = 60
const BLOB = 'aaaaaaaaaaaaaaaa'
const CHUNK = Buffer.alloc(5000, 'a chunk like any other ')
const DIGEST = digestOf(chunkIdOf(CHUNK))
const REQUEST_ID = 'a-request-of-the-garbage-test'

/** Good requests of each of our protocols: body, and payload where there is one. */
const REQUESTS: Readonly<Record<string, ReadonlyArray<readonly [body: Record<string, unknown>, payload?: Uint8Array]>>> = {
  [CHUNK_PROTOCOL]: [
    [{ kind: 'have', ids: DIGEST }],
    [{ kind: 'put', id: DIGEST }, CHUNK],
    [{ kind: 'get', id: DIGEST, priority: 'demand' }],
    [{ kind: 'audit', ids: DIGEST }]
  ],
  [RECORD_PROTOCOL]: [
    [{ kind: 'put', names: ['garbage/1'], sizes: [3] }, Uint8Array.of(1, 2, 3)],
    [{ kind: 'get', names: ['garbage/1', 'garbage/2'] }]
  ],
  [VERSION_PROTOCOL]: [
    [{ op: 'create', requestId: REQUEST_ID, of: { kind: 'new', chunkSize: 4096, fanOut: 2 } }],
    [{ op: 'assign', requestId: REQUEST_ID, target: { kind: 'blob', blob: BLOB, expectedBase: 1 }, change: { kind: 'write', extents: [0, 4096], size: 4096 } }],
    [{
      op: 'assignGroup', requestId: REQUEST_ID, writerKey: new Uint8Array(32),
      members: [{ target: { kind: 'blob', blob: BLOB, expectedBase: 1 }, change: { kind: 'write', extents: [0, 4096], size: 4096 } }]
    }],
    [{ op: 'completeGroup', requestId: REQUEST_ID, message: '', members: [{ blob: BLOB, version: 1, bytesChanged: 1 }] }],
    [{ op: 'complete', requestId: REQUEST_ID, blob: BLOB, version: 1, message: '', bytesChanged: 1 }],
    [{ op: 'wait', blob: BLOB, version: 1, waitMs: 1 }],
    [{ op: 'recent', blob: BLOB }],
    [{ op: 'resolve', ref: 'nobody' }],
    [{ op: 'images', after: '' }],
    [{ op: 'log', blob: BLOB, from: 0 }],
    [{ op: 'outcome', requestId: REQUEST_ID }]
  ],
  [MEMBER_PROTOCOL]: [
    [{ kind: 'describe' }],
    [{ kind: 'exchange', from: '0'.repeat(16), to: null, beats: new Uint8Array(0), complete: false, pull: true }],
    [{ kind: 'push', rows: [] }]
  ],
  [FABRIC_PROTOCOL]: [[{}]]
}

const seed = Number.parseInt(testSeed().slice(0, 7), 16) || 1

describe(`garbage (P2PVM_TEST_SEED=${testSeed()})`, () => {
  let live: LiveFabric
  let peer: FabricPeer
  let guest: FabricGuest
  let connection: Connection
  let pid: number
  let protocols: string[]

  beforeAll(async () => {
    live = await LiveFabric.start({ storage: 1, compute: 1 })
    peer = live.storage(0)
    pid = peer.pid
    guest = await FabricGuest.join(peer)
    connection = await guest.connection(peer)
    await guest.transport.request(peer.peerId, MEMBER_PROTOCOL, { body: { kind: 'describe' } }, { deadlineMs: DEADLINE_MS })
    protocols = (await guest.node.peerStore.get(peerIdFromString(peer.peerId))).protocols
  })

  afterAll(async () => {
    await guest?.leave()
    await live?.close()
  })

  it('reaches every protocol of ours that the daemon speaks', () => {
    const ours = protocols.filter((protocol) => protocol.startsWith('/p2pvm/') && !protocol.includes('/kad/'))
    expect(ours.map(nameOf).sort()).toEqual(Object.keys(REQUESTS).sort())
  })

  for (const name of Object.keys(REQUESTS)) {
    describe(name, () => {
      it('a frame that cannot be is refused at once', async () => {
        await fc.assert(fc.asyncProperty(impossibleFrame, fc.uint8Array({ maxLength: 2000 }), async (frame, rest) => {
          const before = await hostileStreams(name)
          const stream = await open(name)
          stream.send(frame, rest)
          expect(await stream.ended(DEADLINE_MS)).toBe('reset')
          expect(await hostileStreams(name)).toBe(before + 1)
        }), { numRuns: RUNS, seed })
        await unharmed()
      })

      it('random bytes end their stream and nothing else', async () => {
        await fc.assert(fc.asyncProperty(fc.array(fc.uint8Array({ maxLength: 3000 }), { maxLength: 5 }), async (pieces) => {
          const stream = await open(name)
          stream.send(...pieces)
          await stream.finish(DEADLINE_MS)
        }), { numRuns: RUNS, seed })
        await unharmed()
      })

      it('a request that is no request of this protocol is refused', async () => {
        await fc.assert(fc.asyncProperty(fc.jsonValue().filter((value) => !isPlainObject(value)), async (body) => {
          const before = await hostileStreams(name)
          const stream = await open(name)
          stream.send(frame(FRAME.REQUEST, 1, encodeCbor([null, body])))
          expect(await stream.ended(DEADLINE_MS)).toBe('reset')
          expect(await hostileStreams(name)).toBe(before + 1)
        }), { numRuns: name === FABRIC_PROTOCOL ? 0 : RUNS, seed })
        await unharmed()
      })

      it('good requests with a field that is wrong, missing or too much are answered or refused', async () => {
        await fc.assert(fc.asyncProperty(mutatedRequest(name), fc.nat(1000), async ([body, payload], id) => {
          const stream = await open(name)
          stream.send(...requestFrames(id, body, payload))
          await stream.finish(DEADLINE_MS)
        }), { numRuns: 2 * RUNS, seed })
        await unharmed()
      })

      it('good conversations with bytes changed, cut off, repeated or cut short end their stream and nothing else', async () => {
        const conversation = Buffer.concat(REQUESTS[name]!.flatMap(([body, payload], at) => requestFrames(at + 1, body, payload)))
        await fc.assert(fc.asyncProperty(mutatedBytes(conversation), async (bytes) => {
          const stream = await open(name)
          stream.send(bytes)
          await stream.finish(DEADLINE_MS)
        }), { numRuns: 2 * RUNS, seed })
        await unharmed()
      })

      it('payloads larger than announced, than allowed, or of nothing are refused', async () => {
        const body = encodeCbor([CHUNK.length, REQUESTS[name]![0]![0]])
        const conversations = {
          'more than announced': [frame(FRAME.REQUEST, 1, body), frame(FRAME.DATA, 1, Buffer.alloc(CHUNK.length + 1))],
          'of nothing': [frame(FRAME.DATA, 7, CHUNK)],
          'twice the same id': [frame(FRAME.REQUEST, 1, body), frame(FRAME.REQUEST, 1, body)],
          'larger than any': [frame(FRAME.REQUEST, 1, encodeCbor([PAYLOAD_BYTES_MAX + 1, {}]))],
          'beyond the credit': [frame(FRAME.REQUEST, 1, encodeCbor([PAYLOAD_BYTES_MAX, {}])), frame(FRAME.REQUEST, 2, encodeCbor([PAYLOAD_BYTES_MAX, {}])),
            ...Array.from({ length: 40 }, () => frame(FRAME.DATA, 1, Buffer.alloc(128 * 1024)))],
          'an answer to nothing': [frame(FRAME.RESPONSE, 1, encodeCbor([null, {}]))],
          'more credit than there are numbers': Array.from({ length: 4 }, () => frame(FRAME.CREDIT, 0, Buffer.alloc(4, 0xff)))
        }
        for (const [what, frames] of Object.entries(conversations)) {
          const before = await hostileStreams(name)
          const stream = await open(name)
          stream.send(...frames)
          const end = await stream.finish(DEADLINE_MS)
          expect({ what, end, hostile: await hostileStreams(name) - before }).toEqual({ what, end: 'reset', hostile: 1 })
        }
        await unharmed()
      })
    })
  }

  it('the libp2p protocols beside ours survive random bytes, too', async () => {
    const others = protocols.filter((protocol) => REQUESTS[nameOf(protocol)] === undefined)
    expect(others.length).toBeGreaterThan(1)
    for (const protocol of others) {
      await fc.assert(fc.asyncProperty(fc.uint8Array({ maxLength: 3000 }), async (bytes) => {
        const stream = await RawStream.open(connection, protocol, DEADLINE_MS)
        stream.send(bytes)
        stream.abandon()
      }), { numRuns: RUNS, seed })
    }
    await unharmed()
  })

  async function open (name: string): Promise<RawStream> {
    const protocol = protocols.find((protocol) => nameOf(protocol) === name)
    if (protocol === undefined) throw new Error(`the daemon does not speak ${name}`)
    return await RawStream.open(connection, protocol, DEADLINE_MS)
  }

  /** Same process, same connection, and a good request of each kind that has something to lose. */
  async function unharmed (): Promise<void> {
    expect(connection.status).toBe('open')
    expect(await withClient(peer, async (client) => (await client.status()).pid)).toBe(pid)
    const id = chunkIdOf(CHUNK)
    await putChunk(guest.transport, peer.peerId, id, CHUNK, { deadlineMs: DEADLINE_MS })
    expect(Buffer.from((await getChunk(guest.transport, peer.peerId, id, { deadlineMs: DEADLINE_MS }))!)).toEqual(CHUNK)
    await withClient(live.compute(0), async (client) => await client.images())
  }

  async function hostileStreams (protocol: string): Promise<number> {
    return await counterOf(peer, 'hostile_streams_total', { protocol })
  }
})

/** `chunk/1` of `/p2pvm/<fabric>/chunk/1`. */
function nameOf (protocol: string): string {
  return protocol.split('/').slice(-2).join('/')
}

function isPlainObject (value: unknown): boolean {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function frame (kind: FrameKind, id: number, body: Uint8Array): Buffer {
  return Buffer.concat([encodeFrameHeader(kind, id, body.length), body])
}

function requestFrames (id: number, body: unknown, payload: Uint8Array | undefined): Buffer[] {
  const request = frame(FRAME.REQUEST, id, encodeCbor([payload?.length ?? null, body]))
  return payload === undefined ? [request] : [request, frame(FRAME.DATA, id, payload)]
}

/** A kind that there is not, or a length that its kind cannot have. */
const impossibleFrame = fc.oneof(
  fc.tuple(fc.integer({ min: 7, max: 255 }), fc.nat(1000)),
  fc.tuple(fc.constant(0), fc.nat(1000)),
  fc.tuple(fc.integer({ min: 1, max: 6 }), fc.integer({ min: FRAME_BYTES_MAX, max: 2 ** 31 })),
  fc.tuple(fc.constant<number>(FRAME.CREDIT), fc.integer({ min: 5, max: 1000 })),
  fc.tuple(fc.constantFrom<number>(FRAME.REQUEST, FRAME.DATA), fc.constant(0))
).map(([kind, bodyBytes]) => Buffer.concat([encodeFrameHeader(kind as FrameKind, 1, bodyBytes), Buffer.alloc(Math.min(bodyBytes, FRAME_HEADER_BYTES))]))

const anyValue = fc.oneof(
  fc.jsonValue(), fc.uint8Array({ maxLength: 100 }), fc.integer(), fc.maxSafeInteger(), fc.string({ unit: 'binary' }), fc.constantFrom(null, true, '', BLOB))

function mutatedRequest (name: string): fc.Arbitrary<readonly [Record<string, unknown>, Uint8Array | undefined]> {
  return fc.constantFrom(...REQUESTS[name]!).chain(([body, payload]) => fc.tuple(
    fc.oneof(
      fc.tuple(fc.constantFrom('too much', ...Object.keys(body)), anyValue).map(([key, value]) => ({ ...body, [key]: value })),
      fc.constantFrom('', ...Object.keys(body)).map((gone) => Object.fromEntries(Object.entries(body).filter(([key]) => key !== gone)))
    ),
    fc.oneof(fc.constant(payload), fc.uint8Array({ minLength: 1, maxLength: 10_000 }), fc.constant(undefined))
  ))
}

function mutatedBytes (good: Buffer): fc.Arbitrary<Buffer> {
  const place = fc.nat(good.length - 1)
  return fc.oneof(
    fc.array(fc.tuple(place, fc.integer({ min: 1, max: 255 })), { minLength: 1, maxLength: 8 }).map((flips) => {
      const bytes = Buffer.from(good)
      for (const [at, bits] of flips) bytes[at]! ^= bits
      return bytes
    }),
    place.map((end) => good.subarray(0, end)),
    place.map((start) => good.subarray(start)),
    fc.tuple(place, place).map(([a, b]) => Buffer.concat([good.subarray(0, Math.max(a, b)), good.subarray(Math.min(a, b))])),
    fc.tuple(place, fc.uint8Array({ minLength: 1, maxLength: 500 })).map(([at, more]) => Buffer.concat([good.subarray(0, at), more, good.subarray(at)]))
  )
}
