/**
 * Which attempt at a version counts. A version is written once by the writer that it was assigned to (attempt 1); when that one
 * dies, once more by the version manager (attempt 2), under names of their own. Links between tree nodes name (blob, version) only:
 * a reader takes the attempts from the publication record of the version that he reads, and needs nothing else.
 */
import type { BlobId, VersionId } from './blobs.ts'

/** A version whose counting attempt is not the first one. */
export interface Exception extends VersionId {
  readonly attempt: number
}

export const FIRST_ATTEMPT = 1
/** The version manager's own: it does not die for good, so there is no third one. */
export const ABORTED_ATTEMPT = 2

/**
 * In one publication record, those of the sources of a clone included. 47 KB when each is of another blob, which with the most extents
 * still fits a record. A blob that has so many takes no more writes: it is exported and imported again.
 */
export const EXCEPTIONS_MAX = 2048

export class Attempts {
  /** Of a version below which every writer lived. */
  static readonly first = new Attempts([])

  readonly #exceptions: ReadonlyMap<string, number>

  constructor (exceptions: readonly Exception[]) {
    this.#exceptions = new Map(exceptions.map(({ blob, version, attempt }) => [keyOf(blob, version), attempt]))
  }

  of ({ blob, version }: VersionId): number {
    return this.#exceptions.get(keyOf(blob, version)) ?? FIRST_ATTEMPT
  }
}

function keyOf (blob: BlobId, version: number): string {
  return `${blob}/${version}`
}
