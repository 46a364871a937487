/** PROTOCOL.md tells the truth: its examples are what we send, and what we understand. */
import { createHash } from 'node:crypto'
import { describe, expect, it, test } from 'vitest'
import { kadIdOfKey, kadIdOfPeer, nearest } from '../../../src/dht/kad-id.ts'
import { keyOfRecord, placementOrder } from '../../../src/dht/placement.ts'
import { ByteBudget } from '../../../src/protocols/byte-budget.ts'
import { AnswerChannel, type Duplex, type DuplexEvents, RequestChannel } from '../../../src/protocols/channel.ts'
import { decodeCbor } from '../../../src/protocols/codec.ts'
import { P2pvmError } from '../../../src/protocols/errors.ts'
import { decodeMessage, encodeMessage } from '../../../src/protocols/message-codec.ts'
import type { Message, RequestHandler, Transport } from '../../../src/protocols/transport.ts'
import { DocumentedExamples, hexOf, withHex } from '../../harness/documented.ts'
import { chunk, chunkId, versionManager, writer } from '../../harness/example-fabric.ts'
import { settle } from '../../harness/fake-clock.ts'
import { KeptLog, PlainCounters } from '../../harness/quiet.ts'
import { wireExamples } from '../../harness/wire-examples.ts'

const documented = new DocumentedExamples('PROTOCOL.md')
const FRAMES = ['request', 'data', 'response', 'error', 'credit', 'cancel'].map((kind) => `frame ${kind}`)

test('every example is checked', () => {
  const messages = wireExamples.flatMap(({ name }) => [`hex ${name} request`, `hex ${name} answer`])
  expect([...documented.keys].sort()).toEqual([...FRAMES.map((name) => `hex ${name}`), ...messages, 'json limits', 'json placement'].sort())
})

/** A stream that keeps what is sent, and says what a test lets it say. */
class KeptDuplex implements Duplex {
  readonly sent: Uint8Array[] = []
  #events: DuplexEvents | undefined

  open (events: DuplexEvents): void {
    this.#events = events
  }

  receive (name: string): void {
    this.#events?.data([documented.bytes(name)])
  }

  send (parts: Uint8Array[]): boolean {
    this.sent.push(...parts.map((part) => part.slice()))
    return true
  }

  /** In hex, in order. */
  get frames (): string[] {
    const all = Buffer.concat(this.sent)
    const frames: string[] = []
    for (let at = 0; at < all.length;) {
      const end = at + 4 + all.readUInt32BE(at)
      frames.push(hexOf(all.subarray(at, end)))
      at = end
    }
    return frames
  }

  close (): void {}
  reset (): void {}
}

function channelInit () {
  return { duplex: new KeptDuplex(), peer: 'somebody', protocol: 'chunk/1', budget: new ByteBudget(2 ** 25), counters: new PlainCounters(), log: new KeptLog() }
}

const frameOf = (name: string): string => hexOf(documented.bytes(name))
const put = bodyOf('chunk/1 put request')

