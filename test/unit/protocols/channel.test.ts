import { describe, expect, it } from 'vitest'
import { ByteBudget } from '../../../src/protocols/byte-budget.ts'
import { AnswerChannel, REQUESTS_IN_FLIGHT_MAX, RequestChannel } from '../../../src/protocols/channel.ts'
import { encodeCbor } from '../../../src/protocols/codec.ts'
import { P2pvmError, errorCodeOf } from '../../../src/protocols/errors.ts'
import { FRAME, FRAME_HEADER_BYTES, encodeFrameHeader } from '../../../src/protocols/frame.ts'
import type { FrameKind } from '../../../src/protocols/frame.ts'
import { PAYLOAD_BYTES_MAX } from '../../../src/protocols/transport.ts'
import type { Message, RequestHandler } from '../../../src/protocols/transport.ts'
import { settle } from '../../harness/fake-clock.ts'
import { MemoryDuplex } from '../../harness/memory-duplex.ts'
import type { PipeOptions } from '../../harness/memory-duplex.ts'
import { KeptLog, PlainCounters } from '../../harness/quiet.ts'

const MIB = 1024 * 1024
const never = new AbortController().signal

/** Bytes that differ from place to place and from seed to seed. */
function pattern (size: number, seed: number): Uint8Array {
  const block = Uint8Array.from({ length: 997 }, (_, index) => (index * 31 + (index >> 8) * 17 + seed) & 0xff)
  return new Uint8Array(Buffer.alloc(size, block))
}

const echo: RequestHandler = async ({ body, payload }) => payload === undefined ? { body } : { body, payload }

function connect (handler: RequestHandler, options: PipeOptions & { requestBudgetBytes?: number, responseBudgetBytes?: number } = {}) {
  const [near, far] = MemoryDuplex.pair(options)
  const counters = new PlainCounters()
  const log = new KeptLog()
  const requests = new ByteBudget(options.requestBudgetBytes ?? 32 * MIB)
  const responses = new ByteBudget(options.responseBudgetBytes ?? 32 * MIB)
  const common = { protocol: 'test/1', peer: 'somebody', counters, log }
  const answering = new AnswerChannel({ ...common, duplex: far, budget: requests, handler })
  const asking = new RequestChannel({ ...common, duplex: near, budget: responses })
  return { near, far, counters, log, requests, responses, asking, answering }
}

const codeOf = async (promise: Promise<unknown>): Promise<string> => {
  try {
    await promise
    return 'none'
  } catch (error) {
    return errorCodeOf(error)
  }
}

