/**
 * COMMIT and CLONE of a working copy, the daemon's half (the talk, "Putting everything together (2)"). The mount cuts
 * (`Sealable`), this uploads what changed from the sealed overlay while the machine writes on, and publishes one version.
 *
 * State it owns: `<working>/<name>/commit.json`, the publication that was asked for and not yet confirmed. It is on disk
 * before the version manager is asked, and is finished first when the next commit comes, so that a crash on either side
 * publishes a commit once or not at all. Not for: the cut itself (`seal.ts`), the tree (`versioning/`).
 */
import type { ChunkStore } from '../dht/chunk-store.ts'
import type { Chunks } from '../dht/chunks.ts'
import { withDeadline } from '../protocols/abort.ts'
import { type ChunkId, chunkIdOf, isZero } from '../protocols/cid.ts'
import { errorCodeOf, P2pvmError } from '../protocols/errors.ts'
import type { Clock, Random } from '../protocols/seams.ts'
import type { Blobs, PublishRequest, Target, Version, VersionId } from '../versioning/blobs.ts'
import { checkImageName } from '../versioning/image-name.ts'
import { clearCommitIntent, readCommitIntent, writeCommitIntent } from './commit-intent.ts'
import { openSealedOverlay, type SealedOverlay } from './sealed-overlay.ts'
import type { Sealable, Sealed } from './sealable.ts'

export interface CommitComponents {
  readonly blobs: Blobs
  readonly chunks: Chunks
  readonly cache: ChunkStore
  readonly clock: Clock
  readonly random: Random
}

export interface CommitInit {
  /** `<working>/<name>`, where the intent is kept. */
  readonly folder: string
  readonly sealable: Sealable
  readonly as?: string | undefined
  readonly message?: string | undefined
  readonly signal?: AbortSignal | undefined
}

export interface Committed {
  readonly version: Version
  readonly chunks: number // that changed
  readonly bytes: number // uploaded or already there, before replication
  readonly freezeMs: number
}

/** Chunks read, merged and uploaded at once: 8 × 4 MiB at most in memory. */
const UPLOADS_AT_ONCE = 8
/** Who is taken for dead so often will not get through. */
const PUBLISH_ATTEMPTS_MAX = 3
/** Folding back copies at most the sealed pages, on local disk; longer than this means that the mount is gone. */
const FOLD_DEADLINE_MS = 120_000

export class Committer {
  readonly #components: CommitComponents
  readonly #running = new Set<string>()

  constructor (components: CommitComponents) {
    this.#components = components
  }

