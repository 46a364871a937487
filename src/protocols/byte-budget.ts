/**
 * A bound on bytes that many streams share: whoever wants to hold some asks, and is admitted in the order of asking as
 * soon as they fit. Nobody overtakes, so that a large payload is not starved by small ones.
 */
import { strict as assert } from 'node:assert'

export interface Admission {
  /** Gives the bytes back, or withdraws from the queue. May be called again. */
  release (): void
}

interface Waiting {
  readonly bytes: number
  readonly admitted: () => void
}

export class ByteBudget {
  readonly bytesMax: number
  readonly #queue = new Set<Waiting>() // in order of asking
  #bytesHeld = 0

  constructor (bytesMax: number) {
    this.bytesMax = bytesMax
  }

  get bytesHeld (): number {
    return this.#bytesHeld
  }

  /** Calls `admitted` once: at once, or when others have released enough. */
  ask (bytes: number, admitted: () => void): Admission {
    assert(bytes <= this.bytesMax, `${bytes} bytes do not fit a budget of ${this.bytesMax}`)
    const waiting = { bytes, admitted }
    this.#queue.add(waiting)
    this.#admitNext()
    let released = false
    return {
      release: () => {
        if (released) return
        released = true
        if (!this.#queue.delete(waiting)) this.#bytesHeld -= bytes
        this.#admitNext()
      }
    }
  }

  #admitNext (): void {
    for (const waiting of this.#queue) {
      if (this.#bytesHeld + waiting.bytes > this.bytesMax) return
      this.#queue.delete(waiting)
      this.#bytesHeld += waiting.bytes
      waiting.admitted()
    }
  }
}