describe('channel', () => {
  it.each([
    ['no payload', undefined], ['an empty payload', 0], ['one byte', 1], ['one frame and a byte', 128 * 1024], ['more than the window', 3 * MIB + 5], ['the largest', PAYLOAD_BYTES_MAX]
  ])('carries %s both ways', async (_name, size) => {
    const { asking, requests, responses } = connect(echo, { pieceBytes: 50_001 })
    const payload = size === undefined ? undefined : pattern(size, 1)
    const answer = await asking.request(payload === undefined ? { body: { a: [1, 'x'] } } : { body: { a: [1, 'x'] }, payload }, never)
    expect(answer.body).toEqual({ a: [1, 'x'] })
    expect(answer.payload === undefined ? undefined : Buffer.compare(answer.payload, payload!)).toBe(payload === undefined ? undefined : 0)
    await settle()
    expect([requests.bytesHeld, responses.bytesHeld, asking.load]).toEqual([0, 0, 0])
  })

  it('arrives whole when every piece is a few bytes', async () => {
    const { asking } = connect(echo, { pieceBytes: 3, bufferBytesMax: 100 })
    const payload = pattern(2000, 9)
    const answer = await asking.request({ body: 'x'.repeat(300), payload }, never)
    expect(Buffer.compare(answer.payload!, payload)).toBe(0)
  })

  it('keeps many requests apart, answered in any order', async () => {
    const { asking, counters } = connect(async (message) => {
      for (let turn = 0; turn < (message.body as number * 7) % 11; turn++) await new Promise((resolve) => setImmediate(resolve))
      return await echo(message, { peer: '', signal: never })
    })
    const all = Array.from({ length: REQUESTS_IN_FLIGHT_MAX }, async (_, index) => {
      const payload = pattern(index % 3 === 0 ? 70_000 + index : index, index)
      const answer = await asking.request({ body: index, payload }, never)
      expect(answer.body).toBe(index)
      expect(Buffer.compare(answer.payload!, payload)).toBe(0)
    })
    await Promise.all(all)
    expect(counters.value('hostile_streams_total')).toBe(0)
  })

  it('does not deadlock when payloads are larger than window and budget together', async () => {
    const { asking, requests } = connect(echo, { requestBudgetBytes: PAYLOAD_BYTES_MAX, responseBudgetBytes: PAYLOAD_BYTES_MAX })
    let heldMax = 0
    const all = Array.from({ length: 12 }, async (_, index) => {
      const answer = await asking.request({ body: index, payload: pattern(PAYLOAD_BYTES_MAX - index, index) }, never)
      heldMax = Math.max(heldMax, requests.bytesHeld)
      expect(answer.payload).toHaveLength(PAYLOAD_BYTES_MAX - index)
    })
    await Promise.all(all)
    expect(heldMax).toBeLessThanOrEqual(PAYLOAD_BYTES_MAX)
  })

  it('sends no more than the window before it is admitted', async () => {
    const { near, asking, requests } = connect(echo, { requestBudgetBytes: PAYLOAD_BYTES_MAX })
    const others = requests.ask(PAYLOAD_BYTES_MAX, () => {})
    const answer = asking.request({ body: 0, payload: pattern(MIB, 1) }, never)
    for (let turn = 0; turn < 20; turn++) await settle()
    expect(near.sentBytes).toBeGreaterThan(60 * 1024)
    expect(near.sentBytes).toBeLessThan(66 * 1024)
    others.release()
    expect((await answer).payload).toHaveLength(MIB)
  })

  it('grants the credit of small payloads with the answer, and half a window of it at once', async () => {
    const answered = Promise.withResolvers<void>()
    const { far, asking } = connect(async () => {
      await answered.promise
      return { body: 0 }
    })
    const small = [10_000, 10_000, 10_000].map(async (size) => await asking.request({ body: 0, payload: pattern(size, 1) }, never))
    for (let turn = 0; turn < 20; turn++) await settle()
    expect(far.sentBytes).toBe(0)
    const large = asking.request({ body: 0, payload: pattern(10_000, 1) }, never)
    for (let turn = 0; turn < 20; turn++) await settle()
    expect(far.sentBytes).toBe(FRAME_HEADER_BYTES + 4)
    answered.resolve()
    await Promise.all([...small, large])
    // Nothing was forgotten: many windows go through.
    for (let at = 0; at < 100; at++) await asking.request({ body: 0, payload: pattern(7000, at) }, never)
  })

  it('lets a small request pass a large payload', async () => {
    const { asking, near } = connect(async ({ body }) => ({ body }), { bufferBytesMax: 64 * 1024 })
    const ended: string[] = []
    const large = asking.request({ body: 'large', payload: pattern(PAYLOAD_BYTES_MAX, 1) }, never).then(() => { ended.push('large') })
    await settle()
    const sentBefore = near.sentBytes
    const small = asking.request({ body: 'small' }, never).then(() => {
      ended.push('small')
      expect(near.sentBytes - sentBefore).toBeLessThan(MIB)
    })
    await Promise.all([large, small])
    expect(ended).toEqual(['small', 'large'])
  })

  it('lets a small answer pass a large one', async () => {
    const { asking, far } = connect(async ({ body }) => body === 'large' ? { body, payload: pattern(PAYLOAD_BYTES_MAX, 1) } : { body }, { bufferBytesMax: 64 * 1024 })
    const large = asking.request({ body: 'large' }, never)
    while (far.sentBytes === 0) await settle()
    await asking.request({ body: 'small' }, never)
    expect(far.sentBytes).toBeLessThan(MIB)
    expect((await large).payload).toHaveLength(PAYLOAD_BYTES_MAX)
  })

  it('hands over typed errors and hides others', async () => {
    const { asking, log } = connect(async ({ body }) => {
      if (body === 'typed') throw new P2pvmError('ERR_DISK_FULL', 'no room', { peer: 'p', bytes: 5 })
      throw new Error('secret path /home/x')
    })
    await expect(asking.request({ body: 'typed' }, never)).rejects.toMatchObject({ code: 'ERR_DISK_FULL', message: 'no room', fields: { peer: 'p', bytes: 5 } })
    const hidden = await asking.request({ body: 'x' }, never).then(() => undefined, (error: unknown) => error as P2pvmError)
    expect(hidden?.code).toBe('ERR_INTERNAL')
    expect(hidden?.message).not.toContain('secret')
    expect(log.lines.map(({ fields }) => String(fields.error)).join()).toContain('secret')
  })

  it('treats an answer that does not fit as its own failure, not as the end of the stream', async () => {
    const { asking } = connect(async ({ body }) => ({ body: body === 'large' ? 'x'.repeat(200 * 1024) : body }))
    expect(await codeOf(asking.request({ body: 'large' }, never))).toBe('ERR_INTERNAL')
    expect((await asking.request({ body: 'small' }, never)).body).toBe('small')
  })

  it('answers, then resets the stream, when a handler finds its request hostile', async () => {
    const { asking, counters } = connect(async () => { throw new P2pvmError('ERR_PROTOCOL', 'nonsense') })
    expect(['ERR_PROTOCOL', 'ERR_UNAVAILABLE']).toContain(await codeOf(asking.request({ body: 0 }, never)))
    await settle()
    expect(asking.isOpen).toBe(false)
    expect(counters.value('hostile_streams_total')).toBe(1)
  })

  it('fails what is in flight when the stream ends, on both sides', async () => {
    let handlerSignal: AbortSignal | undefined
    const { asking, near } = connect(async (_message, { signal }) => {
      handlerSignal = signal
      return await new Promise(() => {})
    })
    const answer = codeOf(asking.request({ body: 0 }, never))
    while (handlerSignal === undefined) await settle()
    near.close()
    expect(await answer).toBe('ERR_UNAVAILABLE')
    await settle()
    expect(handlerSignal.aborted).toBe(true)
    expect(await codeOf(asking.request({ body: 0 }, never))).toBe('ERR_UNAVAILABLE')
  })
})

