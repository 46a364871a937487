/**
 * At most so many at once, the others in order of arrival; a bounded queue. Not for bytes in flight: see `byte-budget.ts`.
 */
import assert from 'node:assert/strict'
import { P2pvmError } from '../protocols/errors.ts'

export interface SemaphoreInit {
  readonly permits: number
  /** More than this many waiting is refused with ERR_UNAVAILABLE: the work behind it would come too late anyway. */
  readonly queueMax?: number
}

export class Semaphore {
  readonly #queue = new Set<() => void>()
  readonly #queueMax: number
  #free: number

  constructor ({ permits, queueMax = Infinity }: SemaphoreInit) {
    assert(permits > 0)
    this.#free = permits
    this.#queueMax = queueMax
  }

  async run<T> (work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    await this.#acquire(signal)
    try {
      return await work()
    } finally {
      this.#release()
    }
  }

  async #acquire (signal: AbortSignal | undefined): Promise<void> {
    signal?.throwIfAborted()
    if (this.#free > 0) {
      this.#free -= 1
      return
    }
    if (this.#queue.size >= this.#queueMax) throw new P2pvmError('ERR_UNAVAILABLE', 'too many requests are waiting for this peer\'s disk')
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const abort = (): void => {
      this.#queue.delete(resolve)
      reject(signal?.reason)
    }
    this.#queue.add(resolve)
    signal?.addEventListener('abort', abort, { once: true })
    try {
      await promise
    } finally {
      signal?.removeEventListener('abort', abort)
    }
  }

  #release (): void {
    const [next] = this.#queue
    if (next === undefined) {
      this.#free += 1
      return
    }
    // The permit goes straight to the next one: nobody who comes between may take it.
    this.#queue.delete(next)
    next()
  }
}

/** `Promise.all` over at most `atOnce` at a time, results in order. After a failure no further item is begun. */
export async function mapAtMost<T, R> (atOnce: number, items: readonly T[], work: (item: T, index: number) => Promise<R>): Promise<R[]> {
  const results = new Array<R>(items.length)
  let next = 0
  const lane = async (): Promise<void> => {
    for (let index; (index = next++) < items.length;) {
      try {
        results[index] = await work(items[index] as T, index)
      } catch (error) {
        next = items.length
        throw error
      }
    }
  }
  await Promise.all(Array.from({ length: Math.min(atOnce, items.length) }, lane))
  return results
}
