/**
 * How long each peer takes to answer, and so how long to wait before a second one is asked. State it owns: per peer, a
 * smoothed answer time and its deviation (RFC 6298's estimator), and how often in a row a second peer was faster.
 */
import type { PeerId } from '../protocols/transport.ts'

/** Below this a garbage collection or a busy core looks like a slow peer, and every hedge sends a chunk twice. */
const HEDGE_MS_MIN = 50
/** A machine waits behind this: better a chunk sent twice. */
const HEDGE_MS_MAX = 2000
/** Before the first answer: a new connection's handshake and a disk that is cold. */
const HEDGE_MS_INITIAL = 500
/** RFC 6298: alpha 1/8, beta 1/4, K 4. */
const MEAN_GAIN = 1 / 8
const DEVIATION_GAIN = 1 / 4
const DEVIATIONS = 4
/** Once may be chance. A peer that has lost this many in a row without one answer hangs. */
export const OVERDUE_MAX = 3

interface Estimate {
  meanMs: number
  deviationMs: number
}

export class PeerLatency {
  readonly #estimates = new Map<PeerId, Estimate>()
  readonly #overdue = new Map<PeerId, number>()

  answered (peer: PeerId, ms: number): void {
    this.#overdue.delete(peer)
    const estimate = this.#estimates.get(peer)
    if (estimate === undefined) {
      this.#estimates.set(peer, { meanMs: ms, deviationMs: ms / 2 })
      return
    }
    estimate.deviationMs += DEVIATION_GAIN * (Math.abs(ms - estimate.meanMs) - estimate.deviationMs)
    estimate.meanMs += MEAN_GAIN * (ms - estimate.meanMs)
  }

  /** Another peer answered while this one was past its time. True when it must be taken for hung. */
  overdue (peer: PeerId): boolean {
    const times = (this.#overdue.get(peer) ?? 0) + 1
    this.#overdue.set(peer, times)
    if (times < OVERDUE_MAX) return false
    this.#overdue.delete(peer)
    return true
  }

  hedgeAfterMs (peer: PeerId): number {
    const estimate = this.#estimates.get(peer)
    if (estimate === undefined) return HEDGE_MS_INITIAL
    return Math.min(HEDGE_MS_MAX, Math.max(HEDGE_MS_MIN, estimate.meanMs + DEVIATIONS * estimate.deviationMs))
  }
}
