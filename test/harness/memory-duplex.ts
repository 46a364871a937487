/**
 * Two ends of a byte stream in one process: bytes arrive later, in pieces of a given size, and a full pipe says so. A tap
 * sees, changes or holds back what crosses.
 */
import type { Duplex, DuplexEvents } from '../../src/protocols/channel.ts'

export interface PipeOptions {
  /** Bytes on the way in one direction before `send` answers false. */
  readonly bufferBytesMax?: number
  /** Sizes of the pieces in which bytes arrive. */
  readonly pieceBytes?: number
}

export class MemoryDuplex implements Duplex {
  #events: DuplexEvents | undefined
  #other: MemoryDuplex | undefined
  readonly #options: Required<PipeOptions>
  #queue: Uint8Array[] = []
  #queuedBytes = 0
  #full = false
  #running = false
  #closed = false
  #held = false
  resetReason: Error | undefined
  sentBytes = 0

  constructor (options: PipeOptions) {
    this.#options = { bufferBytesMax: 256 * 1024, pieceBytes: 64 * 1024, ...options }
  }

  static pair (options: PipeOptions = {}): [MemoryDuplex, MemoryDuplex] {
    const ends: [MemoryDuplex, MemoryDuplex] = [new MemoryDuplex(options), new MemoryDuplex(options)]
    ends[0].#other = ends[1]
    ends[1].#other = ends[0]
    return ends
  }

  open (events: DuplexEvents): void {
    this.#events = events
  }

  send (parts: Uint8Array[]): boolean {
    if (this.#closed) return false
    for (const part of parts) {
      this.sentBytes += part.length
      this.#queuedBytes += part.length
      for (let at = 0; at < part.length; at += this.#options.pieceBytes) {
        this.#queue.push(part.slice(at, at + this.#options.pieceBytes))
      }
    }
    this.#full = this.#queuedBytes >= this.#options.bufferBytesMax
    this.#run()
    return !this.#full
  }

  /** What was sent stays on the way until `release`. */
  hold (): void {
    this.#held = true
  }

  release (): void {
    this.#held = false
    this.#run()
  }

  close (): void {
    this.#end()
    if (this.#other !== undefined) this.#other.#end()
  }

  reset (error: Error): void {
    this.resetReason = error
    this.close()
  }

  #end (): void {
    if (this.#closed) return
    this.#closed = true
    this.#queue = []
    setImmediate(() => { this.#events?.closed() })
  }

  #run (): void {
    if (this.#running) return
    this.#running = true
    setImmediate(() => {
      this.#running = false
      if (this.#closed || this.#held) return
      const piece = this.#queue.shift()
      if (piece === undefined) return
      this.#queuedBytes -= piece.length
      if (this.#other !== undefined) this.#other.#events?.data([piece])
      if (this.#full && this.#queuedBytes < this.#options.bufferBytesMax / 2) {
        this.#full = false
        this.#events?.drained()
      }
      this.#run()
    })
  }
}
