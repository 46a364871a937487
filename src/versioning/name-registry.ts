/**
 * The version manager's names of images, and the blobs that people mean by what they type. A name is reserved when the version that
 * brings it is assigned, shows when that is published, and is free again when that was aborted.
 *
 * State it owns: names whose reservation waits for its turn to be written. All others are in the store.
 */
import { P2pvmError } from '../protocols/errors.ts'
import { BLOB_ID_PREFIX } from './blob-id.ts'
import type { BlobId, VersionId } from './blobs.ts'
import type { Header } from './publication-codec.ts'
import type { TrackedHistories } from './tracked-histories.ts'
import type { VersionStore } from './version-store.ts'

/** Candidates that are named when a prefix is ambiguous. */
const CANDIDATES_MAX = 10

export interface NameRegistryComponents {
  readonly store: VersionStore
  readonly histories: TrackedHistories
}

export class NameRegistry {
  readonly #store: VersionStore
  readonly #histories: TrackedHistories
  readonly #reserving = new Set<string>()

  constructor ({ store, histories }: NameRegistryComponents) {
    this.#store = store
    this.#histories = histories
  }

  /** Nobody else gets them while `write` is under way, though the store does not have them before their turn has come. */
  async reserve<T> (names: readonly string[], write: () => Promise<T>): Promise<T> {
    for (const name of names) this.#reserving.add(name)
    try {
      return await write()
    } finally {
      for (const name of names) this.#reserving.delete(name)
    }
  }

  /** ERR_CONFLICT. */
  checkIsFree (name: string): void {
    if (this.#reserving.has(name)) throw nameTaken(name, 'a write that is not published yet')
    const shows = this.#store.name(name)
    if (shows === undefined) return
    const { history } = this.#histories.get(shows.blob)
    if (history.isAborted(shows.version)) return // nothing that it was to show will ever be there
    const writer = history.assignedOf(shows.version)?.writer
    throw nameTaken(name, writer === undefined ? `blob ${shows.blob}` : `a write of ${writer} that is not published yet`, { blob: shows.blob })
  }

  /** What a name shows: its blob's latest version, once the version that brought the name is published. InDoubt. */
  shown (shows: VersionId): Header | undefined {
    const { history } = this.#histories.certain(shows.blob)
    return history.isPublished(shows.version) && !history.isAborted(shows.version) ? history.latestHeader : undefined
  }

  /** The left side of a REF. A name wins over a prefix of an id. ERR_NOT_FOUND, ERR_CONFLICT, InDoubt. */
  blobOf (ref: string): BlobId {
    const shows = this.#store.name(ref)
    if (shows !== undefined && this.shown(shows) !== undefined) return shows.blob
    const candidates = BLOB_ID_PREFIX.test(ref) ? this.#store.blobs(ref, CANDIDATES_MAX + 1) : []
    const [blob, ...others] = candidates
    if (blob === undefined) {
      const pending = shows === undefined || this.#histories.get(shows.blob).history.isAborted(shows.version) ? '' : ' (the name is reserved by a write that is not published yet)'
      throw new P2pvmError('ERR_NOT_FOUND', `no image or blob ${ref}${pending}`, { ref })
    }
    if (others.length > 0) {
      const named = candidates.slice(0, CANDIDATES_MAX).join(', ') + (candidates.length > CANDIDATES_MAX ? ', …' : '')
      throw new P2pvmError('ERR_CONFLICT', `${ref} could be any of ${named}`, { ref })
    }
    return blob
  }
}

function nameTaken (name: string, holder: string, fields: { blob?: BlobId } = {}): P2pvmError {
  return new P2pvmError('ERR_CONFLICT', `the name ${name} is taken by ${holder}; choose another`, { name, ...fields })
}
