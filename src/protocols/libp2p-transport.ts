/**
 * The production transport: requests over a few persistent libp2p streams per peer and protocol. A new stream for each
 * request costs a round trip and most of the throughput; one stream for all makes them wait for each other.
 *
 * State it owns: the streams (opened on demand, closed when idle, reset when stuck), and the budgets of payload bytes that
 * arrive. What happens on a stream is `channel.ts`; who is worth asking is membership's to know.
 */
import type { Connection, Libp2p, Stream } from '@libp2p/interface'
import { peerIdFromString } from '@libp2p/peer-id'
import { multiaddr } from '@multiformats/multiaddr'
import { throwIfAborted, untilAborted, withDeadline } from './abort.ts'
import { ByteBudget } from './byte-budget.ts'
import { AnswerChannel, RequestChannel } from './channel.ts'
import type { Duplex, DuplexEvents } from './channel.ts'
import { P2pvmError } from './errors.ts'
import type { Clock, Counters, Log } from './seams.ts'
import { StreamPool } from './stream-pool.ts'
import type { Message, PeerId, RequestHandler, RequestOptions, Transport } from './transport.ts'

export interface Libp2pTransportComponents {
  readonly node: Libp2p
  readonly clock: Clock
  readonly counters: Counters
  readonly log: Log
}

export interface Libp2pTransportInit {
  /** Part of every wire id, so that peers of different fabrics have no protocol in common. null: of no fabric, `/p2pvm/<name>`. */
  readonly fabric: string | null
}

/** Persistent streams per peer. Four keep a connection full although each sends its payloads one after the other. */
const STREAMS_BY_PROTOCOL: Readonly<Record<string, number>> = { 'chunk/1': 4 }
const STREAMS_DEFAULT = 2
/** A peer that is up takes a connection in milliseconds; a request has others to turn to. */
const OPEN_DEADLINE_MS = 5000
/** libp2p's own limits count per connection and are meant for a stream per request. */
const STREAMS_PER_CONNECTION_MAX = 1000
/** Payload bytes of requests that are arriving or being handled, in the whole process; and of responses that are arriving. */
const REQUEST_BYTES_MAX = 32 * 1024 * 1024
const RESPONSE_BYTES_MAX = 32 * 1024 * 1024
/** libp2p's names for opening a stream on a connection that is gone. */
const ENDED_CONNECTION_ERRORS: ReadonlySet<string> = new Set(['ConnectionClosedError', 'MuxerClosedError'])
/** How often idle streams are closed and stuck ones reset. */
const SWEEP_MS = 30_000

export class Libp2pTransport implements Transport {
  readonly self: PeerId
  readonly #components: Libp2pTransportComponents
  readonly #fabric: string | null
  readonly #handlers = new Map<string, RequestHandler>()
  readonly #registrations: Array<Promise<void>> = []
  readonly #pools = new Map<string, StreamPool>()
  readonly #answering = new Set<AnswerChannel>()
  readonly #requestBudget = new ByteBudget(REQUEST_BYTES_MAX)
  readonly #responseBudget = new ByteBudget(RESPONSE_BYTES_MAX)
  readonly #stopped = new AbortController()

  constructor (components: Libp2pTransportComponents, init: Libp2pTransportInit) {
    this.#components = components
    this.#fabric = init.fabric
    this.self = components.node.peerId.toString()
  }

