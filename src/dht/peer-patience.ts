/**
 * When to give a peer up. Not after a time that counts from the request: a peer that is busy has many others in front of it,
 * and giving those up sends them all again, elsewhere. But when nothing at all has come from it for a while: a process that
 * was stopped takes requests and never answers. State it owns: when each peer answered last.
 */
import { abortErrorOf, OVER } from '../protocols/abort.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { Clock } from '../protocols/seams.ts'
import type { PeerId } from '../protocols/transport.ts'

export class PeerPatience {
  readonly #clock: Clock
  readonly #answeredMs = new Map<PeerId, number>()

  constructor (clock: Clock) {
    this.#clock = clock
  }

  answered (peer: PeerId): void {
    this.#answeredMs.set(peer, this.#clock.monotonic())
  }

  /** Does `work`; its signal aborts with ERR_TIMEOUT when the peer has answered nobody for `silenceMs`, and with `signal`. */
  async during<T> (peer: PeerId, silenceMs: number, signal: AbortSignal | undefined, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const givenUp = new AbortController()
    const over = new AbortController()
    const follow = (): void => { givenUp.abort(abortErrorOf(signal as AbortSignal)) }
    signal?.addEventListener('abort', follow)
    if (signal?.aborted === true) follow()
    this.#silence(peer, silenceMs, over.signal).then(() => {
      givenUp.abort(new P2pvmError('ERR_TIMEOUT', `nothing has come from ${peer} for ${silenceMs} ms`, { peer }))
    }, () => {})
    try {
      return await work(givenUp.signal)
    } finally {
      over.abort(OVER)
      signal?.removeEventListener('abort', follow)
    }
  }

  /** Resolves when nothing has come for `silenceMs`, counted from now at the earliest. */
  async #silence (peer: PeerId, silenceMs: number, over: AbortSignal): Promise<void> {
    const startMs = this.#clock.monotonic()
    for (;;) {
      const leftMs = Math.max(startMs, this.#answeredMs.get(peer) ?? startMs) + silenceMs - this.#clock.monotonic()
      if (leftMs <= 0) return
      await this.#clock.sleep(leftMs, over)
    }
  }
}
