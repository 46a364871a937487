import { randomBytes } from 'node:crypto'
import { createConnection, Socket } from 'node:net'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { errorCodeOf } from '../../../src/protocols/errors.ts'
import type { Libp2pTransport } from '../../../src/protocols/libp2p-transport.ts'
import { startLivePeer } from '../../harness/live-nodes.ts'
import type { LivePeer } from '../../harness/live-nodes.ts'

const started: LivePeer[] = []

async function start (...init: Parameters<typeof startLivePeer>): Promise<LivePeer> {
  const peer = await startLivePeer(...init)
  started.push(peer)
  return peer
}

afterEach(async () => {
  await Promise.all(started.splice(0).map(async (peer) => { await peer.stop() }))
})

const echo = (transport: Libp2pTransport): void => {
  transport.handle('chunk/1', async ({ body, payload }) => payload === undefined ? { body } : { body, payload })
}

async function pair (prepare = echo): Promise<[LivePeer, LivePeer]> {
  const [near, far] = [await start(), await start({ prepare })]
  await near.transport.learnAddresses(far.id, far.addresses)
  return [near, far]
}

const codeOf = async (promise: Promise<unknown>): Promise<string> => await promise.then(() => 'none', errorCodeOf)

describe('libp2p transport', () => {
  it('moves payloads of every size, several at once, over at most four streams', async () => {
    const [near, far] = await pair()
    const sizes = [0, 1, 70_000, 256 * 1024, 300_000, 1024 * 1024, 4 * 1024 * 1024]
    await Promise.all([...sizes, ...sizes, ...sizes].map(async (size) => {
      const payload = randomBytes(size)
      const answer = await near.transport.request(far.id, 'chunk/1', { body: size, payload }, { deadlineMs: 15_000 })
      expect(answer.body).toBe(size)
      expect(Buffer.compare(answer.payload!, payload)).toBe(0)
    }))
    const streams = near.node.getConnections().flatMap((connection) => connection.streams).filter(({ protocol }) => protocol.endsWith('chunk/1'))
    expect(streams.length).toBeGreaterThan(1)
    expect(streams.length).toBeLessThanOrEqual(4)
    const sum = 3 * sizes.reduce((all, size) => all + size, 0)
    expect(near.counters.value('payload_bytes_sent_total', { protocol: 'chunk/1' })).toBe(sum)
    expect(near.counters.value('payload_bytes_received_total', { protocol: 'chunk/1' })).toBe(sum)
  })

  it('counts the bytes that it writes', async () => {
    const [near, far] = await pair()
    await near.transport.request(far.id, 'chunk/1', { body: 0, payload: randomBytes(1_000_000) }, { deadlineMs: 15_000 })
    expect(near.counters.value('wire_bytes_sent_total')).toBe(far.counters.value('wire_bytes_received_total'))
    expect(near.counters.value('wire_bytes_sent_total')).toBeGreaterThan(1_000_000)
    expect(near.counters.value('wire_bytes_sent_total')).toBeLessThan(1_001_000)
  })

  it('writes to the socket for a request and its answer, and not for window updates', async () => {
    const [near, far] = await pair()
    const roundTrip = async (): Promise<void> => { await near.transport.request(far.id, 'chunk/1', { body: 'small' }, { deadlineMs: 5000 }) }
    for (let count = 0; count < 20; count++) await roundTrip() // until identify and the like are through
    const written = vi.spyOn(Socket.prototype, 'write')
    try {
      for (let count = 0; count < 200; count++) await roundTrip()
      // Each message is its length and what it is long.
      expect(written.mock.calls.length).toBeLessThan(2.2 * 200)
    } finally {
      written.mockRestore()
    }
  })

  it('answers itself without the network', async () => {
    const peer = await start({ prepare: echo })
    expect((await peer.transport.request(peer.id, 'chunk/1', { body: 'me' }, { deadlineMs: 1000 })).body).toBe('me')
    expect(peer.counters.value('wire_bytes_sent_total')).toBe(0)
  })

  it('gives up at the deadline, and tells the handler', async () => {
    const aborted = Promise.withResolvers<void>()
    const [near, far] = await pair((transport) => {
      transport.handle('chunk/1', async (_message, { signal }) => {
        signal.addEventListener('abort', () => { aborted.resolve() })
        return await new Promise(() => {})
      })
    })
    expect(await codeOf(near.transport.request(far.id, 'chunk/1', { body: 0 }, { deadlineMs: 300 }))).toBe('ERR_TIMEOUT')
    await aborted.promise
  })

  it('fails at once when nobody listens there, when the peer is unknown, and when the id is none', async () => {
    const near = await start()
    const gone = await startLivePeer()
    await near.transport.learnAddresses(gone.id, gone.addresses)
    await gone.stop()
    const startedAt = performance.now()
    expect(await codeOf(near.transport.request(gone.id, 'chunk/1', { body: 0 }, { deadlineMs: 15_000 }))).toBe('ERR_UNAVAILABLE')
    const stranger = await startLivePeer()
    await stranger.stop()
    expect(await codeOf(near.transport.request(stranger.id, 'chunk/1', { body: 0 }, { deadlineMs: 15_000 }))).toBe('ERR_UNAVAILABLE')
    expect(await codeOf(near.transport.request('nobody', 'chunk/1', { body: 0 }, { deadlineMs: 15_000 }))).toBe('ERR_UNAVAILABLE')
    expect(performance.now() - startedAt).toBeLessThan(8000)
  })

  it('fails what is in flight when the connection dies, and reaches the peer again after', async () => {
    let handling = Promise.withResolvers<void>()
    let answer = false
    const [near, far] = await pair((transport) => {
      transport.handle('chunk/1', async () => {
        handling.resolve()
        return answer ? { body: 1 } : await new Promise(() => {})
      })
    })
    const failing = codeOf(near.transport.request(far.id, 'chunk/1', { body: 0 }, { deadlineMs: 15_000 }))
    await handling.promise
    for (const connection of far.node.getConnections()) connection.abort(new Error('cut'))
    expect(await failing).toBe('ERR_UNAVAILABLE')
    answer = true
    handling = Promise.withResolvers<void>()
    expect((await near.transport.request(far.id, 'chunk/1', { body: 0 }, { deadlineMs: 5000 })).body).toBe(1)
  })

  it('does not speak with a peer of another fabric', async () => {
    const near = await start()
    const far = await start({ fabric: 'otherotherotherr', prepare: echo })
    await near.transport.learnAddresses(far.id, far.addresses)
    expect(await codeOf(near.transport.request(far.id, 'chunk/1', { body: 0 }, { deadlineMs: 5000 }))).toBe('ERR_UNAVAILABLE')
  })

  it('takes many small requests at once, more than the streams have slots', async () => {
    const [near, far] = await pair()
    const answers = await Promise.all(Array.from({ length: 2000 }, async (_, index) => await near.transport.request(far.id, 'chunk/1', { body: index }, { deadlineMs: 15_000 })))
    expect(answers.map(({ body }) => body)).toEqual(Array.from({ length: 2000 }, (_, index) => index))
  })

  it('ends in time while requests are in flight', async () => {
    const [near, far] = await pair((transport) => {
      transport.handle('chunk/1', async () => await new Promise(() => {}))
    })
    const failing = codeOf(near.transport.request(far.id, 'chunk/1', { body: 0 }, { deadlineMs: 15_000 }))
    await near.node.dial(far.node.getMultiaddrs())
    const startedAt = performance.now()
    await near.stop()
    expect(['ERR_ABORTED', 'ERR_UNAVAILABLE']).toContain(await failing)
    await far.stop()
    expect(performance.now() - startedAt).toBeLessThan(3000)
  })

  it('stays when a stranger sends garbage over TCP', async () => {
    const [near, far] = await pair()
    const port = Number(far.addresses[0]!.split('/').at(-1))
    const closed = Promise.withResolvers<void>()
    const socket = createConnection(port, '127.0.0.1', () => { socket.end(randomBytes(10_000)) })
    socket.on('error', () => {}).on('close', () => { closed.resolve() }).resume()
    await closed.promise
    expect((await near.transport.request(far.id, 'chunk/1', { body: 'still' }, { deadlineMs: 5000 })).body).toBe('still')
  })

  it('prints its throughput', async () => {
    const chunk = randomBytes(256 * 1024)
    const [near, far] = await pair((transport) => {
      transport.handle('chunk/1', async ({ body }) => body === 'get' ? { body: 0, payload: chunk } : { body: 0 })
    })
    for (const kind of ['put', 'get']) {
      let left = 64
      const startedAt = performance.now()
      await Promise.all(Array.from({ length: 8 }, async () => {
        while (left-- > 0) await near.transport.request(far.id, 'chunk/1', kind === 'put' ? { body: 'put', payload: chunk } : { body: 'get' }, { deadlineMs: 15_000 })
      }))
      const megabytes = 64 * chunk.length / 1e6
      console.info(`${kind}, 256 KiB, 8 at once, both ends in one process: ${Math.round(megabytes / (performance.now() - startedAt) * 1000)} MB/s`)
    }
  })
})