  /**
   * One new version of the working copy's blob, or with `as` of a new blob of that name. ERR_CONFLICT when the blob has
   * moved on, the name is taken, or a commit of this working copy is under way; then nothing is lost and it can be tried again.
   */
  async commit (init: CommitInit): Promise<Committed> {
    if (init.as !== undefined) checkImageName(init.as)
    return await this.#alone(init.folder, async () => {
      await this.#finishEarlier(init)
      const sealed = await init.sealable.seal(signalOf(init))
      const committed = await this.#publishSealed(sealed, init)
      await withDeadline(this.#components.clock, FOLD_DEADLINE_MS, [], async (signal) => { await init.sealable.rebase(committed.version, signal) })
      await clearCommitIntent(init.folder)
      return committed
    })
  }

  async #publishSealed (sealed: Sealed, init: CommitInit): Promise<Committed> {
    const { clock } = this.#components
    try {
      const { changed, uploadedBytes, dirtyBytes } = await this.#upload(sealed, init)
      const version = await this.#publishAnew({
        target: targetOf(sealed, init),
        chunks: changed,
        size: sealed.size,
        bytesChanged: dirtyBytes,
        message: init.message ?? ''
      }, init)
      return { version, chunks: changed.size, bytes: uploadedBytes, freezeMs: sealed.freezeMs }
    } catch (error) {
      // Not under the caller's signal: also a commit that was given up must fold back what it sealed.
      await withDeadline(clock, FOLD_DEADLINE_MS, [], async (signal) => { await init.sealable.unseal(signal) })
      throw error
    }
  }

  /** A new blob that shares everything; the working copy belongs to it from now on, overlay and path unchanged. */
  async clone (base: () => Promise<VersionId>, init: Omit<CommitInit, 'as' | 'message'> & { name?: string | undefined }): Promise<Version> {
    if (init.name !== undefined) checkImageName(init.name)
    return await this.#alone(init.folder, async () => {
      await this.#finishEarlier(init)
      const { blob, version: number } = await base() // after an earlier commit has been finished, which may change it
      const version = await this.#components.blobs.clone({ blob, version: number }, init.name === undefined ? {} : { name: init.name }, { signal: init.signal })
      await init.sealable.reassign(version, signalOf(init))
      return version
    })
  }

  /**
   * Throws away what was written since the version that the working copy lies on. Of a commit whose end nobody saw that is the
   * version that it made, if it did: finished later, it would bring back what has been thrown away. ERR_CONFLICT while the file
   * is open, or a commit is under way.
   */
  async revert (init: Pick<CommitInit, 'folder' | 'sealable' | 'signal'>): Promise<void> {
    await this.#alone(init.folder, async () => {
      const request = await readCommitIntent(init.folder)
      if (request !== undefined) {
        const outcome = await this.#components.blobs.outcome(request.requestId, { signal: init.signal })
        if (outcome !== undefined && outcome !== 'aborted') await init.sealable.reassign(outcome, signalOf(init))
        await clearCommitIntent(init.folder)
      }
      await init.sealable.revert(signalOf(init))
    })
  }

  async #alone<T> (folder: string, work: () => Promise<T>): Promise<T> {
    if (this.#running.has(folder)) throw new P2pvmError('ERR_CONFLICT', 'a commit or clone of this working copy is under way')
    this.#running.add(folder)
    try {
      return await work()
    } finally {
      this.#running.delete(folder)
    }
  }

  /**
   * A commit whose end nobody saw: the same request again has the same outcome. Its pages are still in the overlay (they
   * were folded back), so basing the working copy on the published version changes no byte of it.
   */
  async #finishEarlier (init: Pick<CommitInit, 'folder' | 'sealable' | 'signal'>): Promise<void> {
    const request = await readCommitIntent(init.folder)
    if (request === undefined) return
    try {
      const version = await this.#publish(request, init)
      await init.sealable.reassign(version, signalOf(init))
    } catch (error) {
      if (!isRefusal(error)) throw error
      await clearCommitIntent(init.folder)
      return
    }
    await clearCommitIntent(init.folder)
  }

  /**
   * With a request id of its own. The version manager may take us for dead (this machine slept, or could not reach it for long): then it
   * has aborted the version, which changed nothing, and the same is asked for again as a new request.
   */
  async #publishAnew (what: Omit<PublishRequest, 'requestId'>, init: CommitInit): Promise<Version> {
    for (let attempt = 1; ; attempt += 1) {
      const request = { ...what, requestId: Buffer.from(this.#components.random.bytes(16)).toString('hex') }
      await writeCommitIntent(init.folder, request)
      try {
        return await this.#publish(request, init)
      } catch (error) {
        if (attempt === PUBLISH_ATTEMPTS_MAX || !await this.#wasAborted(request, error, init)) throw error
      }
    }
  }

  /** A conflict may also be that the blob has moved on. */
  async #wasAborted ({ requestId }: PublishRequest, error: unknown, { signal }: CommitInit): Promise<boolean> {
    if (errorCodeOf(error) !== 'ERR_CONFLICT') return false
    return await this.#components.blobs.outcome(requestId, { signal }) === 'aborted'
  }

  async #publish (request: PublishRequest, init: Pick<CommitInit, 'folder' | 'signal'>): Promise<Version> {
    try {
      return await this.#components.blobs.publish(request, { signal: init.signal })
    } catch (error) {
      // Refused for good: there is nothing to finish later.
      if (isRefusal(error)) await clearCommitIntent(init.folder)
      throw error
    }
  }

  async #upload (sealed: Sealed, init: CommitInit): Promise<{ changed: Map<number, ChunkId | null>, uploadedBytes: number, dirtyBytes: number }> {
    const { blobs } = this.#components
    const base = await blobs.version(sealed.base, { signal: init.signal })
    const overlay = await openSealedOverlay(sealed.overlay, { chunkSize: base.chunkSize, size: sealed.size })
    const changed = new Map<number, ChunkId | null>()
    let uploadedBytes = 0
    try {
      const indices = overlay.dirtyChunks()[Symbol.iterator]()
      const uploadNext = async (): Promise<void> => {
        for (let next = indices.next(); next.done !== true; next = indices.next()) {
          init.signal?.throwIfAborted()
          const baseId = (await blobs.chunkIds(base, next.value, 1, { signal: init.signal }))[0] ?? null
          const bytes = await this.#chunkBytes(overlay, next.value, baseId, init)
          const id = isZero(bytes) ? null : chunkIdOf(bytes)
          if (id === baseId) continue // written, and the same as before
          changed.set(next.value, id)
          if (id === null) continue
          await this.#components.chunks.put(id, bytes, { signal: init.signal, priority: 'commit' })
          // The next read of it is then local, also with the storage peers gone.
          await this.#components.cache.put(id, bytes)
          uploadedBytes += bytes.length
        }
      }
      await settleAll(Array.from({ length: UPLOADS_AT_ONCE }, uploadNext))
      return { changed, uploadedBytes, dirtyBytes: overlay.dirtyBytes() }
    } finally {
      await overlay.close()
    }
  }

  /** A chunk of the new version. Only one that is partly dirty needs what it lies on. */
  async #chunkBytes (overlay: SealedOverlay, index: number, baseId: ChunkId | null, init: CommitInit): Promise<Uint8Array> {
    const bytes = new Uint8Array(overlay.chunkBytes(index))
    if (!overlay.coversChunk(index) && baseId !== null) {
      const below = await this.#components.chunks.get(baseId, { signal: init.signal, priority: 'commit' })
      bytes.set(below.length > bytes.length ? below.subarray(0, bytes.length) : below)
    }
    await overlay.readOver(index, bytes)
    return bytes
  }
}

function targetOf (sealed: Sealed, init: CommitInit): Target {
  if (init.as !== undefined) return { kind: 'clone', source: sealed.base, name: init.as }
  return { kind: 'blob', blob: sealed.base.blob, expectedBase: sealed.base.version }
}

/** The version manager has answered, and the answer is no: asking again would not change it. */
function isRefusal (error: unknown): boolean {
  return error instanceof P2pvmError && ['ERR_CONFLICT', 'ERR_NOT_FOUND', 'ERR_NOT_ALLOWED', 'ERR_USAGE'].includes(error.code)
}

function signalOf (init: { signal?: AbortSignal | undefined }): AbortSignal {
  return init.signal ?? new AbortController().signal
}

/** Waits for all, then throws the first failure: nobody works on behind the caller's back. */
async function settleAll (work: Array<Promise<void>>): Promise<void> {
  for (const result of await Promise.allSettled(work)) {
    if (result.status === 'rejected') throw result.reason
  }
}
