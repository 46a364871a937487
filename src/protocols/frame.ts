/**
 * Frames: the only thing on one of our streams.
 *
 *     u32 length | u8 kind | u32 request id | body        (big endian; length counts everything after itself)
 *
 * A whole frame is at most FRAME_BYTES_MAX. The reader takes bytes as they come from the network, checks each header
 * before it keeps a byte of the body, and hands DATA on in the pieces in which it arrived, so that a payload is copied
 * once, into the buffer where it stays. It knows nothing of requests: that is `channel.ts`.
 */
import { P2pvmError } from './errors.ts'
import { FRAME_BYTES_MAX } from './transport.ts'

export const FRAME = {
  /** requester → responder: CBOR [payload length or null, body] */
  REQUEST: 1,
  /** responder → requester: the same */
  RESPONSE: 2,
  /** responder → requester: CBOR [code, message, fields] */
  ERROR: 3,
  /** the next bytes of the payload that was announced first and is not complete */
  DATA: 4,
  /** u32: so many more payload bytes may be sent in the other direction; request id 0 */
  CREDIT: 5,
  /** requester: the answer is not wanted any more; from either side: the rest of this payload will not be sent */
  CANCEL: 6
} as const

export type FrameKind = (typeof FRAME)[keyof typeof FRAME]

const LENGTH_BYTES = 4
export const FRAME_HEADER_BYTES = LENGTH_BYTES + 5
/** Leaves room in a frame for the header, and for a batch that was measured a little too tightly. */
export const BODY_BYTES_MAX = 192 * 1024
/** An error is a sentence and some ids. */
export const ERROR_BYTES_MAX = 16 * 1024

/** Smallest and largest body of each kind. */
const BODY_BOUNDS: Readonly<Record<number, readonly [number, number]>> = {
  [FRAME.REQUEST]: [1, BODY_BYTES_MAX],
  [FRAME.RESPONSE]: [1, BODY_BYTES_MAX],
  [FRAME.ERROR]: [1, ERROR_BYTES_MAX],
  [FRAME.DATA]: [1, FRAME_BYTES_MAX - FRAME_HEADER_BYTES],
  [FRAME.CREDIT]: [4, 4],
  [FRAME.CANCEL]: [0, 0]
}

export function encodeFrameHeader (kind: FrameKind, id: number, bodyBytes: number): Uint8Array {
  const header = Buffer.allocUnsafe(FRAME_HEADER_BYTES)
  header.writeUInt32BE(FRAME_HEADER_BYTES - LENGTH_BYTES + bodyBytes, 0)
  header.writeUInt8(kind, LENGTH_BYTES)
  header.writeUInt32BE(id, LENGTH_BYTES + 1)
  return header
}

export interface FrameSink {
  /** A whole frame of any kind but DATA. The body may be a view of the network's buffer: it is not kept. */
  frame (kind: FrameKind, id: number, body: Uint8Array): void
  /** The next bytes of a DATA frame. */
  data (id: number, part: Uint8Array): void
}

export class FrameReader {
  readonly #sink: FrameSink
  readonly #header = Buffer.alloc(FRAME_HEADER_BYTES)
  #headerBytes = 0
  #kind: FrameKind = FRAME.DATA
  #id = 0
  #bodyBytesLeft = 0
  #parts: Uint8Array[] = []

  constructor (sink: FrameSink) {
    this.#sink = sink
  }

  /** Takes the next bytes of the stream. ERR_PROTOCOL (its own, or the sink's) leaves the reader unusable. */
  push (bytes: Uint8Array): void {
    let at = 0
    while (at < bytes.length) {
      if (this.#headerBytes < FRAME_HEADER_BYTES) {
        const taken = Math.min(FRAME_HEADER_BYTES - this.#headerBytes, bytes.length - at)
        this.#header.set(bytes.subarray(at, at + taken), this.#headerBytes)
        this.#headerBytes += taken
        at += taken
        if (this.#headerBytes === FRAME_HEADER_BYTES) this.#readHeader()
      } else {
        const taken = Math.min(this.#bodyBytesLeft, bytes.length - at)
        this.#bodyBytesLeft -= taken
        this.#readBody(bytes.subarray(at, at + taken))
        at += taken
      }
    }
  }

  #readHeader (): void {
    const bodyBytes = this.#header.readUInt32BE(0) - (FRAME_HEADER_BYTES - LENGTH_BYTES)
    const kind = this.#header.readUInt8(LENGTH_BYTES)
    const bounds = BODY_BOUNDS[kind]
    if (bounds === undefined || bodyBytes < bounds[0] || bodyBytes > bounds[1]) {
      throw new P2pvmError('ERR_PROTOCOL', `a frame of kind ${kind} with a body of ${bodyBytes} bytes`)
    }
    this.#kind = kind as FrameKind
    this.#id = this.#header.readUInt32BE(LENGTH_BYTES + 1)
    this.#bodyBytesLeft = bodyBytes
    if (bodyBytes === 0) this.#endFrame(new Uint8Array(0))
  }

  #readBody (part: Uint8Array): void {
    if (this.#kind === FRAME.DATA) {
      if (this.#bodyBytesLeft === 0) this.#headerBytes = 0
      this.#sink.data(this.#id, part)
    } else if (this.#bodyBytesLeft > 0) {
      this.#parts.push(part)
    } else {
      this.#endFrame(this.#parts.length === 0 ? part : Buffer.concat([...this.#parts, part]))
    }
  }

  #endFrame (body: Uint8Array): void {
    this.#headerBytes = 0
    this.#parts = []
    this.#sink.frame(this.#kind, this.#id, body)
  }
}
