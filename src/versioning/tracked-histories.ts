/**
 * The histories that the version manager has in use, and reading further back in the store. A history comes into memory when it is asked
 * for, stays while anything of it is open, and is forgotten when a write of it fails: the store decides then what happened.
 *
 * State it owns: the ends of those histories (`blob-history.ts`), and their write queues.
 */
import { P2pvmError } from '../protocols/errors.ts'
import type { Clock, Log } from '../protocols/seams.ts'
import { BlobHistory } from './blob-history.ts'
import type { BlobId, VersionId } from './blobs.ts'
import type { Header } from './publication-codec.ts'
import { noSuchVersion } from './version-errors.ts'
import type { Assigned, VersionStore } from './version-store.ts'
import { WriteQueue } from './write-queue.ts'

/** A history in use: its rules, its writes, what is under way. */
export interface Tracked {
  readonly history: BlobHistory
  readonly writes: WriteQueue
  publishing: Promise<void> | undefined
  writingAborted: Promise<void> | undefined
  /** The last time that writers were fenced: durable when it resolves. */
  fencing: Promise<void>
}

/** What was asked cannot be said before the history's publication has been made up for. To be caught by whoever can see to that. */
export class InDoubt extends Error {
  readonly tracked: Tracked

  constructor (tracked: Tracked) {
    super(`what was published of ${tracked.history.blob} is in doubt`)
    this.tracked = tracked
  }
}

export interface TrackedHistoriesInit {
  /** One that came from the store has something open. */
  readonly onOpen: (blob: BlobId) => void
  /** A write failed, and what is in memory was forgotten. */
  readonly onFailure: (blob: BlobId) => void
}

/** Ends of histories in memory, some 500 bytes each; those of blobs that are being written stay beyond that. */
const HISTORIES_MAX = 4096

export class TrackedHistories {
  readonly #store: VersionStore
  readonly #clock: Clock
  readonly #log: Log
  readonly #init: TrackedHistoriesInit
  readonly #tracked = new Map<BlobId, Tracked>() // the least recently used first

  constructor ({ store, clock, log }: { store: VersionStore, clock: Clock, log: Log }, init: TrackedHistoriesInit) {
    this.#store = store
    this.#clock = clock
    this.#log = log
    this.#init = init
  }

  /** In memory or in the store. */
  has (blob: BlobId): boolean {
    return this.#tracked.has(blob) || this.#store.history(blob) !== undefined
  }

  /** The blob's history, loaded when it is not in memory. ERR_NOT_FOUND. */
  get (blob: BlobId): Tracked {
    const known = this.#tracked.get(blob)
    if (known !== undefined) {
      this.#tracked.delete(blob)
      this.#tracked.set(blob, known)
      return known
    }
    const history = this.#store.history(blob)
    if (history === undefined) throw noSuchBlob(blob)
    const tracked = this.add(new BlobHistory(blob, history, this.#clock.monotonic()))
    if (!tracked.history.settled) this.#init.onOpen(blob)
    return tracked
  }

  add (history: BlobHistory): Tracked {
    const { blob } = history
    const writes = new WriteQueue(
      async (operations) => { await this.#store.write(operations) },
      (error) => {
        // What is in memory is ahead of the disk: the store decides what happened.
        this.#tracked.delete(blob)
        history.publicationFailed(error)
        this.#init.onFailure(blob)
        this.#log.error('cannot write the history of a blob', { blob, error })
      })
    const tracked: Tracked = { history, writes, publishing: undefined, writingAborted: undefined, fencing: Promise.resolve() }
    this.#tracked.set(blob, tracked)
    this.#forgetOldestBut(blob)
    return tracked
  }

  /** As `get`, of one whose latest version is to be told. InDoubt. */
  certain (blob: BlobId): Tracked {
    const tracked = this.get(blob)
    if (tracked.history.inDoubt) throw new InDoubt(tracked)
    return tracked
  }

  /** ERR_NOT_FOUND, InDoubt. */
  latest (blob: BlobId): Header {
    const { latestHeader } = this.certain(blob).history
    if (latestHeader === undefined) throw noSuchBlob(blob)
    return latestHeader
  }

  /** ERR_NOT_FOUND when it is not published; InDoubt. */
  published ({ blob, version }: VersionId): Header {
    const { history } = this.get(blob)
    const latest = history.latestHeader
    if (latest?.version.version === version) return latest
    const header = history.isPublished(version) ? this.#store.published({ blob, version }) : undefined
    if (header !== undefined) return header
    this.certain(blob)
    throw noSuchVersion(blob, version)
  }

  /** ERR_NOT_FOUND. */
  assigned ({ history }: Tracked, version: number): Assigned {
    const assigned = history.assignedOf(version) ?? (history.isPublished(version) ? this.#store.assigned(history.blob, version) : undefined)
    if (assigned === undefined) throw noSuchVersion(history.blob, version)
    return assigned
  }

  #forgetOldestBut (used: BlobId): void {
    if (this.#tracked.size <= HISTORIES_MAX) return
    for (const [blob, { history, writes, publishing }] of this.#tracked) {
      if (blob === used || !history.settled || !writes.idle || publishing !== undefined) continue
      this.#tracked.delete(blob)
      return
    }
  }
}

function noSuchBlob (blob: BlobId): P2pvmError {
  return new P2pvmError('ERR_NOT_FOUND', `no blob ${blob}`, { blob })
}
