/**
 * What chunks and records have in common: who keeps a key and in which order to try them, how many replicas R and
 * acknowledgements W there are to be, what a failed request says about a peer, and the two ways through the candidates:
 * `place` (until R have it) and `seek` (until one has it).
 *
 * State it owns: peers to avoid for a while, and when each answered last. Not for: what is sent to a peer.
 */
import assert from 'node:assert/strict'
import { OVER, untilAborted } from '../protocols/abort.ts'
import { errorCodeOf, P2pvmError, type ErrorCode } from '../protocols/errors.ts'
import type { Clock, Log } from '../protocols/seams.ts'
import type { PeerId, RequestOptions } from '../protocols/transport.ts'
import { CLOSEST_COUNT, type Membership } from './membership.ts'
import type { PeerLatency } from './peer-latency.ts'
import { PeerPatience } from './peer-patience.ts'
import { placementOrder } from './placement.ts'

export interface ReplicationComponents {
  readonly membership: Membership
  readonly clock: Clock
  readonly log: Log
}

export interface ReplicationInit {
  /** R. */
  readonly replicas: number
  /** W of R must have it on disk before a put is acknowledged. */
  readonly acknowledgements: number
}

export const REPLICAS_DEFAULT = 3
export const ACKNOWLEDGEMENTS_DEFAULT = 2

/** Those who may keep a key, being tried one after the other. */
export interface Candidates {
  /** In placement order, whoever is up. The first `wanted` are the replicas. */
  readonly placement: readonly PeerId[]
  readonly wanted: number
  readonly acknowledgements: number
  /** False when a storage peer that may have the key is not among them: then nobody can say that it is missing. */
  readonly complete: boolean
  /** The next one to try: in placement order, those last that are not usable at this moment. undefined: all were tried. */
  take (): PeerId | undefined
  /** How many are left to take. */
  left (): number
}

export interface Failure {
  readonly peer: PeerId
  readonly error: unknown
}

/**
 * A peer that was stopped takes requests and never answers: after so long without any answer of it, what was asked of it goes
 * to the next. Long enough for 24 MiB in front of the first answer on a link of 10 MB/s and a disk that is busy.
 */
const SILENCE_MS_MAX = 5_000
/** For one answer of a peer that does answer others. */
const REQUEST_DEADLINE_MS = 30_000
/** How long a peer that sent bad bytes is tried last. Repair, and whoever runs it, need some time; it may be a bad memory module. */
const AVOID_LIAR_MS = 10 * 60 * 1000
/** How long a peer without room is tried last by puts: it answers, but only after the bytes were sent. */
const AVOID_FULL_MS = 30 * 1000

export class Replication {
  readonly #components: ReplicationComponents
  readonly #init: ReplicationInit
  readonly #liars = new Map<PeerId, number>()
  readonly #full = new Map<PeerId, number>()
  readonly #patience: PeerPatience
  #announced = ''

  constructor (components: ReplicationComponents, init: ReplicationInit) {
    assert(init.acknowledgements >= 1 && init.acknowledgements <= init.replicas, 'W is between 1 and R')
    this.#components = components
    this.#init = init
    this.#patience = new PeerPatience(components.clock)
  }

  get self (): PeerId {
    return this.#components.membership.self
  }