  /** Resolves when every handler so far is registered. */
  async start (): Promise<void> {
    await Promise.all(this.#registrations)
    void this.#sweepUntilStopped()
  }

  /** Fails what is in flight and closes every stream. The node stays. */
  async stop (): Promise<void> {
    this.#stopped.abort(new P2pvmError('ERR_ABORTED', 'the transport has stopped'))
    for (const pool of this.#pools.values()) pool.close()
    for (const channel of this.#answering) channel.close()
    await this.#components.node.unhandle([...this.#handlers.keys()].map((name) => this.#wireId(name)))
  }

  handle (name: string, handler: RequestHandler): void {
    if (this.#handlers.has(name)) throw new P2pvmError('ERR_INTERNAL', `${name} has a handler already`)
    this.#handlers.set(name, handler)
    const options = { maxInboundStreams: STREAMS_PER_CONNECTION_MAX, maxOutboundStreams: STREAMS_PER_CONNECTION_MAX }
    this.#registrations.push(this.#components.node.handle(this.#wireId(name), (stream, connection) => { this.#accept(name, handler, stream, connection) }, options))
  }

  async request (peer: PeerId, name: string, request: Message, options: RequestOptions): Promise<Message> {
    return await withDeadline(this.#components.clock, options.deadlineMs, [options.signal, this.#stopped.signal], async (signal) => {
      if (peer === this.self) return await this.#answerOneself(name, request, signal)
      throwIfAborted(signal)
      return await this.#poolOf(peer, name).request(request, signal)
    })
  }

  async learnAddresses (peer: PeerId, addresses: readonly string[]): Promise<void> {
    if (peer === this.self) return
    const multiaddrs = addresses.flatMap((address) => {
      try {
        return [multiaddr(address)]
      } catch {
        return [] // from a peer that knows more kinds than we do, or is broken
      }
    })
    if (multiaddrs.length > 0) await this.#components.node.peerStore.merge(parsePeerId(peer), { multiaddrs })
  }

  async #answerOneself (name: string, request: Message, signal: AbortSignal): Promise<Message> {
    const handler = this.#handlers.get(name)
    if (handler === undefined) throw new P2pvmError('ERR_UNAVAILABLE', `this peer does not speak ${name}`, { peer: this.self })
    return await untilAborted(handler(request, { peer: this.self, signal }), signal)
  }

  #wireId (name: string): string {
    return this.#fabric === null ? `/p2pvm/${name}` : `/p2pvm/${this.#fabric}/${name}`
  }

  #poolOf (peer: PeerId, name: string): StreamPool {
    const key = `${peer} ${name}`
    let pool = this.#pools.get(key)
    if (pool === undefined) {
      pool = new StreamPool({
        streamsMax: STREAMS_BY_PROTOCOL[name] ?? STREAMS_DEFAULT,
        open: async (events) => new RequestChannel({ ...this.#channelInit(name, peer), ...events, duplex: await this.#dial(peer, name), budget: this.#responseBudget }),
        onEmpty: () => { this.#pools.delete(key) }
      })
      this.#pools.set(key, pool)
    }
    return pool
  }

  async #dial (peer: PeerId, name: string): Promise<Duplex> {
    const { node, clock } = this.#components
    const id = parsePeerId(peer)
    try {
      return await withDeadline(clock, OPEN_DEADLINE_MS, [this.#stopped.signal], async (signal) => {
        const options = { signal, maxOutboundStreams: STREAMS_PER_CONNECTION_MAX }
        const stream = await node.dialProtocol(id, this.#wireId(name), options).catch(async (error: unknown) => {
          // A connection that has just ended is still listed for a moment: past it, a new one.
          if (!ENDED_CONNECTION_ERRORS.has((error as Error).name)) throw error
          return await node.dialProtocol(id, this.#wireId(name), { ...options, force: true })
        })
        return new StreamDuplex(stream)
      })
    } catch (error) {
      throw new P2pvmError('ERR_UNAVAILABLE', `cannot reach ${peer} for ${name}: ${reasonOf(error)}`, { peer }, error)
    }
  }

  #accept (name: string, handler: RequestHandler, stream: Stream, connection: Connection): void {
    const channel = new AnswerChannel({
      ...this.#channelInit(name, connection.remotePeer.toString()),
      duplex: new StreamDuplex(stream),
      budget: this.#requestBudget,
      handler,
      onEnd: (ended) => { this.#answering.delete(ended) }
    })
    if (this.#stopped.signal.aborted) channel.close()
    else this.#answering.add(channel)
  }

  #channelInit (protocol: string, peer: PeerId): { protocol: string, peer: PeerId, counters: Counters, log: Log } {
    const { counters, log } = this.#components
    return { protocol, peer, counters, log }
  }

  async #sweepUntilStopped (): Promise<void> {
    const { clock, log } = this.#components
    while (!this.#stopped.signal.aborted) {
      await clock.sleep(SWEEP_MS, this.#stopped.signal).catch(() => {})
      for (const pool of this.#pools.values()) pool.sweep()
      for (const channel of this.#answering) {
        if (!channel.isStuck()) continue
        log.warn('stream reset: nothing has moved on it', { sweepMs: SWEEP_MS })
        channel.reset(new P2pvmError('ERR_TIMEOUT', 'nothing has moved on this stream'))
      }
    }
  }
}

function parsePeerId (peer: PeerId): ReturnType<typeof peerIdFromString> {
  try {
    return peerIdFromString(peer)
  } catch (error) {
    throw new P2pvmError('ERR_UNAVAILABLE', `not a peer id: ${peer}`, { peer }, error)
  }
}

function reasonOf (error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  return error.message === '' ? error.name : error.message
}

/** A libp2p stream as a channel needs it. */
class StreamDuplex implements Duplex {
  readonly #stream: Stream

  constructor (stream: Stream) {
    this.#stream = stream
  }

  open (events: DuplexEvents): void {
    const stream = this.#stream
    stream.addEventListener('drain', () => {
      // The stream first sends, in a microtask of its own, what it had to keep; and may be full again after it.
      queueMicrotask(() => { if (!stream.writableNeedsDrain) events.drained() })
    })
    stream.addEventListener('close', () => { events.closed() })
    // The opener has closed it in good order: so do we, and both ends are free.
    stream.addEventListener('remoteCloseWrite', () => { this.close() })
    stream.addEventListener('message', ({ data }) => { events.data(data instanceof Uint8Array ? [data] : data) })
    if (stream.status !== 'open') queueMicrotask(() => { events.closed() })
  }

  send (parts: Uint8Array[]): boolean {
    try {
      // One copy into one piece: the layers below write each piece of a list to the socket on its own, which costs more.
      return this.#stream.send(parts.length === 1 ? parts[0]! : Buffer.concat(parts))
    } catch {
      return false // it has closed, and says so in an event
    }
  }

  close (): void {
    this.#stream.close({ signal: AbortSignal.timeout(OPEN_DEADLINE_MS) }).catch((error: Error) => { this.#stream.abort(error) })
  }

  reset (error: Error): void {
    this.#stream.abort(error)
  }
}
