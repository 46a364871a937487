/**
 * The world, as domain code sees it: clock, randomness, disk, key-value store, log. Production implements these in
 * `src/node/` and `src/dht/` (lmdb); `test/simulation/` implements them with a seed, with loss and torn writes.
 * Domain code never calls Date.now, Math.random, setTimeout or node:fs itself.
 */

export interface Clock {
  /** Wall time, milliseconds since 1970. Only for what is shown or stored (lease ends, publication times). */
  now (): number
  /** Milliseconds that never go backwards. For every measurement and deadline. */
  monotonic (): number
  /** Resolves after `ms`; rejects with the signal's reason when it aborts. Does not keep the process alive. */
  sleep (ms: number, signal?: AbortSignal): Promise<void>
  /** A signal that aborts (with ERR_TIMEOUT) after `ms`, or when one of `signals` does. Dispose ends the timer. */
  deadline (ms: number, ...signals: Array<AbortSignal | undefined>): Deadline
}

export interface Deadline extends Disposable {
  readonly signal: AbortSignal
}

export interface Random {
  /** `count` random bytes: ids, keys. */
  bytes (count: number): Uint8Array
  /** Uniform in [0, 1): jitter, sampling. */
  unit (): number
}

/**
 * The part of a file system that our stores need. Paths are absolute. What was not synced may be lost in a crash:
 * file contents until `DiskFile.datasync`, names until `syncDirectory` of the folder. Errors are Node's (`code: 'ENOSPC'`).
 */
export interface Disk {
  mkdir (path: string): Promise<void> // with parents
  /** Reads a whole file. ENOENT when it is not there. */
  read (path: string): Promise<Uint8Array>
  /** Creates a new file (EEXIST when it is there) for writing. */
  create (path: string): Promise<DiskFile>
  /** Opens a file as it is; creates it when it is not there. Each of its writes is synced when it resolves. */
  openWriteThrough (path: string): Promise<DiskFile>
  rename (from: string, to: string): Promise<void>
  unlink (path: string): Promise<void>
  readdir (path: string): Promise<string[]>
  stat (path: string): Promise<DiskStat>
  /** Sets the modification time and syncs it. */
  touch (path: string, mtimeMs: number): Promise<void>
  /** Sets it without a sync: a power cut may take it back. */
  setMtime (path: string, mtimeMs: number): Promise<void>
  syncDirectory (path: string): Promise<void>
  /** Bytes free for us on the file system that holds `path`. */
  freeBytes (path: string): Promise<number>
}

export interface DiskFile {
  write (bytes: Uint8Array, position: number): Promise<void> // all of them
  datasync (): Promise<void>
  close (): Promise<void>
}

export interface DiskStat {
  readonly sizeBytes: number
  readonly mtimeMs: number
  readonly directory: boolean
}

/**
 * An ordered, embedded key-value store (lmdb with a log in production). Keys are ASCII, of 1 to 1978 characters, none of them a zero. Values
 * that it gives out are its own, not to be written to.
 */
export interface KeyValueStore {
  get (key: string): Uint8Array | undefined
  /** Entries with start <= key < end, in order (or reversed), at most `limit`. */
  range (options: { start: string, end: string, limit?: number, reverse?: boolean }): Iterable<{ key: string, value: Uint8Array }>
  /** Applies all or none; readers see it at once. The promise resolves when it is on disk and survives a power cut. */
  write (operations: ReadonlyArray<{ key: string, value: Uint8Array | null }>): Promise<void>
  close (): Promise<void>
}

export interface Log {
  debug (message: string, fields?: Record<string, unknown>): void
  info (message: string, fields?: Record<string, unknown>): void
  warn (message: string, fields?: Record<string, unknown>): void
  error (message: string, fields?: Record<string, unknown>): void
}

/** Monotonic counters, exposed by `p2pvm status` and GET /metrics. Names are Prometheus names ending in _total. */
export interface Counters {
  add (name: string, amount?: number, labels?: Record<string, string>): void
  /** The sum over all labels that match. */
  value (name: string, labels?: Record<string, string>): number
}