  async candidates (key: Uint8Array, purpose: 'put' | 'get', signal: AbortSignal): Promise<Candidates> {
    const { membership } = this.#components
    const closest = await membership.closest(key, { signal })
    const placement = placementOrder(key, closest)
    const storageCount = membership.storageCount()
    const untried = [...placement]
    return {
      placement,
      ...this.#counts(storageCount),
      complete: closest.length >= Math.min(CLOSEST_COUNT, storageCount),
      left: () => untried.length,
      take: () => {
        const best = untried.findIndex((peer) => this.#isPromising(peer, purpose))
        return untried.splice(Math.max(0, best), 1)[0]
      }
    }
  }

  /**
   * Runs one request to a peer and tells the membership what it taught us. Nothing, when it was we who gave up. ERR_TIMEOUT
   * when the peer has answered nobody for `silenceMs`.
   */
  async asking<T> (
    peer: PeerId, signal: AbortSignal | undefined, request: (options: RequestOptions) => Promise<T>, silenceMs = SILENCE_MS_MAX
  ): Promise<T> {
    const { membership, clock } = this.#components
    try {
      const answer = await this.#patience.during(peer, silenceMs, signal, async (patient) => await request({ deadlineMs: REQUEST_DEADLINE_MS, signal: patient }))
      this.#patience.answered(peer)
      membership.report(peer, 'answered')
      return answer
    } catch (error) {
      const failed = FAILED.has(errorCodeOf(error))
      if (signal?.aborted !== true) membership.report(peer, failed ? 'failed' : 'answered')
      if (!failed && error instanceof P2pvmError && error.code !== 'ERR_ABORTED') this.#patience.answered(peer)
      if (errorCodeOf(error) === 'ERR_DISK_FULL') this.#full.set(peer, clock.monotonic() + AVOID_FULL_MS)
      throw error
    }
  }

  /** It hangs: others were faster, again and again. */
  reportHung (peer: PeerId): void {
    this.#components.membership.report(peer, 'failed')
  }

  /** It sent what cannot be right. */
  reportLiar (peer: PeerId, what: string): void {
    if (peer === this.self) return
    this.#liars.set(peer, this.#components.clock.monotonic() + AVOID_LIAR_MS)
    this.#components.membership.report(peer, 'failed')
    this.#components.log.warn('a peer sent bytes that do not match; it is avoided from now on', { peer, what })
  }

  #isPromising (peer: PeerId, purpose: 'put' | 'get'): boolean {
    if (peer === this.self) return true
    return this.#components.membership.usable(peer) && !this.#isAvoided(this.#liars, peer) && !(purpose === 'put' && this.#isAvoided(this.#full, peer))
  }

  #isAvoided (until: Map<PeerId, number>, peer: PeerId): boolean {
    return (until.get(peer) ?? -Infinity) > this.#components.clock.monotonic()
  }

  #counts (storageCount: number): { wanted: number, acknowledgements: number } {
    const wanted = Math.max(1, Math.min(this.#init.replicas, storageCount))
    const acknowledgements = Math.min(this.#init.acknowledgements, wanted)
    const announcement = `${wanted} ${acknowledgements}`
    if (wanted < this.#init.replicas && announcement !== this.#announced) {
      this.#components.log.warn('the fabric has fewer storage peers than replicas are asked for: keeping fewer', {
        storagePeers: storageCount, replicas: wanted, replicasAskedFor: this.#init.replicas, acknowledgements
      })
    }
    this.#announced = announcement
    return { wanted, acknowledgements }
  }
}

/** Errors after which a peer is left alone for a moment; all others are answers. */
const FAILED: ReadonlySet<ErrorCode> = new Set(['ERR_UNAVAILABLE', 'ERR_TIMEOUT', 'ERR_PROTOCOL', 'ERR_INTERNAL'])

/** ERR_NOT_ALLOWED: the peer is a storage peer, and does not take this, whenever it is asked. */
export class Refusal extends P2pvmError {
  constructor (message: string, fields: Record<string, string | number>) {
    super('ERR_NOT_ALLOWED', message, fields)
  }
}

export interface Placing {
  /** Resolves when W have it. Rejects with the reason when that cannot be any more, and when it is given up before. */
  readonly acknowledged: Promise<void>
  /** Resolves when R have it, or there is nobody left to ask. */
  readonly settled: Promise<readonly PeerId[]>
  /** Nobody more is asked. */
  giveUp (error: P2pvmError): void
}

/**
 * Puts a key on `wanted` of the candidates, all at once; one that fails is replaced by the next in order. `store` throws
 * ERR_CONFLICT to end it all: write-once is not a matter of majorities.
 */
export function place (what: string, candidates: Candidates, store: (peer: PeerId) => Promise<void>): Placing {
  const { wanted, acknowledgements } = candidates
  const acknowledged = Promise.withResolvers<void>()
  const settled = Promise.withResolvers<readonly PeerId[]>()
  const stored: PeerId[] = []
  const failures: Failure[] = []
  let over = false
  let filling = wanted

  const giveUp = (error: unknown): void => {
    over = true
    acknowledged.reject(error)
  }
  const filled = (): void => {
    filling -= 1
    if (filling > 0) return
    if (stored.length < acknowledgements) acknowledged.reject(notPlaced(what, stored.length, acknowledgements, failures))
    settled.resolve(stored)
  }
  const fill = (): void => {
    const peer = over ? undefined : candidates.take()
    if (peer === undefined) return filled()
    store(peer).then(() => {
      stored.push(peer)
      if (stored.length === acknowledgements) acknowledged.resolve()
      filled()
    }, (error: unknown) => {
      failures.push({ peer, error })
      if (errorCodeOf(error) === 'ERR_CONFLICT') giveUp(error)
      fill()
    })
  }
  for (let at = 0; at < wanted; at++) fill()
  return { acknowledged: acknowledged.promise, settled: settled.promise, giveUp }
}

