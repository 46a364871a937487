/**
 * The epoch that workers pass, and what it promises. The main thread publishes a change (a new view of a file, a slot set
 * to unknown), starts an epoch, and may close what the old state named as soon as every worker is idle or has passed.
 *
 * Why it is right (Dekker's argument; all operations below are sequentially consistent):
 *   worker, at a request:  seen := epoch; check that epoch is still that, else again; then read shared state, work, seen := IDLE
 *   main, at a change:     change shared state, post messages; epoch := epoch + 1; look at seen
 * Either the worker's store of `seen` comes before main's look, and main waits for a worker that may use the old state; or
 * it comes after, and then the worker's check comes after main's store of `epoch` and finds the new one, so that it drains
 * its messages before it works. A worker can never work with the old state unseen.
 *
 * The wait ends with a message and not with Atomics.wait: the main thread goes on serving. `waiting` tells workers that a
 * message is wanted: main sets it before it looks, a worker clears `seen` before it looks, so one of them sees the other.
 */

const EPOCH = 0
const WAITING = 1
const SEEN = 2
const IDLE = 0

export function makeEpochBuffer (workers: number): SharedArrayBuffer {
  const buffer = new SharedArrayBuffer((SEEN + workers) * Int32Array.BYTES_PER_ELEMENT)
  new Int32Array(buffer)[EPOCH] = 1 // 0 is IDLE
  return buffer
}

/** A worker's end. */
export class EpochPassenger {
  readonly #cells: Int32Array
  readonly #seen: number
  #last = 1

  constructor (buffer: SharedArrayBuffer, worker: number) {
    this.#cells = new Int32Array(buffer)
    this.#seen = SEEN + worker
  }

  /** Called with a request in hand, before any shared state is read. True: messages are waiting to be drained. */
  enter (): boolean {
    let epoch
    do {
      epoch = Atomics.load(this.#cells, EPOCH)
      Atomics.store(this.#cells, this.#seen, epoch)
    } while (Atomics.load(this.#cells, EPOCH) !== epoch)
    const changed = epoch !== this.#last
    this.#last = epoch
    return changed
  }

  /** The request is done. True: the main thread waits to hear of it. */
  leave (): boolean {
    Atomics.store(this.#cells, this.#seen, IDLE)
    return Atomics.load(this.#cells, WAITING) !== 0
  }
}

/** The main thread's end. */
export class EpochClock {
  readonly #cells: Int32Array
  readonly #workers: number
  #waiters: Array<{ epoch: number, resolve: () => void }> = []

  constructor (buffer: SharedArrayBuffer, workers: number) {
    this.#cells = new Int32Array(buffer)
    this.#workers = workers
  }

  /** Starts an epoch; resolves when no worker can be using what was published before. */
  async quiesce (): Promise<void> {
    const epoch = Atomics.add(this.#cells, EPOCH, 1) + 1
    Atomics.store(this.#cells, WAITING, 1)
    if (this.#passed(epoch)) {
      this.#clearWaiting()
      return
    }
    await new Promise<void>((resolve) => { this.#waiters.push({ epoch, resolve }) })
  }

  /** A worker has said that it left. */
  onPassed (): void {
    const waiters = this.#waiters
    this.#waiters = []
    for (const waiter of waiters) {
      if (this.#passed(waiter.epoch)) waiter.resolve()
      else this.#waiters.push(waiter)
    }
    this.#clearWaiting()
  }

  #passed (epoch: number): boolean {
    for (let worker = 0; worker < this.#workers; worker++) {
      const seen = Atomics.load(this.#cells, SEEN + worker)
      if (seen !== IDLE && seen < epoch) return false
    }
    return true
  }

  #clearWaiting (): void {
    if (this.#waiters.length === 0) Atomics.store(this.#cells, WAITING, 0)
  }
}
