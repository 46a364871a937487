/**
 * Asking the version manager, wherever it is. A restart of it shows as a pause: every request may be repeated, and is, with the same
 * request id, until the deadline. State it owns: none.
 */
import { untilAborted, withDeadline } from '../protocols/abort.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { Clock, Random } from '../protocols/seams.ts'
import type { PeerId, Transport } from '../protocols/transport.ts'
import {
  type AnyVersionRequest, askVersions, type VersionAnswer, type VersionOperation, type VersionRequest, type VersionService, WAIT_MS_MAX
} from '../protocols/version-protocol.ts'
import type { VersionId } from './blobs.ts'
import { decodeHeader, type Header } from './publication-codec.ts'
import { type RetryOptions, untilAvailable } from '../protocols/retry.ts'

export interface VersionClientComponents {
  readonly transport: Pick<Transport, 'self' | 'request'>
  readonly clock: Clock
  readonly random: Random
  /** The version manager's peer. ERR_UNAVAILABLE while it is not known. */
  readonly locate: (signal: AbortSignal) => Promise<PeerId>
  /** The version manager itself, in the process that runs it: nobody can dial himself. */
  readonly local?: VersionService | undefined
}

export interface VersionClientInit {
  readonly deadlineMs?: number
}

/** A version manager that is killed and is back within 10 s fails no operation. */
const DEADLINE_MS_DEFAULT = 20_000
/** One attempt. A manager that has stopped without closing its connections costs no more than this; one that is slow is joined again. */
const ATTEMPT_MS = 5_000
/** For the writers in front of a version to finish. */
const PUBLISH_WAIT_MS = 60_000

type Options = { readonly signal?: AbortSignal | undefined }

export class VersionClient {
  readonly #components: VersionClientComponents
  readonly #deadlineMs: number

  constructor (components: VersionClientComponents, { deadlineMs = DEADLINE_MS_DEFAULT }: VersionClientInit = {}) {
    this.#components = components
    this.#deadlineMs = deadlineMs
  }

  /** ERR_UNAVAILABLE when no version manager answers within the deadline, else its own errors. */
  async ask<Op extends VersionOperation> (request: VersionRequest<Op> & { op: Op }, { signal }: Options = {}): Promise<VersionAnswer<Op>> {
    return await this.#retry(async (signal) => await this.#askOnce<Op>(request, ATTEMPT_MS, signal), { deadlineMs: this.#deadlineMs, signal })
  }

  /** Woken, not polled. ERR_TIMEOUT when those in front of it do not finish in time, ERR_NOT_FOUND when it was never assigned. */
  async waitPublished ({ blob, version }: VersionId, { signal }: Options = {}): Promise<Header> {
    const { clock } = this.#components
    const endMs = clock.monotonic() + PUBLISH_WAIT_MS
    for (let leftMs = PUBLISH_WAIT_MS; leftMs > 0; leftMs = endMs - clock.monotonic()) {
      const waitMs = Math.ceil(Math.min(leftMs, WAIT_MS_MAX))
      const { published } = await this.#retry(
        async (signal) => await this.#askOnce({ op: 'wait', blob, version, waitMs }, waitMs + ATTEMPT_MS, signal),
        { deadlineMs: waitMs + this.#deadlineMs, signal })
      if (published !== null) return decodeHeader(published)
    }
    throw new P2pvmError('ERR_TIMEOUT',
      `version ${version} of ${blob} is not published yet: it, or one before it, is still being written`, { blob, version })
  }

  async #retry<T> (attempt: (signal: AbortSignal) => Promise<T>, options: RetryOptions): Promise<T> {
    try {
      return await untilAvailable(attempt, options, this.#components)
    } catch (error) {
      if (!(error instanceof P2pvmError) || error.code !== 'ERR_UNAVAILABLE') throw error
      // A peer id alone tells nobody what it was needed for. It may also be what the version manager says of storage peers.
      throw new P2pvmError(error.code, `asking the version manager: ${error.message}`, error.fields, error)
    }
  }

  async #askOnce<Op extends VersionOperation> (
    request: VersionRequest<Op> & { op: Op }, deadlineMs: number, signal: AbortSignal
  ): Promise<VersionAnswer<Op>> {
    const { transport, clock, locate, local } = this.#components
    const peer = await locate(signal)
    if (peer !== transport.self || local === undefined) return await askVersions<Op>(transport, peer, request, { deadlineMs, signal })
    const serve = local[request.op] as (request: AnyVersionRequest, context: { peer: PeerId, signal: AbortSignal }) => Promise<VersionAnswer<Op>>
    return await withDeadline(clock, deadlineMs, [signal], async (signal) =>
      await untilAborted(serve.call(local, request as AnyVersionRequest, { peer, signal }), signal))
  }
}
