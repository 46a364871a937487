/**
 * The network, as domain code sees it: requests with one structured body and one optional payload of bytes each way.
 * `libp2p-transport.ts` is the production implementation (persistent streams, frames, credit); `test/simulation/` has another.
 */

/** A libp2p peer id in its printable form. */
export type PeerId = string

/** A request or an answer. `body` is anything CBOR can hold; it arrives unvalidated and each protocol file decodes it. */
export interface Message {
  readonly body: unknown
  /** Moved in frames of at most FRAME_BYTES_MAX under a credit window; at most PAYLOAD_BYTES_MAX. */
  readonly payload?: Uint8Array
}

export interface RequestContext {
  /** The authenticated sender. */
  readonly peer: PeerId
  /** Aborts when the requester gave up or the connection is gone. */
  readonly signal: AbortSignal
}

/**
 * Answers one request. Throwing a P2pvmError sends its code, message and fields to the requester, where the same error
 * is thrown; ERR_PROTOCOL also resets the stream (hostile input). Anything else becomes ERR_INTERNAL.
 */
export type RequestHandler = (request: Message, context: RequestContext) => Promise<Message>

export interface RequestOptions {
  /** Every wait has a deadline: ERR_TIMEOUT when the answer is not there in time. */
  readonly deadlineMs: number
  readonly signal?: AbortSignal | undefined
}

export interface Transport {
  readonly self: PeerId
  /** `name` is short, e.g. 'chunk/1'; the wire id is `/p2pvm/<fabric>/<name>`. One handler per name. */
  handle (name: string, handler: RequestHandler): void
  /** ERR_UNAVAILABLE: cannot be reached or went away. ERR_TIMEOUT: the deadline passed. Else the handler's own error. */
  request (peer: PeerId, name: string, request: Message, options: RequestOptions): Promise<Message>
  /** Teaches where a peer listens (multiaddrs). Replaces nothing that is known already. */
  learnAddresses (peer: PeerId, addresses: readonly string[]): Promise<void>
}

/** Frames are this size at most, payload and header together, so that no request holds a stream for long. */
export const FRAME_BYTES_MAX = 256 * 1024
/** The largest chunk, see cid.ts. */
export const PAYLOAD_BYTES_MAX = 4 * 1024 * 1024
