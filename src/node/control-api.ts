/**
 * The control socket's interface: HTTP over a unix socket, JSON bodies, one row per endpoint. `control-server.ts` serves it
 * in the daemon, `control-client.ts` is the typed client that the commands, the mount and the library (`connect`) share.
 *
 * Errors are `{"error":{"code","message","fields"}}` with the HTTP status of `statusOf(code)`; the client throws the same
 * P2pvmError. Image and blob bytes travel as a *sparse stream*: see sparse-stream.ts.
 *
 *   GET    /v1/status                                   → Status
 *   GET    /v1/peers                                    → PeerRow[]
 *   GET    /v1/folders                                  → MirrorFolders
 *   GET    /v1/images                                   → ImageRow[]
 *   GET    /v1/versions?ref=REF                         → VersionRow[]    (log; oldest first)
 *   GET    /v1/resolve?ref=REF                          → VersionRow
 *   GET    /v1/chunk-ids?blob&version&first&count       → (string|null)[]
 *   POST   /v1/fetch              {chunks, priority?}   → {verified: chunks}  (all are in the cache folder then; these were written for it)
 *   POST   /v1/import?name&chunkSize&message            sparse stream → ImportResult
 *                                                       (Accept: application/x-ndjson: a line per ImportProgress before it)
 *   GET    /v1/export?ref=REF                           → sparse stream
 *   GET    /v1/verify?ref=REF                           → VerifyResult
 *   POST   /v1/blobs              {chunkSize?, fanOut?, name?}            → CreateResult
 *   POST   /v1/write?ref&expectedBase?&message?&requestId?   sparse stream → WriteResult      (what it leaves out stays as it was)
 *   POST   /v1/append?ref&expectedBase?&message?&requestId?  sparse stream → AppendResult     (from offset 0, without gaps)
 *                                                       (Accept: application/x-ndjson: a line per WriteProgress before it)
 *   GET    /v1/read?ref&offset?&size?                   → sparse stream   (offsets from the first byte read; holes left out)
 *   GET    /v1/recent?ref=BLOB|NAME                     → VersionRow
 *   GET    /v1/working-copies                           → WorkingCopyRow[]
 *   POST   /v1/working-copies     {name, ref}           → WorkingCopyRow
 *   DELETE /v1/working-copies/NAME                      → {}
 *   POST   /v1/working-copies/NAME/revert               → WorkingCopyRow
 *   POST   /v1/clone              {ref|path|workingCopy, name?, id?}      → CloneResult
 *   POST   /v1/commit             {path|workingCopy, as?, message?, id?}  → CommitResult
 *   POST   /v1/commit-group       {members: [{path|workingCopy, as?}], message?}  → {members: CommitResult[]}
 *   GET    /metrics                                     → Prometheus text
 */
import type { Priority } from '../dht/chunks.ts'
import type { Role } from '../dht/membership.ts'
import type { ChunkId } from '../protocols/cid.ts'
import type { DriverName } from '../mirror/driver.ts'
import type { MirrorFolders } from '../mirror/source.ts'
import type { Part } from '../versioning/blobs.ts'
import type { SparseItem } from '../versioning/image-import.ts'

export const SPARSE_STREAM_TYPE = 'application/vnd.p2pvm.sparse'
/** What an import, write or append answers with when the client accepts it: `{"progress"}` lines, then `{"result"}` or an error document. */
export const LINES_TYPE = 'application/x-ndjson'
/** The row of the version that is exported or read, as JSON, percent-encoded: a header holds ASCII only. */
export const VERSION_HEADER = 'x-p2pvm-version'

export interface Status {
  readonly peerId: string
  readonly fabric: string
  readonly roles: readonly Role[]
  readonly addresses: readonly string[]
  readonly pid: number
  readonly version: string // of the program
  readonly uptimeMs: number
  readonly control: string
  readonly dataDir: string
  readonly members: number
  readonly membersUp: number
  readonly memberListComplete: boolean
  /** What this storage peer keeps; null for a peer without the role. */
  readonly stored: { readonly chunks: number, readonly bytes: number, readonly records: number } | null
  /** This compute peer's cache; null for a peer without the role. */
  readonly cache: { readonly chunks: number, readonly bytes: number, readonly bytesMax: number } | null
  readonly mounts: ReadonlyArray<{ readonly mountpoint: string, readonly pid: number, readonly driver: DriverName }>
  /** Counters by name, labels summed: chunk_bytes_sent_total, chunk_bytes_received_total, … */
  readonly counters: Readonly<Record<string, number>>
}

