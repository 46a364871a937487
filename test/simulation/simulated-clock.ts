/**
 * Simulated time: nothing in it passes by itself. `Timeline` is the one queue of what is to happen, taken in order of time and
 * then of asking; between two of them all that the first set off runs until it waits again. That is a turn of the event loop,
 * because nothing here waits for the real world. `SimulatedClock` is what one process sees of it: a process that died hears of
 * no timer any more.
 */
import { P2pvmError } from '../../src/protocols/errors.ts'
import type { Clock, Deadline } from '../../src/protocols/seams.ts'
import { sleepOn } from '../harness/timers.ts'

interface Timer {
  readonly atMs: number
  readonly number: number
  /** undefined: cancelled, and left in the queue until its time comes. */
  run: (() => void) | undefined
}

const START_MS = Date.UTC(2025, 0, 1)

export class Timeline {
  /** A binary heap: no timer is before its parent at (index - 1) >> 1. */
  readonly #heap: Timer[] = []
  #count = 0
  #elapsedMs = 0

  get elapsedMs (): number {
    return this.#elapsedMs
  }

  after (ms: number, run: () => void): () => void {
    const timer: Timer = { atMs: this.#elapsedMs + ms, number: this.#count++, run }
    this.#push(timer)
    return () => { timer.run = undefined }
  }

  async sleep (ms: number): Promise<void> {
    await new Promise<void>((resolve) => { this.after(ms, resolve) })
  }

  /** Lets time pass until `work` ends, with its outcome. Throws when `msMax` have passed, or nothing is left that could happen. */
  async runUntilDone<T> (work: Promise<T>, msMax: number): Promise<T> {
    const endMs = this.#elapsedMs + msMax
    let over = false
    const end = (): void => { over = true }
    work.then(end, end)
    await turn()
    while (!over) {
      const next = this.#pop()
      if (next === undefined) throw new Error('everybody waits, and nothing is left that could happen')
      if (next.run === undefined) continue
      if (next.atMs > endMs) throw new Error(`not done after ${msMax / 60_000} simulated minutes`)
      this.#elapsedMs = next.atMs
      next.run()
      await turn()
    }
    return await work
  }

  #push (timer: Timer): void {
    const heap = this.#heap
    let index = heap.push(timer) - 1
    for (let parent; index > 0 && isBefore(timer, heap[parent = (index - 1) >> 1]!); index = parent) {
      heap[index] = heap[parent]!
      heap[parent] = timer
    }
  }

  #pop (): Timer | undefined {
    const heap = this.#heap
    const first = heap[0]
    const moved = heap.pop()
    if (first === undefined || moved === undefined || first === moved) return first
    let index = 0
    for (;;) {
      let child = 2 * index + 1
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child += 1
      if (child >= heap.length || isBefore(moved, heap[child]!)) break
      heap[index] = heap[child]!
      index = child
    }
    heap[index] = moved
    return first
  }
}

export class SimulatedClock implements Clock {
  readonly #timeline: Timeline
  readonly #isAlive: () => boolean

  constructor (timeline: Timeline, isAlive: () => boolean) {
    this.#timeline = timeline
    this.#isAlive = isAlive
  }

  now (): number {
    return START_MS + this.#timeline.elapsedMs
  }

  monotonic (): number {
    return this.#timeline.elapsedMs
  }

  async sleep (ms: number, signal?: AbortSignal): Promise<void> {
    await sleepOn((ms, run) => this.#after(ms, run), ms, signal)
  }

  deadline (ms: number, ...signals: Array<AbortSignal | undefined>): Deadline {
    const controller = new AbortController()
    const sources = signals.filter((signal) => signal !== undefined)
    const abort = (reason: unknown): void => {
      dispose()
      controller.abort(reason)
    }
    const follow = (event: Event): void => { abort((event.target as AbortSignal).reason) }
    const cancel = this.#after(ms, () => { abort(new P2pvmError('ERR_TIMEOUT', `nothing within ${ms} ms`)) })
    const dispose = (): void => {
      cancel()
      for (const source of sources) source.removeEventListener('abort', follow)
    }
    for (const source of sources) source.addEventListener('abort', follow)
    const aborted = sources.find((source) => source.aborted)
    if (aborted !== undefined) abort(aborted.reason)
    return { signal: controller.signal, [Symbol.dispose]: dispose }
  }

  #after (ms: number, run: () => void): () => void {
    return this.#timeline.after(ms, () => { if (this.#isAlive()) run() })
  }
}

function isBefore (one: Timer, other: Timer): boolean {
  return one.atMs < other.atMs || (one.atMs === other.atMs && one.number < other.number)
}

/** Until every promise that can settle has, and whoever waited for it has gone on. */
async function turn (): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve))
}
