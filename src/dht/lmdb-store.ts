/**
 * `KeyValueStore` over lmdb. State it owns: the database file, and the writes that are on their way to it, which readers
 * see already.
 *
 * A `write` is applied whole or not at all. Those of one turn of the event loop, and those that come while a transaction is being
 * committed, share the next one, as one lmdb batch: group commit. (lmdb has one of its own, by what its thread finds when it looks:
 * smaller transactions, and a promise for each write; a tenth more work per version.) `overlappingSync` is off: lmdb then syncs the
 * data and writes the meta page through O_DSYNC before it resolves, so resolved means durable with no second promise (`flushed`) to
 * forget; measured at 1, 8 and 64 writers it is as fast. `eventTurnBatching` is off: its own promise for each turn's writes is handled by
 * nobody, so that a full disk would be an unhandled rejection and the end of the process.
 */
import { mkdir, open as openFile } from 'node:fs/promises'
import { constants } from 'node:os'
import { dirname } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import { open, type RootDatabase } from 'lmdb'
import { P2pvmError } from '../protocols/errors.ts'
import type { KeyValueStore } from '../protocols/seams.ts'

type Operation = Parameters<KeyValueStore['write']>[0][number]
interface Entry { readonly key: string, readonly value: Uint8Array }
/** Writes that go into one transaction. */
interface Group {
  readonly operations: Operation[]
  readonly committed: PromiseWithResolvers<void>
}
interface PendingValue { readonly value: Uint8Array | null }

/** Opens or creates the database file at `path`; its folder is created and synced. */
export async function openLmdbStore (path: string): Promise<KeyValueStore> {
  await mkdir(dirname(path), { recursive: true })
  const database = open<Uint8Array, Buffer>({ path, noSubdir: true, encoding: 'binary', keyEncoding: 'binary', overlappingSync: false, eventTurnBatching: false })
  const folder = await openFile(dirname(path), 'r')
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
  return new LmdbStore(database)
}

class LmdbStore implements KeyValueStore {
  readonly #database: RootDatabase<Uint8Array, Buffer>
  /** The newest value of each key that is being written and not committed yet. */
  readonly #pending = new Map<string, PendingValue>()
  /** For the next transaction. */
  #waiting: Group | undefined
  #committing: Promise<void> | undefined

  constructor (database: RootDatabase<Uint8Array, Buffer>) {
    this.#database = database
  }

  get (key: string): Uint8Array | undefined {
    const pending = this.#pending.get(key)
    if (pending !== undefined) return pending.value ?? undefined
    return this.#database.get(Buffer.from(key))
  }

  * range ({ start, end, limit = Infinity, reverse = false }: Parameters<KeyValueStore['range']>[0]): Generator<Entry> {
    let left = limit
    for (const { key, value } of this.#merged(start, end, reverse)) {
      if (value === null) continue
      if (left-- <= 0) return
      yield { key, value }
    }
  }

  async write (operations: readonly Operation[]): Promise<void> {
    if (operations.length === 0) return
    const entries = operations.map(({ key, value }) => [key, { value }] as const)
    for (const [key, pending] of entries) this.#pending.set(key, pending)
    try {
      await this.#commit(operations)
    } finally {
      // A later write of the same key has its own entry, which stays.
      for (const [key, pending] of entries) if (this.#pending.get(key) === pending) this.#pending.delete(key)
    }
  }

  /** Resolves when the group that they go with is on disk. */
  async #commit (operations: readonly Operation[]): Promise<void> {
    this.#waiting ??= { operations: [], committed: Promise.withResolvers() }
    const group = this.#waiting
    group.operations.push(...operations)
    this.#committing ??= this.#commitAll()
    await group.committed.promise
  }

  /** Never rejects. */
  async #commitAll (): Promise<void> {
    await turn() // for the rest of this one
    for (let group; (group = this.#waiting) !== undefined;) {
      this.#waiting = undefined
      try {
        await this.#commitGroup(group.operations)
        group.committed.resolve()
      } catch (error) {
        group.committed.reject(await storeError(error))
      }
    }
    this.#committing = undefined
  }

  async #commitGroup (operations: readonly Operation[]): Promise<void> {
    await this.#database.batch(() => {
      for (const { key, value } of operations) {
        const written = value === null ? this.#database.remove(Buffer.from(key)) : this.#database.put(Buffer.from(key), value)
        // The batch's own promise tells; these reject as well, and would be unhandled.
        written.catch(() => {})
      }
    })
  }

  async close (): Promise<void> {
    await this.#committing
    await this.#database.close()
  }

  /** What is on disk and what is on its way there, in order; the latter wins. */
  * #merged (start: string, end: string, reverse: boolean): Generator<{ key: string, value: Uint8Array | null }> {
    const direction = reverse ? -1 : 1
    const first = Buffer.from(start)
    const last = Buffer.from(end)
    const pending = [...this.#pending]
      .map(([key, { value }]) => ({ key, bytes: Buffer.from(key), value }))
      .filter(({ bytes }) => Buffer.compare(bytes, first) >= 0 && Buffer.compare(bytes, last) < 0)
      .sort((a, b) => direction * Buffer.compare(a.bytes, b.bytes))
    let next = 0
    for (const { key, value } of this.#stored(first, last, reverse)) {
      let shadowed = false
      for (let one; (one = pending[next]) !== undefined; next++) {
        const order = direction * Buffer.compare(one.bytes, key)
        if (order > 0) break
        shadowed ||= order === 0
        yield one
      }
      if (!shadowed) yield { key: key.toString(), value }
    }
    yield * pending.slice(next)
  }

  #stored (first: Buffer, last: Buffer, reverse: boolean): Iterable<{ key: Buffer, value: Uint8Array }> {
    if (!reverse) return this.#database.getRange({ start: first, end: last })
    // Reversed, lmdb begins at `start` and takes in the bound that we leave out, and leaves out the one that we take in.
    return this.#reversed(first, last)
  }

  * #reversed (first: Buffer, last: Buffer): Generator<{ key: Buffer, value: Uint8Array }> {
    for (const entry of this.#database.getRange({ start: last, reverse: true })) {
      if (Buffer.compare(entry.key, last) >= 0) continue
      if (Buffer.compare(entry.key, first) < 0) return
      yield entry
    }
  }
}

/**
 * lmdb rejects with `commitError`, a promise that rejects in turn with what the system said (`code` is the errno). It must
 * be looked at: unhandled, it would end the process.
 */
async function storeError (error: unknown): Promise<P2pvmError> {
  let cause: unknown = error
  try {
    await (error as { commitError?: Promise<never> }).commitError
  } catch (commitError) {
    cause = commitError
  }
  const { code, message } = cause as { code?: unknown, message?: unknown }
  const full = code === constants.errno.ENOSPC || code === constants.errno.EDQUOT
  return full
    ? new P2pvmError('ERR_DISK_FULL', 'the disk of the record store is full', {}, cause)
    : new P2pvmError('ERR_INTERNAL', `the record store failed: ${String(message)}`, {}, cause)
}