export interface PeerRow {
  readonly peerId: string
  readonly addresses: readonly string[]
  readonly roles: readonly Role[]
  readonly capacityBytes: number
  readonly state: 'up' | 'down'
  readonly self: boolean
}

export interface VersionRow {
  readonly blob: string
  readonly version: number
  readonly size: number
  readonly chunkSize: number
  readonly fanOut: number
  readonly timeMs: number
  readonly writer: string
  readonly message: string
  readonly bytesChanged: number
  readonly parent: { readonly blob: string, readonly version: number } | null
  /** Its writer was not heard of in time: it has the bytes of the version before it, and zeros where it was to grow. */
  readonly aborted: boolean
}

export interface ImageRow extends VersionRow {
  readonly name: string
}

export interface ImportResult {
  readonly blob: string
  readonly version: number
  readonly name: string
  readonly size: number
  readonly chunkSize: number
  readonly chunks: number // that are not holes
  readonly holes: number
  readonly newChunks: number
  readonly storedBytes: number // new chunks, counted once
  readonly sentBytes: number // chunk bytes written to sockets, all replicas
  readonly replicas: { readonly wanted: number, readonly degradedChunks: number } // those that W but not all R replicas hold
}

export interface ImportProgress {
  readonly doneBytes: number
  readonly chunks: number
  readonly holes: number
  readonly alreadyThere: number
}

export interface CreateResult {
  readonly blob: string
  readonly version: number // 0
  readonly chunkSize: number
  readonly fanOut: number
  readonly name: string | null
}

export interface WriteResult {
  readonly blob: string
  readonly version: number
  readonly size: number // of the blob
  readonly bytes: number // written
}

export interface AppendResult extends WriteResult {
  readonly offset: number // where they begin
}

export interface WriteProgress {
  readonly doneBytes: number
}

export interface WorkingCopyRow {
  readonly name: string
  readonly blob: string
  readonly version: number // its base
  readonly size: number
  readonly dirtyBytes: number
  readonly path: string | null // under a mount of this daemon; null when none is running
}

export interface CloneResult {
  readonly blob: string
  readonly version: number
  readonly name: string | null
  readonly path: string | null
}

export interface CommitResult {
  readonly blob: string
  readonly version: number
  readonly name: string | null
  readonly chunks: number
  readonly bytes: number
  readonly freezeMs: number
  readonly path: string
}

/** In the order of the request's members. */
export interface GroupCommitResult {
  readonly members: readonly CommitResult[]
}

export interface VerifyResult {
  readonly blob: string
  readonly version: number
  readonly chunks: number
  readonly replicas: { readonly wanted: number, readonly found: number } // summed over chunks
  readonly missing: number // chunks with no good replica
  readonly degraded: number // chunks with fewer good replicas than wanted
  readonly corrupt: number // bad copies seen
  readonly unreachable: number // answers that did not come
}

