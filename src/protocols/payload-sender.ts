/**
 * What goes out on one stream: control frames (everything but DATA) as soon as the stream takes them, and payloads one
 * after the other as far as the receiver's credit goes. One DATA frame at a time, so that a small request beside a large
 * payload waits for one frame and not for the payload. See `channel.ts` for the rules of credit.
 */
import { strict as assert } from 'node:assert'
import { P2pvmError } from './errors.ts'
import { FRAME, encodeFrameHeader } from './frame.ts'
import type { FrameKind } from './frame.ts'

/**
 * Payload bytes in one DATA frame: half of what a frame may hold, so that a small request waits half as long; larger ones
 * measured no faster. Chunks of the default size are two frames, exactly.
 */
export const DATA_BYTES_MAX = 128 * 1024
/** More credit than any honest receiver grants: its window and 64 of the largest payloads. */
const CREDIT_BYTES_MAX = 512 * 1024 * 1024

interface Outgoing {
  readonly id: number
  readonly payload: Uint8Array
  sentBytes: number
}

export interface PayloadSenderInit {
  /** Payload bytes that may be sent before the first credit comes. */
  readonly windowBytes: number
  /** Credit for the other direction that is not sent on its own, but with the next frame: at most half of that direction's window. */
  readonly creditBytesMin: number
  /** `payloadBytes` of the bytes are payload. False: the stream is full; `drained` is called when it takes more. */
  readonly send: (parts: Uint8Array[], payloadBytes: number) => boolean
  /** A payload has left completely (or was cancelled). */
  readonly onPayloadEnd?: (id: number) => void
}

export class PayloadSender {
  readonly #init: PayloadSenderInit
  #control: Uint8Array[] = []
  readonly #payloads = new Map<number, Outgoing>() // in order of announcement
  #creditBytes: number
  #grantedBytes = 0
  #queuedBytes = 0
  #full = false
  #scheduled = false
  #ended = false
  /** Payload bytes that have left so far; with `unsentBytes` it tells whether a stream still moves. */
  sentBytes = 0

  constructor (init: PayloadSenderInit) {
    this.#init = init
    this.#creditBytes = init.windowBytes
  }

  /** Payload bytes that were announced and have not left. */
  get unsentBytes (): number {
    return this.#queuedBytes
  }

  /** Those that wait behind the payload that is being sent. */
  get waitingBytes (): number {
    for (const first of this.#payloads.values()) return this.#queuedBytes - (first.payload.length - first.sentBytes)
    return 0
  }

  /** A payload goes with the REQUEST or RESPONSE frame that announces it: same call, same order. */
  enqueue (kind: FrameKind, id: number, body: Uint8Array, payload?: Uint8Array): void {
    if (this.#ended) return
    this.#control.push(encodeFrameHeader(kind, id, body.length), body)
    if (payload !== undefined && payload.length > 0) {
      assert(!this.#payloads.has(id), `payload ${id} is announced twice`)
      this.#payloads.set(id, { id, payload, sentBytes: 0 })
      this.#queuedBytes += payload.length
    }
    this.#schedule()
  }

  /** Sends CANCEL. What was left of the payload counts as sent, here and at the receiver. */
  cancel (id: number): void {
    const outgoing = this.#payloads.get(id)
    if (outgoing !== undefined) {
      const leftBytes = outgoing.payload.length - outgoing.sentBytes
      this.#creditBytes -= leftBytes
      this.#queuedBytes -= leftBytes
      this.#payloads.delete(id)
    }
    this.enqueue(FRAME.CANCEL, id, new Uint8Array(0))
    if (outgoing !== undefined) this.#init.onPayloadEnd?.(id)
  }

  has (id: number): boolean {
    return this.#payloads.has(id)
  }

  /** ERR_PROTOCOL when the receiver grants what it cannot mean. */
  addCredit (bytes: number): void {
    this.#creditBytes += bytes
    if (this.#creditBytes > CREDIT_BYTES_MAX) throw new P2pvmError('ERR_PROTOCOL', 'more credit than there can be')
    this.#schedule()
  }

  /** Tells the other end that it may send so much more; a little of it later, with something else, as it can go on without. */
  grant (bytes: number): void {
    if (this.#ended) return
    this.#grantedBytes += bytes
    if (this.#grantedBytes >= this.#init.creditBytesMin) this.#schedule()
  }

  drained (): void {
    this.#full = false
    this.#pump()
  }

  /** Sends what can be sent now instead of in a moment. */
  flush (): void {
    this.#pump()
  }

  /** The stream is gone: nothing is kept. */
  end (): void {
    this.#ended = true
    this.#control = []
    this.#payloads.clear()
    this.#queuedBytes = 0
  }

  /** In a moment, so that what is enqueued in one turn leaves in one write. */
  #schedule (): void {
    if (this.#scheduled || this.#full) return
    this.#scheduled = true
    queueMicrotask(() => {
      this.#scheduled = false
      this.#pump()
    })
  }

  #pump (): void {
    while (!this.#full && !this.#ended) {
      // All control frames go before any DATA: among them may be the announcement of that payload.
      const parts = this.#control
      this.#control = []
      const sentBefore = this.sentBytes
      const ended = this.#appendData(parts)
      this.#appendCredit(parts)
      if (parts.length === 0) return
      this.#full = !this.#init.send(parts, this.sentBytes - sentBefore)
      if (ended !== undefined) this.#init.onPayloadEnd?.(ended)
    }
  }

  #appendCredit (parts: Uint8Array[]): void {
    if (this.#grantedBytes === 0 || (parts.length === 0 && this.#grantedBytes < this.#init.creditBytesMin)) return
    const body = Buffer.allocUnsafe(4)
    body.writeUInt32BE(this.#grantedBytes)
    parts.push(encodeFrameHeader(FRAME.CREDIT, 0, body.length), body)
    this.#grantedBytes = 0
  }

  /** Appends one DATA frame when a payload and credit are there; returns the id of a payload that ends with it. */
  #appendData (parts: Uint8Array[]): number | undefined {
    if (this.#creditBytes <= 0) return undefined
    for (const outgoing of this.#payloads.values()) {
      const { id, payload, sentBytes } = outgoing
      const part = payload.subarray(sentBytes, sentBytes + Math.min(DATA_BYTES_MAX, this.#creditBytes))
      parts.push(encodeFrameHeader(FRAME.DATA, id, part.length), part)
      outgoing.sentBytes += part.length
      this.#creditBytes -= part.length
      this.#queuedBytes -= part.length
      this.sentBytes += part.length
      if (outgoing.sentBytes < payload.length) return undefined
      this.#payloads.delete(id)
      return id
    }
    return undefined
  }
}
