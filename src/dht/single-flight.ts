/**
 * Concurrent calls for one key share one piece of work. A caller that gives up leaves the others alone; when the last one
 * gives up, the work is aborted. State it owns: the work under way, by key.
 */
import { OVER, untilAborted } from '../protocols/abort.ts'

interface Flight<T> {
  readonly result: Promise<T>
  readonly abort: AbortController
  waiters: number
}

export class SingleFlight<T> {
  readonly #flights = new Map<string, Flight<T>>()

  async run (key: string, work: (signal: AbortSignal) => Promise<T>, signal?: AbortSignal): Promise<T> {
    let flight = this.#flights.get(key)
    if (flight === undefined) {
      const started = flight = this.#start(work)
      this.#flights.set(key, started)
      const land = (): void => { this.#land(key, started) }
      started.result.then(land, land)
    }
    flight.waiters += 1
    try {
      return await (signal === undefined ? flight.result : untilAborted(flight.result, signal))
    } finally {
      flight.waiters -= 1
      if (flight.waiters === 0 && this.#land(key, flight)) flight.abort.abort(OVER)
    }
  }

  #start (work: (signal: AbortSignal) => Promise<T>): Flight<T> {
    const abort = new AbortController()
    return { result: work(abort.signal), abort, waiters: 0 }
  }

  /** Out of the map: nobody may join what is over or being aborted. False when it was out already. */
  #land (key: string, flight: Flight<T>): boolean {
    return this.#flights.get(key) === flight && this.#flights.delete(key)
  }
}
