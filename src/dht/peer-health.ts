/**
 * What requests have taught us about peers: one that failed is left alone for some seconds, longer each time, until it
 * answers or is heard of again. Local knowledge only; that a peer is *down* is for the membership to say.
 */
import type { Clock } from '../protocols/seams.ts'
import type { PeerId } from '../protocols/transport.ts'

/** A restart takes about so long; the wait doubles up to DOWN_AFTER_MS, when the membership knows better. */
const PAUSE_MS_MIN = 2_000
const PAUSE_MS_MAX = 16_000

interface Failing {
  readonly untilMs: number
  readonly pauseMs: number
}

export class PeerHealth {
  readonly #clock: Clock
  readonly #failing = new Map<PeerId, Failing>()

  constructor (clock: Clock) {
    this.#clock = clock
  }

  report (peer: PeerId, outcome: 'answered' | 'failed'): void {
    if (outcome === 'answered') {
      this.#failing.delete(peer)
      return
    }
    const nowMs = this.#clock.monotonic()
    const before = this.#failing.get(peer)
    // Many requests fail together when a peer goes: that is one failure.
    if (before !== undefined && before.untilMs > nowMs) return
    const pauseMs = before === undefined ? PAUSE_MS_MIN : Math.min(2 * before.pauseMs, PAUSE_MS_MAX)
    this.#failing.set(peer, { untilMs: nowMs + pauseMs, pauseMs })
  }

  isFailing (peer: PeerId): boolean {
    return (this.#failing.get(peer)?.untilMs ?? -Infinity) > this.#clock.monotonic()
  }
}
