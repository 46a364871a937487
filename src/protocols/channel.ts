/**
 * Requests and answers over one duplex byte stream, many in flight. The side that opened the stream asks
 * (`RequestChannel`), the other answers (`AnswerChannel`); frames are in `frame.ts`.
 *
 * Payloads of one direction are sent one after the other, in the order in which they were announced (by the REQUEST or
 * RESPONSE frame that carries their size). Every other frame goes in between, so that small requests pass large payloads.
 *
 * Credit, per direction: the sender may send
 *
 *     window + sum of CREDIT frames received - payload bytes sent
 *
 * bytes. The receiver *admits* payloads whole, in order, from a budget that all streams of the process share, allocates
 * the buffer and then grants the payload's size. What may come before that is at most the window: so a stream holds at
 * most one window that was not admitted, and the process holds the budget and one window per stream. A payload that ends
 * early (CANCEL) counts as sent on both sides, so the two sums stay equal whatever was on its way. A CREDIT frame of less than half
 * the window waits for another frame to go with: small payloads cost no message of their own to grant, and the sender has the other half.
 *
 * No deadlock: an admitted payload needs nothing but its own bytes to be complete, because it is the first of its stream
 * (or follows others that are admitted), so its sender has the credit to send it. Response payloads leave their budget as
 * soon as they are complete. Request payloads stay until their handler is done; a handler may wait for *responses*, and
 * these have another budget, so budgets are waited for in one direction only. A peer that stops in the middle of a
 * payload is found by `isStuck` and its stream reset.
 *
 * In flight is a request until its answer is here, also when the requester has given up: CANCEL asks for the answer to
 * come soon (ERROR, or CANCEL when its payload was on the way), so both sides count the same, and the bound is exact.
 *
 * Broken or hostile input resets this stream and is counted; the connection and the peer stay.
 */
import { strict as assert } from 'node:assert'
import { abortErrorOf } from './abort.ts'
import type { ByteBudget } from './byte-budget.ts'
import { decodeCbor } from './codec.ts'
import { P2pvmError, isErrorCode } from './errors.ts'
import { FRAME, FrameReader } from './frame.ts'
import type { FrameKind } from './frame.ts'
import { decodeError, decodeMessage, encodeError, encodeMessage } from './message-codec.ts'
import { PayloadReceiver } from './payload-receiver.ts'
import { PayloadSender } from './payload-sender.ts'
import type { Counters, Log } from './seams.ts'
import type { Message, PeerId, RequestHandler } from './transport.ts'

/** What a channel needs of a stream. */
export interface Duplex {
  /** Starts delivery. No event comes before this call has returned. */
  open (events: DuplexEvents): void
  /** Takes the bytes; false: no more until `drained`. Never throws: a stream that is gone says `closed`. */
  send (parts: Uint8Array[]): boolean
  /** Ends it in good order, when nothing is in flight. */
  close (): void
  /** Ends it at once, both directions. */
  reset (error: Error): void
}

export interface DuplexEvents {
  /** Bytes in the pieces in which they came. */
  data (pieces: Iterable<Uint8Array>): void
  drained (): void
  /** Once, whoever ended it. */
  closed (): void
}

export interface ChannelInit {
  readonly duplex: Duplex
  readonly peer: PeerId
  /** Name of the protocol, for messages and for the counters' label. */
  readonly protocol: string
  /** Admits payloads that arrive here: one budget for requests, another for responses. */
  readonly budget: ByteBudget
  readonly counters: Counters
  readonly log: Log
}

export const REQUESTS_IN_FLIGHT_MAX = 64
/** A small chunk or a batch of records need not wait for credit; a hostile peer's streams cost this much each. */
const REQUEST_WINDOW_BYTES = 64 * 1024
/** A chunk of the default size and more come without a round trip; we have asked for them, so there are never many. */
const RESPONSE_WINDOW_BYTES = 512 * 1024
/**
 * Answers that wait behind the payload that is being sent, and those that running handlers will give (each is taken to be
 * as large as the largest so far): with so much, further requests of this stream wait to be handled. A peer that asks and
 * does not read costs this much per stream.
 */
const ANSWER_BACKLOG_BYTES = 2 * 1024 * 1024

const NO_BODY = new Uint8Array(0)

/** What both ends have in common: frames, credit, and the end of the stream. */
abstract class Channel {
  protected readonly init: ChannelInit
  protected readonly sender: PayloadSender
  protected readonly receiver: PayloadReceiver
  #open = true
  #movedBytes = -1

