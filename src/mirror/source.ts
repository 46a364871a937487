/**
 * What a mount asks of its daemon. `src/node/` implements it over the control socket; the mirror's own tests implement
 * it over a local file. Everything here may fail with ERR_UNAVAILABLE while the daemon is gone: what is local stays readable.
 */
import type { ChunkId } from '../protocols/cid.ts'

/** A version as the mirror needs it. */
export interface VersionRef {
  readonly blob: string
  readonly version: number
  readonly size: number
  readonly chunkSize: number
}

/** Folders that the daemon and its mounts share, absolute. */
export interface MirrorFolders {
  readonly cache: string // chunk files, see ChunkStore.pathOf
  readonly working: string // one folder per working copy
  readonly mounts: string // one <id>.json and <id>.sock per running mount
}

export interface MirrorSource {
  /** Names of the images, for readdir of /by-name. */
  images (signal: AbortSignal): Promise<string[]>
  /** Published version numbers, ascending, for readdir of /by-name/<image>. ERR_NOT_FOUND. */
  versions (image: string, signal: AbortSignal): Promise<number[]>
  /** As Blobs.resolve. */
  resolve (ref: string, signal: AbortSignal): Promise<VersionRef>
  /** Chunk ids (null: hole) of chunks [first, first + count). */
  chunkIds (version: VersionRef, first: number, count: number, signal: AbortSignal): Promise<Array<ChunkId | null>>
  /** Returns when each of the chunks is a file in the cache folder: those that it was given now, and has verified as they were written. */
  fetch (chunks: readonly ChunkId[], signal: AbortSignal): Promise<readonly ChunkId[]>
  /**
   * CLONE and COMMIT of a working copy, for the ioctls and extended attributes; the same as the commands. Asked again under the
   * same `id`, it is the one that was asked for: joined, or its outcome told.
   */
  clone (workingCopy: string, init: { readonly id: string, readonly name: string | undefined }, signal: AbortSignal): Promise<VersionRef>
  commit (workingCopy: string, init: { readonly id: string, readonly as: string | undefined, readonly message: string }, signal: AbortSignal): Promise<VersionRef>
}
