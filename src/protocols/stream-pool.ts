/**
 * The streams to one peer for one protocol: a few, opened when those that are there are busy, shared by all requests. A
 * request takes the least loaded; when all are full it waits its turn, within its deadline.
 */
import { untilAborted } from './abort.ts'
import { REQUESTS_IN_FLIGHT_MAX } from './channel.ts'
import type { RequestChannel } from './channel.ts'
import { P2pvmError } from './errors.ts'
import type { Message } from './transport.ts'

/** Requests that wait for a slot: more mean that the caller has no bound of its own. */
const WAITING_MAX = 4096

export interface ChannelEvents {
  /** A request has ended. */
  readonly onSlot: (channel: RequestChannel) => void
  readonly onEnd: (channel: RequestChannel) => void
}

export interface StreamPoolInit {
  readonly streamsMax: number
  /** Has a deadline of its own. ERR_UNAVAILABLE. */
  readonly open: (events: ChannelEvents) => Promise<RequestChannel>
  /** Nothing is open or opening, and nobody asks. */
  readonly onEmpty: () => void
}

export class StreamPool {
  readonly #init: StreamPoolInit
  readonly #channels = new Set<RequestChannel>()
  readonly #waiting = new Set<PromiseWithResolvers<void>>() // first come, first served
  #opening = 0
  #users = 0

  constructor (init: StreamPoolInit) {
    this.#init = init
  }

  /** ERR_UNAVAILABLE when the peer cannot be reached or goes away, the signal's error, or the handler's own. */
  async request (message: Message, signal: AbortSignal): Promise<Message> {
    this.#users += 1
    try {
      let channel = this.#leastLoaded()
      while (channel === undefined) {
        await this.#turn(signal)
        channel = this.#leastLoaded()
      }
      return await channel.request(message, signal)
    } finally {
      this.#users -= 1
      this.#checkEmpty()
    }
  }

  /** Closes streams that nobody has used since the last sweep, resets those on which nothing has moved. */
  sweep (): void {
    for (const channel of this.#channels) {
      if (channel.isStuck()) channel.reset(new P2pvmError('ERR_TIMEOUT', 'nothing has moved on this stream'))
      else if (channel.isIdle()) channel.close()
    }
  }

  close (): void {
    for (const channel of this.#channels) channel.close()
  }

  /** Opens another stream when this one has something to do already, and does not wait for it. */
  #leastLoaded (): RequestChannel | undefined {
    let least: RequestChannel | undefined
    for (const channel of this.#channels) {
      if (channel.load < REQUESTS_IN_FLIGHT_MAX && (least === undefined || channel.load < least.load)) least = channel
    }
    if ((least === undefined || least.load > 0) && this.#opening === 0 && this.#channels.size < this.#init.streamsMax) void this.#open()
    return least
  }

  async #turn (signal: AbortSignal): Promise<void> {
    if (this.#waiting.size >= WAITING_MAX) throw new P2pvmError('ERR_UNAVAILABLE', 'too many requests are waiting for this peer')
    const turn = Promise.withResolvers<void>()
    this.#waiting.add(turn)
    try {
      await untilAborted(turn.promise, signal)
    } catch (error) {
      // Given up in the moment when the turn had come: it is the next one's.
      if (!this.#waiting.delete(turn)) this.#wake(1)
      throw error
    }
  }

  async #open (): Promise<void> {
    this.#opening += 1
    try {
      const channel = await this.#init.open({
        onSlot: () => { this.#wake(1) },
        onEnd: (ended) => { this.#ended(ended) }
      })
      if (channel.isOpen) this.#channels.add(channel)
      this.#opening -= 1
      this.#wake(REQUESTS_IN_FLIGHT_MAX)
    } catch (error) {
      this.#opening -= 1
      if (this.#channels.size === 0) this.#failAll(error as Error)
    }
    this.#checkEmpty()
  }

  #ended (channel: RequestChannel): void {
    if (!this.#channels.delete(channel)) return
    // Whoever waits for its slots opens the next stream.
    if (this.#channels.size === 0) this.#wake(1)
    this.#checkEmpty()
  }

  #wake (count: number): void {
    let left = count
    for (const turn of this.#waiting) {
      if (left-- === 0) return
      this.#waiting.delete(turn)
      turn.resolve()
    }
  }

  #failAll (error: Error): void {
    for (const turn of this.#waiting) turn.reject(error)
    this.#waiting.clear()
  }

  #checkEmpty (): void {
    if (this.#channels.size === 0 && this.#opening === 0 && this.#users === 0) this.#init.onEmpty()
  }
}
