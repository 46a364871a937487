/**
 * The version manager's work on one blob's open versions: publishing in order, and writing in the place of dead writers. What is under
 * way is joined, not begun twice. Not for who asks and when: `version-manager.ts`, `upkeep.ts`.
 */
import type { Records } from '../dht/records.ts'
import { withDeadline } from '../protocols/abort.ts'
import type { Clock, Log } from '../protocols/seams.ts'
import type { Signer } from '../protocols/signatures.ts'
import { abortedCompletion, writeAbortedTree } from './aborted-version.ts'
import type { BlobHistory } from './blob-history.ts'
import type { BlobId, VersionId } from './blobs.ts'
import { NodeStore } from './node-store.ts'
import { type Header, type Publication, sealPublication } from './publication-codec.ts'
import { skipOf } from './skip-chain.ts'
import type { Tracked } from './tracked-histories.ts'
import { versionName } from './tree-names.ts'
import { putAborted, putOpen, putPublished, type VersionStore } from './version-store.ts'

export interface PublisherComponents {
  readonly records: Records
  readonly clock: Clock
  readonly log: Log
  /** Of the fabric. */
  readonly signer: Signer
  /** For what records are linked to. */
  readonly store: VersionStore
}

export interface PublisherInit {
  /** Ends what is under way. */
  readonly signal: AbortSignal
  /** A publication failed, or an aborted version's turn has come: there is something to do that perhaps nobody waits for. */
  readonly onDue: (blob: BlobId) => void
}

/** Publication records in one put, each of RECORD_BYTES_MAX at most: two megabytes, which the record protocol sends in pieces. */
const PUBLISH_BATCH_MAX = 16
/** Longer than Records takes to try all who could hold a record; shorter than a client waits for the answer. */
const REPLICATE_DEADLINE_MS = 10_000
/** For all nodes of an aborted version: as many as the largest write has, with a few links in each. */
const ABORTED_TREE_DEADLINE_MS = 120_000
/** Where nothing else is written: after a crash within it, publication is made up for, and who asks for the latest version waits for that. */
const MARK_MS = 200
/** Only what aborted versions lie on is read. */
const NODE_CACHE_BYTES = 1024 * 1024

export class Publisher {
  readonly #components: PublisherComponents
  readonly #init: PublisherInit
  readonly #nodes: NodeStore
  #marking: Promise<void> | undefined

  constructor (components: PublisherComponents, init: PublisherInit) {
    this.#components = components
    this.#init = init
    this.#nodes = new NodeStore({ records: components.records, fabricKey: components.signer.publicKey }, { cacheBytesMax: NODE_CACHE_BYTES })
  }

  /** Publishes the version if its turn has come. Returns also if not. */
  async publish (tracked: Tracked, version: number): Promise<void> {
    while (tracked.history.isReady(version)) await this.#publishReady(tracked)
  }

  /** Publishes all whose turn has come, and writes what was aborted when its turn comes. */
  async advance (tracked: Tracked): Promise<void> {
    while (tracked.history.isPending) {
      if (tracked.history.abortedNext === undefined) {
        await this.#publishReady(tracked)
      } else {
        tracked.writingAborted ??= this.#writeAborted(tracked).finally(() => { tracked.writingAborted = undefined })
        await tracked.writingAborted
      }
    }
  }

  /** Aborts the versions whose leases have ended. Durable when it returns. */
  async abortExpired (tracked: Tracked): Promise<void> {
    const { history: { blob }, history, writes } = tracked
    const expired = history.fenceExpired(this.#components.clock.monotonic())
    if (expired.length === 0) return
    this.#components.log.warn('aborted versions whose writers were not heard of in time', { blob, versions: expired.map(({ version }) => version).join(' ') })
    tracked.fencing = writes.write(expired.map((one) => putAborted(blob, one)))
    await tracked.fencing
    history.aborted(expired)
  }

  /** After the signal has aborted: nothing is deferred any more. */
  async stop (): Promise<void> {
    await this.#marking
  }

  async #publishReady (tracked: Tracked): Promise<void> {
    tracked.publishing ??= this.#replicate(tracked).finally(() => { tracked.publishing = undefined })
    await tracked.publishing
  }

  /**
   * In order, some at once: a record is only replicated when all versions up to it are complete, so none that a reader could come
   * upon depends on a writer that may still fail, and its exceptions are final; and none is called published before all up to it are
   * replicated.
   */
  async #replicate ({ history }: Tracked): Promise<void> {
    const { records } = this.#components
    try {
      for (let ready; (ready = history.ready(PUBLISH_BATCH_MAX)).length > 0;) {
        const sealed = this.#seal(history, ready)
        const values = sealed.map(({ header: { version: { blob, version } }, value }) => ({ name: versionName(blob, version), value }))
        await records.put(values, { signal: this.#init.signal, deadlineMs: REPLICATE_DEADLINE_MS })
        const headers = sealed.map(({ header }) => header)
        this.#mark(headers)
        history.published(headers)
      }
      if (history.abortedNext !== undefined) this.#init.onDue(history.blob)
    } catch (error) {
      history.publicationFailed(error)
      this.#init.onDue(history.blob)
      throw error
    }
  }

  /** That they are published, durably a little later: with what is written next, or by itself. Lost, it is found out again. */
  #mark (headers: readonly Header[]): void {
    this.#components.store.defer(headers.flatMap(putPublished))
    this.#marking ??= this.#writeMarks().finally(() => { this.#marking = undefined })
  }

  async #writeMarks (): Promise<void> {
    const { clock, log, store } = this.#components
    await clock.sleep(MARK_MS, this.#init.signal).catch(() => {}) // stopping: now
    try {
      await store.flush()
    } catch (error) {
      log.warn('what was published is not marked yet', { error })
    }
  }

  /** Links each to those before it, and signs: the same bytes when it is done again. */
  #seal ({ latestHeader }: BlobHistory, ready: readonly Publication[]): Array<ReturnType<typeof sealPublication>> {
    const { signer, store } = this.#components
    const sealed: Array<ReturnType<typeof sealPublication>> = []
    const first = ready[0]!.version.version
    const hashOf = (id: VersionId): string => {
      if (id.blob === ready[0]!.version.blob && id.version >= first) return sealed[id.version - first]!.header.version.hash
      return id.blob === latestHeader?.version.blob && id.version === latestHeader.version.version ? latestHeader.version.hash : store.publishedHash(id)!
    }
    for (const publication of ready) {
      const { blob, version, parent } = publication.version
      const skip = skipOf(version)
      sealed.push(sealPublication(publication, {
        previous: parent === null ? null : hashOf(parent),
        skip: skip === undefined ? null : hashOf({ blob, version: skip })
      }, signer))
    }
    return sealed
  }

  async #writeAborted ({ history, writes }: Tracked): Promise<void> {
    const { clock, signer } = this.#components
    const version = history.abortedNext!
    const assigned = history.assignedOf(version)!
    await withDeadline(clock, ABORTED_TREE_DEADLINE_MS, [this.#init.signal], async (signal) => {
      await writeAbortedTree(history, assigned, { nodes: this.#nodes, signer }, { signal })
    })
    await history.complete(version,
      () => abortedCompletion(history.blob, version, Math.floor(clock.now())),
      async (completion) => { await writes.write([putOpen({ blob: history.blob, version }, completion)]) })
  }
}