/** What a daemon does for its clients: implemented by the daemon behind the socket, and by `ControlClient` in front of it. */
export interface ControlHandlers {
  status (call: Call): Promise<Status>
  peers (call: Call): Promise<PeerRow[]>
  folders (call: Call): Promise<MirrorFolders>
  images (call: Call): Promise<ImageRow[]>
  versions (ref: string, call: Call): Promise<VersionRow[]>
  resolve (ref: string, call: Call): Promise<VersionRow>
  chunkIds (range: ChunkRange, call: Call): Promise<Array<ChunkId | null>>
  fetch (chunks: readonly ChunkId[], call: Call & { readonly priority?: Priority | undefined }): Promise<ChunkId[]>
  /**
   * The server hands over whole chunks: `source` is in ascending order, each piece starts at a multiple of `chunkSize`, is
   * that long (the last may be shorter) and is not a hole; the item with the size comes last.
   */
  import (request: ImportRequest, source: AsyncIterable<SparseItem>, call: ImportCall): Promise<ImportResult>
  /** Pieces in ascending order, then the size. */
  export (ref: string, call: Call): Promise<{ readonly version: VersionRow, readonly items: AsyncIterable<SparseItem> }>
  verify (ref: string, call: Call): Promise<VerifyResult>
  createBlob (request: CreateRequest, call: Call): Promise<CreateResult>
  /** One version. The parts ascend and do not overlap. */
  writeBlob (request: WriteRequest, parts: AsyncIterable<Part>, call: Call): Promise<WriteResult>
  appendBlob (request: WriteRequest, bytes: AsyncIterable<Uint8Array>, call: Call): Promise<AppendResult>
  /** Pieces in ascending order, counted from `offset`, then how many bytes it is: fewer than asked for at the version's end. */
  readBlob (ref: string, range: ReadRange, call: Call): Promise<{ readonly version: VersionRow, readonly items: AsyncIterable<SparseItem> }>
  /** The latest version. ERR_USAGE for a ref that names another one. */
  recent (ref: string, call: Call): Promise<VersionRow>
  workingCopies (call: Call): Promise<WorkingCopyRow[]>
  createWorkingCopy (request: { readonly name: string, readonly ref: string }, call: Call): Promise<WorkingCopyRow>
  removeWorkingCopy (name: string, call: Call): Promise<void>
  revertWorkingCopy (name: string, call: Call): Promise<WorkingCopyRow>
  clone (request: CloneRequest, call: Call): Promise<CloneResult>
  commit (request: CommitRequest, call: Call): Promise<CommitResult>
  commitGroup (request: GroupCommitRequest, call: Call): Promise<GroupCommitResult>
  metrics (call: Call): Promise<string>
}

export interface Call {
  /** Aborts when the client went away or gave up. */
  readonly signal: AbortSignal
}

export interface ImportCall extends Call {
  readonly onProgress: (progress: ImportProgress) => void
}

export interface ImportRequest {
  readonly name: string
  readonly chunkSize: number
  readonly message?: string | undefined
}

export interface CreateRequest {
  /** A power of two from 4 KiB to 4 MiB; 256 KiB unless told. */
  readonly chunkSize?: number | undefined
  /** Of its segment tree: a power of two from 2 to 128; 64 unless told. */
  readonly fanOut?: number | undefined
  readonly name?: string | undefined
}

/** What a WRITE or APPEND says beside its bytes. */
export interface WriteRequest {
  /** The blob's id, or an unambiguous beginning of it, or its name. */
  readonly ref: string
  /** ERR_CONFLICT when its latest version is not this one. */
  readonly expectedBase?: number | undefined
  readonly message?: string | undefined
  /** 8 to 64 of A-Z a-z 0-9 _ -. Who does not know what became of a write asks again with the same id and bytes, and gets the same version. */
  readonly requestId?: string | undefined
}

export interface ReadRange {
  /** 0 unless told. */
  readonly offset?: number | undefined
  /** To the end unless told. */
  readonly size?: number | undefined
}

export interface ChunkRange {
  readonly blob: string
  readonly version: number
  readonly first: number
  readonly count: number
}

/** One of `ref`, `path` (absolute) and `workingCopy` (its name). */
export interface CloneRequest {
  readonly ref?: string | undefined
  readonly path?: string | undefined
  readonly workingCopy?: string | undefined
  readonly name?: string | undefined
  /** Of a working copy: as in a CommitRequest. */
  readonly id?: string | undefined
}

/** One of `path` (absolute) and `workingCopy` (its name). */
export interface CommitRequest {
  readonly path?: string | undefined
  readonly workingCopy?: string | undefined
  readonly as?: string | undefined
  readonly message?: string | undefined
  /** The same request again is the same commit: it is joined, or its outcome told. One whose client has gone away goes on for a while. */
  readonly id?: string | undefined
}

/** Working copies of one daemon, committed at one moment, all or none. */
export interface GroupCommitRequest {
  readonly members: ReadonlyArray<Omit<CommitRequest, 'message' | 'id'>>
  readonly message?: string | undefined
}
