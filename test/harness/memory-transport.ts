/**
 * Many transports in one process. Bodies go through the codec and payloads are copied, so that nothing passes here that
 * the wire would not carry; errors cross as they do on the wire. Peers can be killed, hung, cut off from one another.
 */
import { throwIfAborted, untilAborted, withDeadline } from '../../src/protocols/abort.ts'
import { decodeCbor, encodeCbor } from '../../src/protocols/codec.ts'
import { P2pvmError } from '../../src/protocols/errors.ts'
import type { Clock } from '../../src/protocols/seams.ts'
import type { Message, PeerId, RequestHandler, RequestOptions, Transport } from '../../src/protocols/transport.ts'

export class MemoryNetwork {
  readonly #clock: Clock
  readonly #peers = new Map<PeerId, MemoryTransport>()
  readonly #killed = new Set<PeerId>()
  readonly #hung = new Set<PeerId>()
  readonly #cut = new Set<string>()
  readonly #inFlight = new Map<AbortController, PeerId>()
  /** Requests so far, by protocol name: tests count round trips. */
  readonly requests = new Map<string, number>()

  constructor (clock: Clock) {
    this.#clock = clock
  }

  /** The transport of a peer; the same name again replaces it, which is a restart. */
  join (peer: PeerId): MemoryTransport {
    const transport = new MemoryTransport(peer, this)
    this.#peers.set(peer, transport)
    this.#killed.delete(peer)
    this.#hung.delete(peer)
    return transport
  }

  /** Requests to and from it fail at once, those in flight too. `join` brings it back without, `revive` with its handlers. */
  kill (peer: PeerId): void {
    this.#killed.add(peer)
    for (const [request, to] of this.#inFlight) {
      if (to === peer) request.abort(new P2pvmError('ERR_UNAVAILABLE', `connection to ${peer} closed`, { peer }))
    }
  }

  revive (peer: PeerId): void {
    this.#killed.delete(peer)
  }

  /** Like SIGSTOP: it takes requests and does not answer, until `resume`. */
  hang (peer: PeerId): void {
    this.#hung.add(peer)
  }

  resume (peer: PeerId): void {
    this.#hung.delete(peer)
  }

  /** No requests between these two, in both directions, until `mend`. */
  cut (one: PeerId, other: PeerId): void {
    this.#cut.add(`${one} ${other}`).add(`${other} ${one}`)
  }

  mend (one: PeerId, other: PeerId): void {
    this.#cut.delete(`${one} ${other}`)
    this.#cut.delete(`${other} ${one}`)
  }

  async deliver (from: PeerId, to: PeerId, name: string, request: Message, options: RequestOptions): Promise<Message> {
    this.requests.set(name, (this.requests.get(name) ?? 0) + 1)
    const target = this.#peers.get(to)
    if (target === undefined || this.#killed.has(to) || this.#killed.has(from) || this.#cut.has(`${from} ${to}`)) {
      throw new P2pvmError('ERR_UNAVAILABLE', `${to} cannot be reached`, { peer: to })
    }
    const connection = new AbortController()
    this.#inFlight.set(connection, to)
    try {
      return await withDeadline(this.#clock, options.deadlineMs, [options.signal, connection.signal], async (signal) => {
        throwIfAborted(signal)
        const answered = this.#hung.has(to)
          ? new Promise<never>(() => {})
          : target.answer(name, carry(request), { peer: from, signal })
        return carry(await untilAborted(answered, signal))
      })
    } finally {
      this.#inFlight.delete(connection)
    }
  }
}

export class MemoryTransport implements Transport {
  readonly self: PeerId
  readonly #network: Pick<MemoryNetwork, 'deliver'>
  readonly #handlers = new Map<string, RequestHandler>()
  readonly addresses = new Map<PeerId, readonly string[]>()

  constructor (self: PeerId, network: Pick<MemoryNetwork, 'deliver'>) {
    this.self = self
    this.#network = network
  }

  handle (name: string, handler: RequestHandler): void {
    this.#handlers.set(name, handler)
  }

  async request (peer: PeerId, name: string, request: Message, options: RequestOptions): Promise<Message> {
    return await this.#network.deliver(this.self, peer, name, request, options)
  }

  async learnAddresses (peer: PeerId, addresses: readonly string[]): Promise<void> {
    this.addresses.set(peer, addresses)
  }

  async answer (name: string, request: Message, context: { peer: PeerId, signal: AbortSignal }): Promise<Message> {
    const handler = this.#handlers.get(name)
    if (handler === undefined) throw new P2pvmError('ERR_UNAVAILABLE', `${this.self} does not speak ${name}`, { peer: this.self })
    try {
      return await handler(request, context)
    } catch (error) {
      if (error instanceof P2pvmError) throw new P2pvmError(error.code, error.message, { ...error.fields })
      throw new P2pvmError('ERR_INTERNAL', 'the peer failed to answer', { peer: this.self }, error)
    }
  }
}

/** A message on the far side: what the codec makes of its body, and a copy of its payload. */
export function carry (message: Message): Message {
  const body = decodeCbor(encodeCbor(message.body))
  return message.payload === undefined ? { body } : { body, payload: new Uint8Array(message.payload) }
}
