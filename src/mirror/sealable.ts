/**
 * The mount's side of CLONE and COMMIT, as the daemon drives it (`commit.ts`). A mounted working copy is driven over the
 * mount's socket; one that no mount has open is driven directly on its files.
 */
import type { VersionRef } from './source.ts'

/** A sealed overlay: it changes no more. The daemon reads and uploads it while the machine writes on. */
export interface Sealed {
  /** What the overlay lies on. */
  readonly base: VersionRef
  /** Size of the file at the cut, bytes; at least the base's. */
  readonly size: number
  /** Folder of the sealed overlay, to open with `openSealedOverlay`. */
  readonly overlay: string
  /** How long writers were held, milliseconds. */
  readonly freezeMs: number
}

/** Folding back copies at most the sealed pages, on local disk; longer than this means that the mount is gone. */
export const FOLD_DEADLINE_MS = 120_000

export interface Sealable {
  /** Cuts. When an earlier commit failed before it was folded back, folds first. ERR_CONFLICT while another commit runs. */
  seal (signal: AbortSignal): Promise<Sealed>
  /**
   * The commit is published and its chunks are in the cache: the working copy is based on `version` from now on, and the
   * sealed overlay goes.
   */
  rebase (version: VersionRef, signal: AbortSignal): Promise<void>
  /** The commit failed: the sealed pages fold back under the top ones. Nothing is lost. */
  unseal (signal: AbortSignal): Promise<void>
  /** CLONE: same bytes, same overlay, another base id. */
  reassign (version: VersionRef, signal: AbortSignal): Promise<void>
  /** Throws the overlay away. ERR_CONFLICT while the file is open. */
  revert (signal: AbortSignal): Promise<void>
}
