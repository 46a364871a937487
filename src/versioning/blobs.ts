/**
 * Blobs as clients use them: BlobSeer's CREATE, WRITE, APPEND, READ, GET_RECENT, CLONE (the talk, "What is BlobSeer?"),
 * names, and the history. `blob-client.ts` implements it over chunks, records and the version manager's protocol.
 */
import type { ChunkId } from '../protocols/cid.ts'

export { GROUP_MEMBERS_MAX } from '../protocols/version-protocol.ts'

/** Short and printable: 16 characters of lower-case base32 (RFC 4648, no padding), 80 random bits. */
export type BlobId = string

/** `[offset, size)` in bytes. */
export interface Extent {
  readonly offset: number
  readonly size: number
}

export interface VersionId {
  readonly blob: BlobId
  readonly version: number // 0 is the empty (or cloned) start, 1 the first write
}

/*
 * A stored chunk may be shorter than chunkSize, where the blob ended when it was written: bytes past its end read as zeros.
 */

/** A published version: the header of its publication record. Enough to read it with no version manager alive. */
export interface Version extends VersionId {
  readonly size: number
  readonly chunkSize: number
  readonly fanOut: number
  /** Who last wrote the root node of its tree; null when nothing was ever written. */
  readonly root: VersionId | null
  /** What it was made from: the version before, or the source of a clone. */
  readonly parent: VersionId | null
  readonly timeMs: number
  readonly writer: string // peer id
  readonly message: string
  readonly bytesChanged: number
  /** 1: the writer's that it was assigned to. 2: that one died, and the version reads as the one before it, at the size that was assigned. */
  readonly attempt: number
  /** How many versions that it may be made of have another attempt than 1; its publication record lists them. */
  readonly exceptions: number
  /** Of its publication record, hexadecimal: through the records that this one is linked to it stands for the whole history up to here. */
  readonly hash: string
}

/** What became of a request. 'aborted': its writer was not heard of in time, and nothing of it shows; asked for anew it needs another id. */
export type Outcome = Version | 'aborted' | undefined

export interface Image {
  readonly name: string
  readonly blob: BlobId
  /** Its latest published version. */
  readonly latest: Version
}

/** Where a new version goes. `name` is reserved at once and shows when the version is published: one step, all or none. */
export type Target =
  | { readonly kind: 'blob', readonly blob: BlobId, readonly expectedBase?: number } // ERR_CONFLICT when it has moved on
  | { readonly kind: 'new', readonly chunkSize: number, readonly fanOut?: number, readonly name?: string }
  | { readonly kind: 'clone', readonly source: VersionId, readonly name?: string }

export interface PublishRequest {
  /** 26 or so random characters, kept by the caller: the same request again gives the same answer. */
  readonly requestId: string
  readonly target: Target
  /** Chunk index → stored chunk, or null for a hole. The chunks are already on the fabric. */
  readonly chunks: ReadonlyMap<number, ChunkId | null>
  /** Size of the blob afterwards, when it grows; never shrinks. */
  readonly size?: number
  readonly bytesChanged: number
  readonly message?: string
}

/** Target, chunks, size and bytesChanged. A target that is a blob must say which base is expected. */
export type GroupMember = Omit<PublishRequest, 'requestId' | 'message'>

export interface GroupRequest {
  /** As in PublishRequest, of at most 61 characters: that of member i is `${requestId}-${i}`, and `outcome` knows that one, too. */
  readonly requestId: string
  /** 1 to GROUP_MEMBERS_MAX; no blob, and no new name, comes twice. */
  readonly members: readonly GroupMember[]
  /** Of all members. */
  readonly message?: string
}

export interface BlobOptions {
  readonly signal?: AbortSignal | undefined
}

export interface WriteOptions extends BlobOptions {
  /** ERR_CONFLICT when the blob has moved on from this version. */
  readonly expectedBase?: number | undefined
  readonly message?: string | undefined
  readonly requestId?: string
}

/** Bytes, and where in the blob they go. */
export interface Part {
  readonly offset: number
  readonly bytes: Uint8Array
}

export interface Blobs {
  create (init: { chunkSize?: number, fanOut?: number, name?: string }, options?: BlobOptions): Promise<Version>
  /**
   * One version, whatever the number of extents; any offset and size. Merges unaligned edges with the version before. Of a list
   * the later of two parts that overlap wins; those of a stream ascend and do not overlap, and are put on the fabric as they
   * come (bounds: streamed-write.ts). Nothing to write makes a version, too, of the same content.
   */
  write (blob: BlobId, parts: readonly Part[] | AsyncIterable<Part>, options?: WriteOptions): Promise<Version>
  /** At the end, wherever other writers have moved it: at `size - bytesChanged` of the version that it makes. */
  append (blob: BlobId, bytes: Uint8Array | AsyncIterable<Uint8Array>, options?: WriteOptions): Promise<Version>
  /** Bytes of `[offset, offset + size)`, cut at the end of the version; holes read as zeros. */
  read (version: Version, offset: number, size: number, options?: BlobOptions): Promise<Uint8Array>
  recent (blob: BlobId, options?: BlobOptions): Promise<Version>
  /** O(1): a new blob whose version 0 is the source. */
  clone (source: VersionId, init?: { name?: string }, options?: BlobOptions): Promise<Version>

  /** The publication record, from storage peers alone. ERR_NOT_FOUND when there is no such published version. */
  version (id: VersionId, options?: BlobOptions): Promise<Version>
  /** REF: NAME, NAME@VERSION, NAME@latest, BLOB@VERSION, or an unambiguous prefix of a blob id. A full blob id with a number needs no version manager. */
  resolve (ref: string, options?: BlobOptions): Promise<Version>
  images (options?: BlobOptions): Promise<Image[]>
  /** All published versions of a blob, oldest first. */
  log (blob: BlobId, options?: BlobOptions): Promise<Version[]>

  /** Chunk ids (null: hole) of chunks `[first, first + count)`; level by level, one batch per peer, nodes cached. */
  chunkIds (version: Version, first: number, count: number, options?: BlobOptions): Promise<Array<ChunkId | null>>
  /** The chunks within an extent that are no holes, ascending; whatever lies between them costs nothing. */
  storedChunks (version: Version, within: Extent, options?: BlobOptions): AsyncIterable<{ readonly index: number, readonly id: ChunkId }>
  /**
   * The lower half of WRITE, for import and commit: assign, write the tree nodes, complete, wait until published. ERR_CONFLICT also when
   * the version manager took the writer for dead; `outcome` tells.
   */
  publish (request: PublishRequest, options?: BlobOptions): Promise<Version>
  /** undefined when it was never assigned. Waits while it is in flight. */
  outcome (requestId: string, options?: BlobOptions): Promise<Outcome>
  /**
   * A version of each member's target, all or none: they are decided in one step, and then published each for itself, so that readers may
   * see one of them a moment before the other. In the order of the members. Errors as `publish`; what stands against one member stands
   * against the group, and the error's fields have its place, `member`, and its blob or name. ERR_USAGE for members that make no group.
   */
  publishGroup (request: GroupRequest, options?: BlobOptions): Promise<Version[]>
  /** As `outcome`, of a group of `count` members: of all the same. ERR_USAGE when it has another number of them. */
  groupOutcome (request: Pick<GroupRequest, 'requestId'> & { readonly count: number }, options?: BlobOptions): Promise<Version[] | 'aborted' | undefined>
}

export const FAN_OUT_DEFAULT = 64
