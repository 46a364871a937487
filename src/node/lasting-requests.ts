/**
 * Requests that outlast whoever asked: work under an id, which goes on for a while when its client is gone, and which is joined by
 * whoever asks again under that id, or told the outcome. For a FUSE server that is killed in the middle of a commit, and the next.
 *
 * State it owns: what is under way, and the last outcomes. Not across a restart: a commit's is in its working copy's folder.
 */
import { untilAborted } from '../protocols/abort.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { Clock } from '../protocols/seams.ts'

/** A FUSE server follows a killed one within seconds, also on a busy machine. */
const UNWATCHED_MS_MAX = 15_000
/** Asked for again within seconds, by each mount some at most. */
const OUTCOMES_MAX = 256

interface LastingRequest {
  readonly outcome: Promise<unknown>
  readonly ending: AbortController
  watchers: number
}

export class LastingRequests {
  readonly #clock: Clock
  readonly #underWay = new Map<string, LastingRequest>()
  readonly #outcomes = new Map<string, Promise<unknown>>()

  constructor (clock: Clock) {
    this.#clock = clock
  }

  /** Without an id it is done for this caller only. The same id means the same work. */
  async run<T> (id: string | undefined, signal: AbortSignal, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    if (id === undefined) return await work(signal)
    const known = this.#outcomes.get(id)
    if (known !== undefined) return await (known as Promise<T>)
    const request = this.#underWay.get(id) ?? this.#begin(id, work)
    request.watchers++
    try {
      return await untilAborted(request.outcome as Promise<T>, signal)
    } finally {
      request.watchers--
      if (signal.aborted) void this.#endUnwatched(request)
    }
  }

  #begin (id: string, work: (signal: AbortSignal) => Promise<unknown>): LastingRequest {
    const ending = new AbortController()
    const request = { outcome: work(ending.signal), ending, watchers: 0 }
    this.#underWay.set(id, request)
    const over = (): void => {
      this.#underWay.delete(id)
      this.#outcomes.set(id, request.outcome)
      if (this.#outcomes.size > OUTCOMES_MAX) this.#outcomes.delete(this.#outcomes.keys().next().value ?? '')
    }
    request.outcome.then(over, over)
    return request
  }

  async #endUnwatched (request: LastingRequest): Promise<void> {
    await this.#clock.sleep(UNWATCHED_MS_MAX)
    if (request.watchers === 0) request.ending.abort(new P2pvmError('ERR_ABORTED', 'nobody waits for it any more'))
  }
}
