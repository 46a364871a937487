/**
 * Requests between processes, with delay, loss and partitions from a seed, in simulated time. As over the real transport, a
 * requester learns that a connection broke (ERR_UNAVAILABLE) or hears nothing until its deadline; whether the request was handled
 * it learns in neither case. Messages overtake one another.
 */
import { throwIfAborted, untilAborted, withDeadline } from '../../src/protocols/abort.ts'
import { P2pvmError } from '../../src/protocols/errors.ts'
import { CHUNK_PROTOCOL } from '../../src/protocols/chunk-protocol.ts'
import type { Message, PeerId, RequestOptions } from '../../src/protocols/transport.ts'
import { carry, MemoryTransport } from '../harness/memory-transport.ts'
import type { SeededRandom } from './seeded-random.ts'
import { never, type SimulatedProcess, type Surroundings } from './simulated-process.ts'

/** A connection that broke is noticed within this, or never. */
const NOTICED_WITHIN_MS = 5_000
/** A connection that breaks under a request does so within this. */
const BREAKS_WITHIN_MS = 300

interface Listener {
  readonly process: SimulatedProcess
  readonly transport: MemoryTransport
}

interface Exchange {
  readonly from: SimulatedProcess
  readonly to: PeerId
  readonly name: string
  readonly request: Message
  readonly number: number
}

export class SimulatedNetwork {
  readonly #surroundings: Surroundings
  readonly #random: SeededRandom
  readonly #listeners = new Map<PeerId, Listener>()
  readonly #partitions = new Set<ReadonlySet<PeerId>>()
  #exchanges = 0

  constructor (random: SeededRandom, surroundings: Surroundings) {
    this.#random = random
    this.#surroundings = surroundings
  }

  /** For a process to register its services at; nobody reaches them before `listen`. */
  join (process: SimulatedProcess): MemoryTransport {
    return new MemoryTransport(process.peer, {
      deliver: async (_from, to, name, request, options) => await this.#deliver(process, to, name, request, options)
    })
  }

  listen (process: SimulatedProcess, transport: MemoryTransport): void {
    this.#listeners.set(process.peer, { process, transport })
  }

  /** No messages between these and all others, until the returned function is called. */
  cutOff (peers: ReadonlySet<PeerId>): () => void {
    this.#partitions.add(peers)
    return () => { this.#partitions.delete(peers) }
  }

  async #deliver (from: SimulatedProcess, to: PeerId, name: string, request: Message, options: RequestOptions): Promise<Message> {
    if (!from.isAlive) return await never()
    return await withDeadline(from.clock, options.deadlineMs, [options.signal], async (signal) => {
      throwIfAborted(signal)
      return await untilAborted(this.#exchange({ from, to, name, request, number: this.#exchanges++ }, signal), signal)
    })
  }

  async #exchange (exchange: Exchange, givenUp: AbortSignal): Promise<Message> {
    const { from, to, number } = exchange
    if (from.peer !== to) await this.#travel(from.peer, to, number)
    const target = this.#listeners.get(to)
    const answer = target?.process.isAlive === true ? await this.#answer(exchange, target, givenUp) : refusal(to)
    if (from.peer !== to) await this.#travel(to, from.peer, number)
    return this.#carry(exchange, await answer())
  }

  /** What the other side says: an answer, an error of its own, or that its connection ended. */
  async #answer (exchange: Exchange, { process, transport }: Listener, givenUp: AbortSignal): Promise<() => Promise<Message>> {
    const { from, to, name, number } = exchange
    const { timeline, trace } = this.#surroundings
    const connection = new AbortController()
    const end = (): void => { connection.abort(new P2pvmError('ERR_UNAVAILABLE', `the connection with ${from.peer} broke`, { peer: from.peer })) }
    const hangUp = (): void => { if (!this.#isLost(from.peer, to)) timeline.after(this.#delayMs(), end) }
    givenUp.addEventListener('abort', hangUp)
    const keeps = this.#random.unit() < this.#surroundings.weather().loss
      ? timeline.after(this.#random.unit() * BREAKS_WITHIN_MS, end)
      : undefined
    trace.add(number, from.peer, 'asks', to, name)
    try {
      const answered = transport.answer(name, this.#carry(exchange, exchange.request), { peer: from.peer, signal: connection.signal })
      const message = await untilAborted(untilAborted(answered, process.death), connection.signal)
      return async () => message
    } catch (error) {
      return async () => { throw error }
    } finally {
      keeps?.()
      givenUp.removeEventListener('abort', hangUp)
    }
  }

  /** One way. Of a lost message the requester hears that the connection broke, or nothing. */
  async #travel (one: PeerId, other: PeerId, number: number): Promise<void> {
    const { timeline, trace } = this.#surroundings
    if (this.#isLost(one, other)) {
      trace.add(number, 'is lost between', one, other)
      if (this.#random.unit() < 0.5) return await never()
      await timeline.sleep(this.#random.unit() * NOTICED_WITHIN_MS)
      throw new P2pvmError('ERR_UNAVAILABLE', `the connection of ${one} and ${other} broke`, { peer: other })
    }
    await timeline.sleep(this.#delayMs())
    trace.add(number, 'arrives at', other)
  }

  #carry ({ name, number }: Exchange, message: Message): Message {
    const { weather, trace } = this.#surroundings
    const carried = carry(message)
    const { payload } = carried
    if (name !== CHUNK_PROTOCOL || payload === undefined || payload.length === 0 || this.#random.unit() >= weather().garbled) return carried
    payload[this.#random.below(payload.length)]! ^= 1 << this.#random.below(8)
    trace.add(number, 'is garbled')
    return carried
  }

  #isLost (one: PeerId, other: PeerId): boolean {
    for (const peers of this.#partitions) if (peers.has(one) !== peers.has(other)) return true
    return this.#random.unit() < this.#surroundings.weather().loss
  }

  #delayMs (): number {
    const { delayMs, straggling, straggleMs } = this.#surroundings.weather()
    return this.#random.unit() < straggling ? this.#random.unit() * straggleMs : this.#random.exponential(delayMs)
  }
}

function refusal (peer: PeerId): () => Promise<never> {
  return async () => { throw new P2pvmError('ERR_UNAVAILABLE', `${peer} cannot be reached`, { peer }) }
}
