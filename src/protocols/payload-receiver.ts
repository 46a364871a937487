/**
 * The payloads that arrive on one stream, in the order in which they were announced. Each is admitted whole from a budget
 * that all streams share; then its buffer is allocated, once, and its size granted as credit. See `channel.ts` for why
 * this is bounded and cannot deadlock.
 */
import { strict as assert } from 'node:assert'
import type { Admission, ByteBudget } from './byte-budget.ts'
import { P2pvmError } from './errors.ts'
import { PAYLOAD_BYTES_MAX } from './transport.ts'

/** What one stream may hold of the shared budget, so that a stuck peer ties up little of it. One payload always fits. */
const STREAM_BYTES_MAX = PAYLOAD_BYTES_MAX

/** Where a payload's bytes go: nowhere yet, into their buffer, or away because nobody wants them any more. */
type Place =
  | { readonly kind: 'held', readonly parts: Uint8Array[] }
  | { readonly kind: 'admitted', readonly buffer: Uint8Array }
  | { readonly kind: 'discarded' }

/**
 * Called once: with the whole payload, or with undefined when it was discarded or the sender gave up. `release` is to be
 * called when the bytes are not held on behalf of the stream any more.
 */
export type PayloadEnd = (payload: Uint8Array | undefined, release: () => void) => void

interface Incoming {
  readonly size: number
  readonly onEnd: PayloadEnd
  receivedBytes: number
  place: Place
  admission: Admission | undefined
}

export interface PayloadReceiverInit {
  readonly windowBytes: number
  readonly budget: ByteBudget
  /** Sends a CREDIT frame. */
  readonly grant: (bytes: number) => void
}

export class PayloadReceiver {
  readonly #init: PayloadReceiverInit
  readonly #incoming = new Map<number, Incoming>() // in order of announcement; complete ones are gone
  #allowanceBytes: number
  #heldBytes = 0
  #ended = false
  /** Payload bytes that have come so far. */
  receivedBytes = 0

  constructor (init: PayloadReceiverInit) {
    this.#init = init
    this.#allowanceBytes = init.windowBytes
  }

  /** Some payload is admitted and not complete: its sender has the credit, and should send. */
  get expecting (): boolean {
    for (const { place } of this.#incoming.values()) if (place.kind === 'admitted') return true
    return false
  }

  has (id: number): boolean {
    return this.#incoming.has(id)
  }

  /** The next payload: `size` is from 1 to PAYLOAD_BYTES_MAX. */
  announce (id: number, size: number, onEnd: PayloadEnd): void {
    assert(size > 0 && size <= PAYLOAD_BYTES_MAX && !this.#incoming.has(id))
    this.#incoming.set(id, { size, onEnd, receivedBytes: 0, place: { kind: 'held', parts: [] }, admission: undefined })
    this.#askNext()
  }

  /** ERR_PROTOCOL when these are not the bytes that may come now. */
  data (id: number, part: Uint8Array): void {
    const incoming = this.#incoming.get(id)
    if (incoming === undefined || id !== this.#nextId()) throw new P2pvmError('ERR_PROTOCOL', 'bytes of a payload that is not next')
    if (part.length > incoming.size - incoming.receivedBytes) throw new P2pvmError('ERR_PROTOCOL', 'a payload larger than announced')
    if (part.length > this.#allowanceBytes) throw new P2pvmError('ERR_PROTOCOL', 'more payload than credit')
    this.#allowanceBytes -= part.length
    this.receivedBytes += part.length
    const { place } = incoming
    if (place.kind === 'held') place.parts.push(part)
    else if (place.kind === 'admitted') place.buffer.set(part, incoming.receivedBytes)
    incoming.receivedBytes += part.length
    if (incoming.receivedBytes === incoming.size) this.#endIfComplete(id, incoming)
  }

  /** The sender will send no more of it: the rest counts as received. */
  cancelled (id: number): void {
    const incoming = this.#incoming.get(id)
    if (incoming === undefined) return
    this.#allowanceBytes -= incoming.size - incoming.receivedBytes
    incoming.receivedBytes = incoming.size
    if (incoming.place.kind === 'discarded') this.#endIfComplete(id, incoming)
    else this.discard(id)
  }

  /** Nobody here wants it any more, though the sender may go on: its memory is given up at once. */
  discard (id: number): void {
    const incoming = this.#incoming.get(id)
    if (incoming === undefined || incoming.place.kind === 'discarded') return
    const wasHeld = incoming.place.kind === 'held'
    incoming.place = { kind: 'discarded' }
    this.#release(incoming)
    if (wasHeld) this.#grant(incoming.size)
    if (incoming.receivedBytes === incoming.size) this.#endIfComplete(id, incoming)
    this.#askNext()
  }

  /** The stream is gone: nothing is kept, nothing arrives. */
  end (): void {
    this.#ended = true
    for (const incoming of this.#incoming.values()) this.#release(incoming)
    this.#incoming.clear()
  }

  /** Payloads queue for the shared budget in their order, and only as many as this stream may hold. */
  #askNext (): void {
    for (const [id, incoming] of this.#incoming) {
      if (this.#ended) return
      if (incoming.admission !== undefined || incoming.place.kind === 'discarded') continue
      if (this.#heldBytes > 0 && this.#heldBytes + incoming.size > STREAM_BYTES_MAX) return
      this.#heldBytes += incoming.size
      let admittedAtOnce = false
      const admitted = (): void => {
        if (incoming.admission === undefined) admittedAtOnce = true
        else this.#admit(id, incoming)
      }
      incoming.admission = this.#init.budget.ask(incoming.size, admitted)
      if (admittedAtOnce) this.#admit(id, incoming)
    }
  }

  #admit (id: number, incoming: Incoming): void {
    assert(incoming.place.kind === 'held')
    // Not zeroed first: every byte is overwritten before anybody sees it.
    const buffer = new Uint8Array(Buffer.allocUnsafeSlow(incoming.size).buffer)
    let at = 0
    for (const part of incoming.place.parts) {
      buffer.set(part, at)
      at += part.length
    }
    incoming.place = { kind: 'admitted', buffer }
    this.#grant(incoming.size)
    if (incoming.receivedBytes === incoming.size) this.#endIfComplete(id, incoming)
  }

  #endIfComplete (id: number, incoming: Incoming): void {
    // All its bytes are here within the window, but it is not admitted yet: it stays, and ends when it is.
    if (incoming.place.kind === 'held') return
    this.#incoming.delete(id)
    incoming.onEnd(incoming.place.kind === 'admitted' ? incoming.place.buffer : undefined, () => {
      this.#release(incoming)
      this.#askNext()
    })
  }

  /** The payload whose bytes come now: the first that is not here whole. */
  #nextId (): number | undefined {
    for (const [id, incoming] of this.#incoming) {
      if (incoming.receivedBytes < incoming.size) return id
    }
    return undefined
  }

  #release (incoming: Incoming): void {
    const { admission } = incoming
    if (admission === undefined) return
    incoming.admission = undefined
    this.#heldBytes -= incoming.size
    admission.release()
  }

  #grant (bytes: number): void {
    this.#allowanceBytes += bytes
    this.#init.grant(bytes)
  }
}
