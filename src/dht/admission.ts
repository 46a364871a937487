/**
 * How many bytes of chunks this process holds on their way, in either direction: whoever moves a chunk asks here first.
 * A read that a machine waits for goes before commit, commit before prefetch, and each kind leaves room for the ones above
 * it: a full house of uploads to a hung peer must not keep a machine from reading. State it owns: bytes held, and the queues.
 */
import { abortErrorOf, throwIfAborted } from '../protocols/abort.ts'
import type { Priority } from './chunks.ts'

const MIB = 1024 * 1024
/**
 * Up to which total each kind is admitted. 16 MiB keeps three replicas busy over a 256 KiB chunk's round trip and its
 * fdatasync; what the kinds above may add bounds the memory at 24 MiB. One item is always admitted, however large.
 */
const BYTES_MAX: Readonly<Record<Priority, number>> = { demand: 24 * MIB, commit: 16 * MIB, prefetch: 8 * MIB }
const PRIORITIES: readonly Priority[] = ['demand', 'commit', 'prefetch']

interface Waiting {
  readonly bytes: number
  readonly admit: () => void
}

export class Admission {
  readonly #bytesMax: Readonly<Record<Priority, number>>
  readonly #queues: Readonly<Record<Priority, Set<Waiting>>> = { demand: new Set(), commit: new Set(), prefetch: new Set() }
  #bytesHeld = 0

  constructor (bytesMax: Readonly<Record<Priority, number>> = BYTES_MAX) {
    this.#bytesMax = bytesMax
  }

  get bytesHeld (): number {
    return this.#bytesHeld
  }

  /** Waits for its turn. The caller calls what this resolves to, once, when the bytes are gone. */
  async acquire (bytes: number, priority: Priority, signal?: AbortSignal): Promise<() => void> {
    throwIfAborted(signal)
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const waiting = { bytes, admit: resolve }
    const onAbort = (): void => {
      // Too late when it was admitted in this very turn: then the promise has resolved and this rejects nothing.
      if (this.#queues[priority].delete(waiting)) reject(abortErrorOf(signal as AbortSignal))
    }
    this.#queues[priority].add(waiting)
    signal?.addEventListener('abort', onAbort, { once: true })
    this.#admitNext()
    try {
      await promise
    } finally {
      signal?.removeEventListener('abort', onAbort)
      this.#admitNext()
    }
    return () => {
      this.#bytesHeld -= bytes
      this.#admitNext()
    }
  }

  #admitNext (): void {
    for (const priority of PRIORITIES) {
      for (const waiting of this.#queues[priority]) {
        // Nobody overtakes within a kind or from below: a large chunk is not starved by small ones.
        if (this.#bytesHeld > 0 && this.#bytesHeld + waiting.bytes > this.#bytesMax[priority]) return
        this.#queues[priority].delete(waiting)
        this.#bytesHeld += waiting.bytes
        waiting.admit()
      }
    }
  }
}
