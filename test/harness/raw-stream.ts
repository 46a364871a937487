/** A libp2p stream on which a test says what it likes, byte by byte, and how the other side took it. */
import type { Connection, Stream } from '@libp2p/interface'

/** `reset`: the other side ended it at once. `closed`: in good order, after we had ended our half. */
export type StreamEnd = 'reset' | 'closed'

export class RawStream {
  readonly #stream: Stream
  readonly #ended = Promise.withResolvers<StreamEnd>()
  readonly #received: Uint8Array[] = []

  static async open (connection: Connection, protocol: string, deadlineMs: number): Promise<RawStream> {
    return new RawStream(await connection.newStream(protocol, { signal: AbortSignal.timeout(deadlineMs) }))
  }

  private constructor (stream: Stream) {
    this.#stream = stream
    stream.addEventListener('message', ({ data }) => { this.#received.push(data.subarray()) })
    stream.addEventListener('close', ({ error }) => { this.#ended.resolve(error === undefined ? 'closed' : 'reset') })
  }

  get received (): Buffer {
    return Buffer.concat(this.#received)
  }

  /** In pieces, as a network may cut them. Nothing more is sent once the other side has ended it. */
  send (...pieces: Uint8Array[]): void {
    for (const piece of pieces) {
      if (this.#stream.status !== 'open') return
      this.#stream.send(piece)
    }
  }

  /** Ends our half, unless the stream is over already, and waits for the other's. */
  async finish (deadlineMs: number): Promise<StreamEnd> {
    if (this.#stream.status === 'open') void this.#stream.close({ signal: AbortSignal.timeout(deadlineMs) }).catch(() => {})
    return await this.ended(deadlineMs)
  }

  abandon (): void {
    this.#stream.abort(new Error('the test has seen enough'))
  }

  async ended (deadlineMs: number): Promise<StreamEnd> {
    const deadline = AbortSignal.timeout(deadlineMs)
    const late = new Promise<never>((_, reject) => {
      deadline.addEventListener('abort', () => { reject(new Error(`the stream has not ended within ${deadlineMs} ms`)) })
    })
    try {
      return await Promise.race([this.#ended.promise, late])
    } finally {
      this.abandon()
    }
  }
}