  constructor (init: ChannelInit, sendWindowBytes: number, receiveWindowBytes: number) {
    this.init = init
    const labels = { protocol: init.protocol }
    this.sender = new PayloadSender({
      windowBytes: sendWindowBytes,
      creditBytesMin: receiveWindowBytes / 2,
      send: (parts, payloadBytes) => {
        init.counters.add('wire_bytes_sent_total', parts.reduce((sum, part) => sum + part.length, 0), labels)
        if (payloadBytes > 0) init.counters.add('payload_bytes_sent_total', payloadBytes, labels)
        return init.duplex.send(parts)
      },
      onPayloadEnd: (id) => { this.onPayloadSent(id) }
    })
    this.receiver = new PayloadReceiver({
      windowBytes: receiveWindowBytes,
      budget: init.budget,
      grant: (bytes) => { this.sender.grant(bytes) }
    })
    const reader = new FrameReader({
      frame: (kind, id, body) => { this.#frame(kind, id, body) },
      data: (id, part) => { this.receiver.data(id, part) }
    })
    init.duplex.open({
      data: (pieces) => { this.#read(reader, pieces) },
      drained: () => { this.sender.drained() },
      closed: () => { this.#end() }
    })
  }

  get isOpen (): boolean {
    return this.#open
  }

  /** Nothing has moved since the last call although a payload is on its way: ask each half minute, then reset. */
  isStuck (): boolean {
    const movedBytes = this.sender.sentBytes + this.receiver.receivedBytes
    const stuck = movedBytes === this.#movedBytes && (this.sender.unsentBytes > 0 || this.receiver.expecting)
    this.#movedBytes = movedBytes
    return stuck
  }

  close (): void {
    if (!this.#open) return
    this.#end()
    this.init.duplex.close()
  }

  reset (error: Error): void {
    if (!this.#open) return
    this.#end()
    this.init.duplex.reset(error)
  }

  protected abstract onFrame (kind: FrameKind, id: number, body: Uint8Array): void
  protected abstract onPayloadSent (id: number): void
  protected abstract onEnd (): void

  #read (reader: FrameReader, pieces: Iterable<Uint8Array>): void {
    if (!this.#open) return
    const { counters, protocol } = this.init
    const before = this.receiver.receivedBytes
    let wireBytes = 0
    try {
      for (const piece of pieces) {
        wireBytes += piece.length
        reader.push(piece)
      }
    } catch (error) {
      this.#refuse(error)
    }
    const payloadBytes = this.receiver.receivedBytes - before
    counters.add('wire_bytes_received_total', wireBytes, { protocol })
    if (payloadBytes > 0) counters.add('payload_bytes_received_total', payloadBytes, { protocol })
  }

  #frame (kind: FrameKind, id: number, body: Uint8Array): void {
    if (kind === FRAME.CREDIT) this.sender.addCredit(Buffer.from(body.buffer, body.byteOffset, body.length).readUInt32BE())
    else this.onFrame(kind, id, body)
  }

  #refuse (error: unknown): void {
    const { peer, protocol, counters, log } = this.init
    counters.add('hostile_streams_total', 1, { protocol })
    log.warn('stream reset: input that the protocol does not allow', { peer, protocol, error: String(error) })
    this.reset(error instanceof Error ? error : new Error(String(error)))
  }

  /** For a handler that found its request hostile. */
  protected refuseAfterAnswer (error: P2pvmError): void {
    this.sender.flush()
    this.#refuse(error)
  }

  #end (): void {
    if (!this.#open) return
    this.#open = false
    this.sender.end()
    this.receiver.end()
    this.onEnd()
  }
}

interface Asked {
  readonly resolve: (answer: Message) => void
  readonly reject: (error: Error) => void
  /** The caller has gone; the slot stays taken until the answer. */
  cancelled: boolean
  /** A RESPONSE was here, its payload is not yet complete. */
  answered: boolean
}

export class RequestChannel extends Channel {
  readonly #asked = new Map<number, Asked>()
  readonly #onEnd: (channel: RequestChannel) => void
  readonly #onSlot: (channel: RequestChannel) => void
  #lastId = 0
  #idleId = 0

  /** `onSlot`: a request has ended, another may be sent. `onEnd`: the stream is gone. */
  constructor (init: ChannelInit & { onSlot?: (channel: RequestChannel) => void, onEnd?: (channel: RequestChannel) => void }) {
    super(init, REQUEST_WINDOW_BYTES, RESPONSE_WINDOW_BYTES)
    this.#onSlot = init.onSlot ?? (() => {})
    this.#onEnd = init.onEnd ?? (() => {})
  }

  /** Requests in flight; at most REQUESTS_IN_FLIGHT_MAX. */
  get load (): number {
    return this.#asked.size
  }

  /** No request is in flight and none was sent since the last call. */
  isIdle (): boolean {
    const idle = this.load === 0 && this.#lastId === this.#idleId
    this.#idleId = this.#lastId
    return idle
  }

  /** ERR_UNAVAILABLE when the stream ends first, the signal's error when that aborts, else what the handler threw. */
  async request (message: Message, signal: AbortSignal): Promise<Message> {
    if (signal.aborted) throw abortErrorOf(signal)
    if (!this.isOpen) throw this.#gone()
    assert(this.load < REQUESTS_IN_FLIGHT_MAX, 'too many requests in flight')
    const body = encodeMessage(message)
    this.#lastId = (this.#lastId + 1) >>> 0
    const id = this.#lastId
    const { promise, resolve, reject } = Promise.withResolvers<Message>()
    this.#asked.set(id, { resolve, reject, cancelled: false, answered: false })
    const onAbort = (): void => { this.#cancel(id, abortErrorOf(signal)) }
    signal.addEventListener('abort', onAbort)
    this.sender.enqueue(FRAME.REQUEST, id, body, message.payload)
    try {
      return await promise
    } finally {
      signal.removeEventListener('abort', onAbort)
    }
  }

  #cancel (id: number, error: P2pvmError): void {
    const asked = this.#asked.get(id)
    if (asked === undefined || asked.cancelled) return
    asked.cancelled = true
    asked.reject(error)
    this.sender.cancel(id)
    this.receiver.discard(id)
  }

  protected onFrame (kind: FrameKind, id: number, body: Uint8Array): void {
    const asked = this.#asked.get(id)
    if (asked === undefined) throw new P2pvmError('ERR_PROTOCOL', 'an answer to nothing')
    if (this.sender.has(id)) throw new P2pvmError('ERR_PROTOCOL', 'an answer before all was asked')
    if (kind === FRAME.CANCEL && asked.cancelled && asked.answered) {
      this.receiver.cancelled(id)
    } else if (kind === FRAME.RESPONSE && !asked.answered) {
      this.#answered(id, asked, body)
    } else if (kind === FRAME.ERROR && !asked.answered) {
      const [code, message, fields] = decodeError(decodeCbor(body), 'error')
      this.#finish(id)
      asked.reject(new P2pvmError(isErrorCode(code) ? code : 'ERR_INTERNAL', message, Object.fromEntries(fields)))
    } else {
      throw new P2pvmError('ERR_PROTOCOL', `a frame of kind ${kind} out of turn`)
    }
  }

  #answered (id: number, asked: Asked, frame: Uint8Array): void {
    const [payloadBytes, body] = decodeMessage(decodeCbor(frame), 'response')
    if (payloadBytes === null || payloadBytes === 0) {
      this.#finish(id)
      asked.resolve(payloadBytes === null ? { body } : { body, payload: NO_BODY })
      return
    }
    asked.answered = true
    this.receiver.announce(id, payloadBytes, (payload, release) => {
      release()
      this.#finish(id)
      // Without a payload it was discarded, and the caller has had the abort's error.
      if (payload !== undefined) asked.resolve({ body, payload })
    })
    if (asked.cancelled) this.receiver.discard(id)
  }

  #finish (id: number): void {
    this.#asked.delete(id)
    this.#onSlot(this)
  }

  protected onPayloadSent (): void {}

  protected onEnd (): void {
    for (const asked of this.#asked.values()) asked.reject(this.#gone())
    this.#asked.clear()
    this.#onEnd(this)
  }

  #gone (): P2pvmError {
    const { peer, protocol } = this.init
    return new P2pvmError('ERR_UNAVAILABLE', `the ${protocol} stream to ${peer} has ended`, { peer })
  }
}

interface Handled {
  readonly giveUp: AbortController
  readonly body: unknown
  readonly payload: Uint8Array | undefined
  readonly release: () => void
}

export class AnswerChannel extends Channel {
  readonly #handler: RequestHandler
  readonly #onEnd: (channel: AnswerChannel) => void
  /** Requests whose answer has not left completely, with what aborts their handler. */
  readonly #asked = new Map<number, AbortController>()
  /** Those of them that wait for a handler. */
  readonly #waiting = new Map<number, Handled>()
  #running = 0
  #answerBytesMax = 0

