/**
 * Small named values (tree nodes, publication records) on the fabric, placed like chunks by the hash of their name, kept
 * in each storage peer's key-value store. Write-once: a name never changes its value. `replicated-records.ts` implements it.
 */
export interface NamedRecord {
  /** `node/<blob>/<version>/<level>/<index>`, `version/<blob>/<version>`; printable ASCII, at most RECORD_NAME_BYTES_MAX. */
  readonly name: string
  /** At most RECORD_BYTES_MAX. */
  readonly value: Uint8Array
}

export interface Records {
  /**
   * Each record durable on W of its R replicas; one batch per peer. The same value again is fine (and renews the lease).
   * ERR_CONFLICT when a name is taken by another value, ERR_NOT_ALLOWED when nobody takes this value under this name,
   * ERR_UNAVAILABLE when W cannot be reached, ERR_TIMEOUT when they have not answered after `deadlineMs` (of its own it waits a minute).
   */
  put (records: readonly NamedRecord[], options?: { signal?: AbortSignal | undefined, deadlineMs?: number }): Promise<void>
  /**
   * Values in the order of the names; one batch per peer. undefined: everyone who could have it answered that they have
   * not. ERR_UNAVAILABLE when somebody did not answer. `accept` rejects a value that cannot be right (then another replica
   * is asked, and the first one is reported).
   */
  get (names: readonly string[], options?: { signal?: AbortSignal | undefined, accept?: (name: string, value: Uint8Array) => boolean }): Promise<Array<Uint8Array | undefined>>
}

export const RECORD_NAME_BYTES_MAX = 200
/** A leaf of the widest tree (fan-out 128) with 128 digests is 4.4 KB; a publication record with many extents is larger. */
export const RECORD_BYTES_MAX = 128 * 1024