function notPlaced (what: string, stored: number, acknowledgements: number, failures: readonly Failure[]): P2pvmError {
  const all = (fits: (error: unknown) => boolean): boolean => failures.length > 0 && failures.every(({ error }) => fits(error))
  const code = all((error) => errorCodeOf(error) === 'ERR_DISK_FULL')
    ? 'ERR_DISK_FULL'
    : all((error) => error instanceof Refusal) ? 'ERR_NOT_ALLOWED' : 'ERR_UNAVAILABLE'
  const reasons = failures.length === 0 ? 'no other storage peer is known' : describe(failures)
  return new P2pvmError(code,
    `${what}: ${stored} of ${acknowledgements} needed replicas were stored (${reasons})`, { stored, needed: acknowledgements }, failures[0]?.error)
}

export interface SeekInit<T> {
  /** undefined: this peer has it not. ERR_CORRUPT: its copy is bad. */
  readonly ask: (peer: PeerId, signal: AbortSignal) => Promise<T | undefined>
  readonly latency: PeerLatency
  readonly clock: Clock
  /** A peer that was overtaken by a later one while past its time. */
  readonly onOvertaken: (peer: PeerId) => void
  readonly onHedge?: (peer: PeerId) => void
  readonly signal: AbortSignal
}

export interface Sought<T> {
  readonly value: T | undefined
  readonly failures: readonly Failure[]
}

/** One that answers late, one that is slow too, and one more: beyond that the trouble is ours. */
const ASKED_AT_ONCE_MAX = 3

/**
 * Asks the candidates in order until one has it. The next one is asked when the last says no or fails, or, while it is
 * still at it, when it is past the time that it usually takes: then the first good answer wins and the others are given up.
 */
export async function seek<T> (candidates: Pick<Candidates, 'take' | 'left'>, init: SeekInit<T>): Promise<Sought<T>> {
  const { clock, latency } = init
  const failures: Failure[] = []
  const asked = new Set<PeerId>()
  const late = new Set<PeerId>()
  const end = Promise.withResolvers<T | undefined>()
  const over = new AbortController()

  const askNext = (): void => {
    const peer = over.signal.aborted ? undefined : candidates.take()
    if (peer !== undefined) {
      asked.add(peer)
      void ask(peer)
    } else if (asked.size === 0) {
      end.resolve(undefined)
    }
  }

  const win = (value: T): void => {
    for (const peer of late) init.onOvertaken(peer)
    end.resolve(value)
    over.abort(OVER)
  }

  const ask = async (peer: PeerId): Promise<void> => {
    const done = new AbortController()
    clock.sleep(latency.hedgeAfterMs(peer), done.signal).then(() => {
      late.add(peer)
      if (asked.size >= ASKED_AT_ONCE_MAX || candidates.left() === 0) return
      init.onHedge?.(peer)
      askNext()
    }, () => {})
    try {
      const value = await init.ask(peer, over.signal)
      late.delete(peer)
      if (value !== undefined) win(value)
    } catch (error) {
      failures.push({ peer, error })
    } finally {
      done.abort(OVER)
      asked.delete(peer)
      late.delete(peer)
      askNext()
    }
  }

  askNext()
  try {
    const value = await untilAborted(end.promise, init.signal)
    return { value, failures: [...failures] }
  } catch (error) {
    // The deadline of the whole says no more than that these did not answer. Only the caller's giving up ends otherwise.
    if (errorCodeOf(error) !== 'ERR_TIMEOUT') throw error
    return { value: undefined, failures: [...failures, ...[...asked].map((peer) => ({ peer, error }))] }
  } finally {
    over.abort(OVER)
  }
}

/** What it means that nobody had it: missing, corrupt, or unknown because somebody did not answer. */
export function verdict (failures: readonly Failure[], complete: boolean): 'missing' | 'corrupt' | 'unavailable' {
  if (!complete || failures.some(({ error }) => errorCodeOf(error) !== 'ERR_CORRUPT')) return 'unavailable'
  return failures.length > 0 ? 'corrupt' : 'missing'
}

export function describe (failures: readonly Failure[]): string {
  return failures.map(({ peer, error }) => `${peer}: ${error instanceof Error ? error.message : String(error)}`).join('; ')
}