  constructor (init: ChannelInit & { handler: RequestHandler, onEnd?: (channel: AnswerChannel) => void }) {
    super(init, RESPONSE_WINDOW_BYTES, REQUEST_WINDOW_BYTES)
    this.#handler = init.handler
    this.#onEnd = init.onEnd ?? (() => {})
  }

  protected onFrame (kind: FrameKind, id: number, frame: Uint8Array): void {
    if (kind === FRAME.CANCEL) {
      this.#cancelled(id)
    } else if (kind === FRAME.REQUEST) {
      this.#requested(id, frame)
    } else {
      throw new P2pvmError('ERR_PROTOCOL', `a frame of kind ${kind} out of turn`)
    }
  }

  #requested (id: number, frame: Uint8Array): void {
    if (this.#asked.has(id)) throw new P2pvmError('ERR_PROTOCOL', 'a request id that is in use')
    if (this.#asked.size >= REQUESTS_IN_FLIGHT_MAX) throw new P2pvmError('ERR_PROTOCOL', 'too many requests in flight')
    const [payloadBytes, body] = decodeMessage(decodeCbor(frame), 'request')
    const giveUp = new AbortController()
    this.#asked.set(id, giveUp)
    if (payloadBytes === null || payloadBytes === 0) {
      this.#ready(id, { giveUp, body, payload: payloadBytes === null ? undefined : NO_BODY, release: () => {} })
      return
    }
    this.receiver.announce(id, payloadBytes, (payload, release) => {
      if (payload === undefined) {
        release()
        this.#answerError(id, new P2pvmError('ERR_ABORTED', 'given up by the requester'))
      } else {
        this.#ready(id, { giveUp, body, payload, release })
      }
    })
  }

  #ready (id: number, handled: Handled): void {
    this.#waiting.set(id, handled)
    this.#startWaiting()
  }