describe('frames', () => {
  it('of a requester', async () => {
    const init = channelInit()
    const channel = new RequestChannel(init)
    const answer = channel.request({ body: put, payload: chunk }, new AbortController().signal)
    await settle()
    expect(init.duplex.frames).toEqual([frameOf('frame request'), frameOf('frame data')])
    init.duplex.receive('frame credit')
    init.duplex.receive('frame response')
    expect(await answer).toEqual({ body: { isNew: true } })
  })

  it('of a requester that is told of a failure', async () => {
    const init = channelInit()
    const answer = new RequestChannel(init).request({ body: put, payload: chunk }, new AbortController().signal)
    await settle()
    init.duplex.receive('frame error')
    await expect(answer).rejects.toMatchObject({ code: 'ERR_CORRUPT', message: 'no match', fields: { cid: chunkId } })
  })

  it('of a requester that gives up', async () => {
    const init = channelInit()
    const gone = new AbortController()
    const answer = new RequestChannel(init).request({ body: put, payload: chunk }, gone.signal)
    await settle()
    gone.abort()
    await expect(answer).rejects.toMatchObject({ code: 'ERR_ABORTED' })
    await settle()
    expect(init.duplex.frames.at(-1)).toBe(frameOf('frame cancel'))
  })

  it('of a responder', async () => {
    const init = channelInit()
    const asked: Message[] = []
    const handler: RequestHandler = async (message) => {
      asked.push(message)
      return { body: { isNew: true } }
    }
    new AnswerChannel({ ...init, handler })
    init.duplex.receive('frame request')
    init.duplex.receive('frame data')
    await settle()
    expect(withHex(asked)).toEqual(withHex([{ body: put, payload: chunk }]))
    expect(init.duplex.frames.toSorted()).toEqual([frameOf('frame credit'), frameOf('frame response')].sort())
  })

  it('of a responder that fails', async () => {
    const init = channelInit()
    new AnswerChannel({ ...init, handler: async () => { throw new P2pvmError('ERR_CORRUPT', 'no match', { cid: chunkId }) } })
    init.duplex.receive('frame request')
    init.duplex.receive('frame data')
    await settle()
    expect(init.duplex.frames).toContain(frameOf('frame error'))
  })
})

function bodyOf (name: string): unknown {
  return decodeMessage(decodeCbor(documented.bytes(name)), name)[1]
}

/** What was documented, after a look that it is what would be sent. */
function carried (name: string, message: Message): Message {
  expect(hexOf(encodeMessage(message))).toBe(hexOf(documented.bytes(name)))
  const [payloadBytes, body] = decodeMessage(decodeCbor(documented.bytes(name)), name)
  return payloadBytes === null ? { body } : { body, payload: message.payload!.slice(0, payloadBytes) }
}

test.each(wireExamples)('$name', async ({ name, protocol, ask, serve, result }) => {
  const handlers = new Map<string, RequestHandler>()
  const transport: Transport = {
    self: writer.peer,
    handle: (served, handler) => { handlers.set(served, handler) },
    learnAddresses: async () => {},
    request: async (peer, asked, request) => {
      expect([peer, asked]).toEqual([versionManager.peer, protocol])
      const answer = await handlers.get(protocol)!(carried(`${name} request`, request), { peer: writer.peer, signal: new AbortController().signal })
      return carried(`${name} answer`, answer)
    }
  }
  serve(transport)
  expect(withHex(await ask(transport))).toEqual(withHex(result))
})

interface PlacementExample {
  readonly name: string
  readonly key: string
  readonly kadId: string
  readonly candidates: ReadonlyArray<{ readonly id: string, readonly capacityBytes: number, readonly kadId: string, readonly hash: string }>
  readonly byDistance: readonly string[]
  readonly order: readonly string[]
}

describe('placement', () => {
  const { name, key, kadId, candidates, byDistance, order } = documented.json('placement') as PlacementExample
  const keyBytes = Buffer.from(key, 'hex')

  it('hashes keys and peers as documented', () => {
    expect([hexOf(keyOfRecord(name)), hexOf(kadIdOfKey(keyBytes))]).toEqual([key, kadId])
    expect(candidates.map(({ id }) => hexOf(kadIdOfPeer(id)))).toEqual(candidates.map((one) => one.kadId))
    const withIds = candidates.map((one) => ({ ...one, kadId: Buffer.from(one.kadId, 'hex') }))
    expect(nearest(Buffer.from(kadId, 'hex'), withIds, 20).map(({ id }) => id)).toEqual(byDistance)
  })

  it('orders peers as documented, which is what the formula gives', () => {
    expect(placementOrder(keyBytes, candidates)).toEqual(order)
    const ranks = candidates.map(({ id, capacityBytes, hash }) => {
      expect(createHash('sha256').update(keyBytes).update(id, 'ascii').digest('hex').slice(0, 16)).toBe(hash)
      return { id, rank: -Math.log((Number(BigInt(`0x${hash.slice(0, 13)}`)) + 0.5) / 2 ** 52) / capacityBytes }
    })
    expect(ranks.sort((a, b) => a.rank - b.rank).map(({ id }) => id)).toEqual(order)
  })
})