describe('cancelling', () => {
  it('tells the handler, and keeps the slot until it has answered', async () => {
    let handlerSignal: AbortSignal | undefined
    const noticed = Promise.withResolvers<Message>()
    const { asking } = connect(async (_message, { signal }) => {
      handlerSignal = signal
      return await noticed.promise
    })
    const giveUp = new AbortController()
    const answer = codeOf(asking.request({ body: 0 }, giveUp.signal))
    while (handlerSignal === undefined) await settle()
    giveUp.abort(new P2pvmError('ERR_TIMEOUT', 'late'))
    expect(await answer).toBe('ERR_TIMEOUT')
    expect(asking.load).toBe(1)
    await settle()
    expect(handlerSignal.aborted).toBe(true)
    noticed.resolve({ body: 'too late', payload: pattern(1000, 1) })
    await settle()
    expect(asking.load).toBe(0)
  })

  it.each([0, 1, 2, 3, 5, 8, 13, 21, 34, 55])('leaves credit, budgets and slots as they were, in the middle of payloads (%i)', async (turns) => {
    const { asking, requests, responses, counters, near, far } = connect(echo, { bufferBytesMax: 64 * 1024, requestBudgetBytes: PAYLOAD_BYTES_MAX, responseBudgetBytes: PAYLOAD_BYTES_MAX })
    for (let round = 0; round < 5; round++) {
      const giveUp = new AbortController()
      const cancelled = [1, 2, 3].map(async (size) => await codeOf(asking.request({ body: 0, payload: pattern(size * 300_000, size) }, giveUp.signal)))
      const kept = asking.request({ body: 'kept', payload: pattern(200_000, 7) }, never)
      for (let turn = 0; turn < turns; turn++) await new Promise((resolve) => setImmediate(resolve))
      giveUp.abort()
      for (const code of await Promise.all(cancelled)) expect(['ERR_ABORTED', 'none']).toContain(code)
      expect(Buffer.compare((await kept).payload!, pattern(200_000, 7))).toBe(0)
    }
    while (asking.load > 0) await settle()
    expect([requests.bytesHeld, responses.bytesHeld, counters.value('hostile_streams_total')]).toEqual([0, 0, 0])
    // The windows are as at the start: with nothing admitted any more, exactly one window may still be sent.
    await settle()
    const [sentNear, sentFar] = [near.sentBytes, far.sentBytes]
    requests.ask(PAYLOAD_BYTES_MAX, () => {})
    void codeOf(asking.request({ body: 0, payload: pattern(MIB, 1) }, never))
    for (let turn = 0; turn < 20; turn++) await settle()
    expect(near.sentBytes - sentNear).toBeGreaterThan(64 * 1024)
    expect(near.sentBytes - sentNear).toBeLessThan(65 * 1024)
    expect(far.sentBytes).toBe(sentFar)
  })

  it('gives the window back when a payload is given up that was never admitted', async () => {
    const { asking, requests } = connect(echo, { requestBudgetBytes: PAYLOAD_BYTES_MAX })
    const others = requests.ask(PAYLOAD_BYTES_MAX, () => {})
    const giveUp = new AbortController()
    const cancelled = codeOf(asking.request({ body: 0, payload: pattern(MIB, 1) }, giveUp.signal))
    for (let turn = 0; turn < 20; turn++) await settle()
    giveUp.abort()
    expect(await cancelled).toBe('ERR_ABORTED')
    while (asking.load > 0) await settle()
    others.release()
    expect((await asking.request({ body: 0, payload: pattern(MIB, 2) }, never)).payload).toHaveLength(MIB)
  })

  it('does not send what was given up before it started', async () => {
    const { asking, near } = connect(echo)
    expect(await codeOf(asking.request({ body: 0, payload: pattern(1000, 1) }, AbortSignal.abort()))).toBe('ERR_ABORTED')
    expect(near.sentBytes).toBe(0)
  })
})