  #startWaiting (): void {
    for (const [id, handled] of this.#waiting) {
      if (this.sender.waitingBytes + this.#running * this.#answerBytesMax >= ANSWER_BACKLOG_BYTES) return
      this.#waiting.delete(id)
      void this.#run(id, handled)
    }
  }

  async #run (id: number, { giveUp, body, payload, release }: Handled): Promise<void> {
    this.#running += 1
    try {
      const request = payload === undefined ? { body } : { body, payload }
      const answer = await this.#handler(request, { peer: this.init.peer, signal: giveUp.signal })
      if (giveUp.signal.aborted) throw abortErrorOf(giveUp.signal)
      const frame = encodeMessage(answer)
      const answerBytes = answer.payload?.length ?? 0
      this.#answerBytesMax = Math.max(this.#answerBytesMax, answerBytes)
      if (answerBytes === 0) this.#asked.delete(id)
      this.sender.enqueue(FRAME.RESPONSE, id, frame, answer.payload)
    } catch (error) {
      if (!(error instanceof P2pvmError) && !giveUp.signal.aborted) {
        this.init.log.error('a handler failed', { protocol: this.init.protocol, peer: this.init.peer, error: errorText(error) })
      }
      this.#answerError(id, error)
      if (error instanceof P2pvmError && error.code === 'ERR_PROTOCOL' && this.isOpen) this.refuseAfterAnswer(error)
    } finally {
      this.#running -= 1
      release()
      this.#startWaiting()
    }
  }

  #answerError (id: number, error: unknown): void {
    this.#asked.delete(id)
    this.sender.enqueue(FRAME.ERROR, id, encodeError(error))
  }

  #cancelled (id: number): void {
    const giveUp = this.#asked.get(id)
    if (giveUp === undefined) return // the answer has left before this came
    const error = new P2pvmError('ERR_ABORTED', 'given up by the requester')
    giveUp.abort(error)
    const waiting = this.#waiting.get(id)
    if (waiting !== undefined) {
      this.#waiting.delete(id)
      waiting.release()
      this.#answerError(id, error)
    } else if (this.receiver.has(id)) {
      this.receiver.cancelled(id)
    } else if (this.sender.has(id)) {
      this.sender.cancel(id)
    }
    // Else its handler runs, and answers when it notices.
  }

  protected onPayloadSent (id: number): void {
    this.#asked.delete(id)
    this.#startWaiting()
  }

  protected onEnd (): void {
    const { peer } = this.init
    for (const giveUp of this.#asked.values()) giveUp.abort(new P2pvmError('ERR_ABORTED', `the stream from ${peer} has ended`, { peer }))
    for (const waiting of this.#waiting.values()) waiting.release()
    this.#asked.clear()
    this.#waiting.clear()
    this.#onEnd(this)
  }
}

function errorText (error: unknown): string {
  return error instanceof Error ? error.stack ?? error.message : String(error)
}
