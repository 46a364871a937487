import { randomBytes } from 'node:crypto'
import type { ConnectionEncrypter, MessageStream } from '@libp2p/interface'
import { describe, expect, it } from 'vitest'
import { joinedWrites } from '../../../src/node/joined-writes.ts'

/** What was sent below, each `send` by itself. */
class Sink {
  readonly sent: Buffer[] = []
  status = 'open'
  writableNeedsDrain = false
  closed = false

  send (data: Uint8Array): boolean {
    if (this.status !== 'open') throw new Error('it has ended')
    this.sent.push(Buffer.from(data))
    return !this.writableNeedsDrain
  }

  async close (): Promise<void> {
    this.closed = true
    this.status = 'closed'
  }
}

/** The two ends of an encryption that does nothing: what it is given, and what it hands to the streams. */
async function joined (ofBelow = {}): Promise<{ below: Sink, raw: MessageStream, above: Sink, connection: MessageStream }> {
  const [below, above] = [Object.assign(new Sink(), ofBelow), new Sink()]
  const secured = async (): Promise<never> => ({ connection: above, remotePeer: undefined }) as never
  const encrypter: ConnectionEncrypter = { protocol: 'none', secureOutbound: secured, secureInbound: secured }
  const { connection } = await joinedWrites(() => encrypter)(undefined).secureOutbound(below as unknown as MessageStream)
  return { below, raw: below as unknown as MessageStream, above, connection }
}

async function turn (): Promise<void> {
  await new Promise((resolve) => { setImmediate(resolve) })
}

describe('joined writes', () => {
  it('sends the frames of one turn at once, in order, also those of promises that follow from it', async () => {
    const { above, connection } = await joined()
    const frames = Array.from({ length: 20 }, () => randomBytes(100))
    await Promise.all(frames.map(async (one, at) => {
      for (let step = 0; step < at % 5; step++) await Promise.resolve()
      expect(connection.send(one)).toBe(true)
    }))
    await turn()
    const inOrder = [0, 1, 2, 3, 4].flatMap((step) => frames.filter((_, at) => at % 5 === step))
    expect(above.sent).toEqual([Buffer.concat(inOrder)])
  })

  it('keeps no more than a bound, and what is large goes at once, behind what came before it', async () => {
    const { above, connection } = await joined()
    const small = Array.from({ length: 100 }, () => randomBytes(1000))
    for (const one of small) connection.send(one)
    const soFar = above.sent.reduce((sum, { length }) => sum + length, 0)
    expect(soFar).toBeGreaterThan(60_000)
    const large = randomBytes(128 * 1024)
    connection.send(large)
    expect(Buffer.concat(above.sent).equals(Buffer.concat([...small, large]))).toBe(true)
    expect(above.sent.at(-1)!.equals(large)).toBe(true)
    expect(above.sent.length).toBeLessThan(10)
    await turn()
    expect(Buffer.concat(above.sent)).toHaveLength(100_000 + large.length)
  })

  it('says that the connection is full', async () => {
    const { above, connection } = await joined()
    above.writableNeedsDrain = true
    expect(connection.send(Buffer.from('small'))).toBe(false)
    expect(connection.send(Buffer.alloc(64 * 1024))).toBe(false)
  })

  it('sends what waits before it closes, and refuses what comes after the end', async () => {
    const { above, connection } = await joined()
    connection.send(Buffer.from('last'))
    await connection.close()
    expect(above.closed).toBe(true)
    expect(above.sent).toEqual([Buffer.from('last')])
    expect(() => connection.send(Buffer.from('late'))).toThrow('it has ended')
  })

  it('drops what waits when the connection ends in between', async () => {
    const { above, connection } = await joined()
    connection.send(Buffer.from('lost'))
    above.status = 'aborted'
    await turn() // nothing is thrown into the event loop
    expect(above.sent).toEqual([])
  })

  it('writes the pieces of a large message to the socket together, as they are', async () => {
    const calls: unknown[] = []
    const socket = {
      writableNeedDrain: false,
      cork: () => { calls.push('cork') },
      write: (piece: Uint8Array) => { calls.push(piece); return false },
      uncork: () => { calls.push('uncork') }
    }
    const { raw } = await joined({ socket })
    const { sendData } = raw as unknown as { sendData (pieces: unknown): unknown }
    const pieces = [randomBytes(2), randomBytes(65_000), randomBytes(16)]
    const message = Object.assign(pieces, { byteLength: 65_018 })
    expect(sendData(message)).toEqual({ sentBytes: 65_018, canSendMore: true })
    expect(calls).toEqual(['cork', ...pieces, 'uncork'])
    socket.writableNeedDrain = true
    expect(sendData(message)).toEqual({ sentBytes: 65_018, canSendMore: false })
  })

  it('writes the pieces of an encrypted message as one', async () => {
    const { below, raw } = await joined()
    const pieces = [Buffer.from('length'), Buffer.from('ciphertext'), Buffer.from('tag')]
    raw.send({ byteLength: 19, subarray: () => Buffer.concat(pieces) } as never)
    expect(below.sent).toEqual([Buffer.concat(pieces)])
  })
})