describe('bounds', () => {
  const request = (id: number, payloadBytes: number | null = null): Uint8Array[] => {
    const body = encodeCbor([payloadBytes, 0])
    return [encodeFrameHeader(FRAME.REQUEST, id, body.length), body]
  }
  const frame = (kind: FrameKind | number, id: number, body: Uint8Array): Uint8Array[] => [encodeFrameHeader(kind as FrameKind, id, body.length), body]

  function raw (handler: RequestHandler = echo) {
    const [near, far] = MemoryDuplex.pair()
    const counters = new PlainCounters()
    const received: Uint8Array[] = []
    near.open({ data: (pieces) => { received.push(...pieces) }, drained: () => {}, closed: () => {} })
    const budget = new ByteBudget(32 * MIB)
    const answering = new AnswerChannel({ protocol: 'test/1', peer: 'p', counters, log: new KeptLog(), duplex: far, budget, handler })
    return { near, far, counters, received, answering, budget }
  }

  it.each([
    ['a frame that is too long', [encodeFrameHeader(FRAME.REQUEST, 1, 192 * 1024 + 1)]],
    ['a frame that is shorter than its header', [Buffer.from([0, 0, 0, 4, 1, 0, 0, 0, 1])]],
    ['an unknown kind', frame(9, 1, new Uint8Array(1))],
    ['an answer on the wrong side', frame(FRAME.RESPONSE, 1, encodeCbor([null, 0]))],
    ['a body that is not CBOR', frame(FRAME.REQUEST, 1, new Uint8Array([0xff]))],
    ['a body of another shape', frame(FRAME.REQUEST, 1, encodeCbor({}))],
    ['a payload that is too large', request(1, PAYLOAD_BYTES_MAX + 1)],
    ['an id that is in use', [...request(1, 10), ...request(1, 10)]],
    ['bytes that nobody announced', frame(FRAME.DATA, 1, new Uint8Array(1))],
    ['bytes of the second payload', [...request(1, 10), ...request(2, 10), ...frame(FRAME.DATA, 2, new Uint8Array(1))]],
    ['more bytes than announced', [...request(1, 10), ...frame(FRAME.DATA, 1, new Uint8Array(11))]],
    ['credit that nobody has', Array.from({ length: 2 }, () => frame(FRAME.CREDIT, 0, Buffer.from([0x1f, 0xff, 0xff, 0xff]))).flat()],
    ['too many requests', Array.from({ length: REQUESTS_IN_FLIGHT_MAX + 1 }, (_, id) => request(id)).flat()]
  ])('%s resets the stream and is counted', async (_name, bytes) => {
    const { near, far, counters, answering } = raw(async () => await new Promise(() => {}))
    near.send([...bytes])
    for (let turn = 0; turn < 50 && answering.isOpen; turn++) await settle()
    expect(answering.isOpen).toBe(false)
    expect(errorCodeOf(far.resetReason)).toBe('ERR_PROTOCOL')
    expect(counters.value('hostile_streams_total', { protocol: 'test/1' })).toBe(1)
  })

  it('more bytes than credit reset the stream', async () => {
    const { near, far, budget } = raw()
    budget.ask(32 * MIB, () => {})
    near.send([...request(1, MIB), ...frame(FRAME.DATA, 1, new Uint8Array(64 * 1024))])
    await settle()
    expect(far.resetReason).toBeUndefined()
    near.send(frame(FRAME.DATA, 1, new Uint8Array(1)))
    await settle()
    expect(errorCodeOf(far.resetReason)).toBe('ERR_PROTOCOL')
  })

  it('takes cancels of what it does not know', async () => {
    const { near, answering } = raw()
    near.send([...frame(FRAME.CANCEL, 77, new Uint8Array(0)), ...request(1)])
    await settle()
    expect(answering.isOpen).toBe(true)
  })

  it('finds a payload that has stopped', async () => {
    const { near, answering } = raw()
    near.send([...request(1, 100), ...frame(FRAME.DATA, 1, new Uint8Array(10))])
    await settle()
    expect(answering.isStuck()).toBe(false)
    expect(answering.isStuck()).toBe(true)
    near.send(frame(FRAME.DATA, 1, new Uint8Array(10)))
    await settle()
    expect(answering.isStuck()).toBe(false)
    near.send(frame(FRAME.DATA, 1, new Uint8Array(80)))
    await settle()
    expect([answering.isStuck(), answering.isStuck()]).toEqual([false, false])
  })

  it('lets one stream hold only its share of the budget', async () => {
    const { near, budget } = raw()
    near.send(Array.from({ length: 20 }, (_, id) => request(id, MIB)).flat())
    for (let turn = 0; turn < 20; turn++) await settle()
    expect(budget.bytesHeld).toBe(PAYLOAD_BYTES_MAX)
  })

  it('starts no further handlers while answers pile up', async () => {
    let started = 0
    const { near, received } = raw(async () => {
      started += 1
      return { body: 0, payload: new Uint8Array(MIB) }
    })
    near.send(request(0))
    await settle()
    for (let id = 1; id < 40; id++) near.send(request(id))
    for (let turn = 0; turn < 20; turn++) await settle()
    // The window lets half of the first answer out; two more megabytes may wait.
    expect(started).toBeLessThan(6)
    expect(received.reduce((sum, part) => sum + part.length, 0)).toBeGreaterThan(512 * 1024)
  })
})
