/**
 * `KeyValueStore` over lmdb, without readers of what is under way: one write at a time, each a transaction. (`logged-store.ts` is in front
 * of it, and gathers.) State it owns: the database file.
 *
 * `overlappingSync` is off: lmdb then syncs the data and writes the meta page through O_DSYNC before it resolves, so resolved means durable
 * with no second promise (`flushed`) to forget. `eventTurnBatching` is off: its own promise for each turn's writes is handled by nobody, so
 * that a full disk would be an unhandled rejection and the end of the process.
 */
import { mkdir, open as openFile } from 'node:fs/promises'
import { constants } from 'node:os'
import { dirname } from 'node:path'
import { open, type RootDatabase } from 'lmdb'
import { P2pvmError } from '../protocols/errors.ts'
import type { KeyValueStore } from '../protocols/seams.ts'

type Operation = Parameters<KeyValueStore['write']>[0][number]
interface Entry { readonly key: string, readonly value: Uint8Array }

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

  constructor (database: RootDatabase<Uint8Array, Buffer>) {
    this.#database = database
  }

  get (key: string): Uint8Array | undefined {
    return this.#database.get(Buffer.from(key))
  }

  * range ({ start, end, limit = Infinity, reverse = false }: Parameters<KeyValueStore['range']>[0]): Generator<Entry> {
    let left = limit
    const [first, last] = [Buffer.from(start), Buffer.from(end)]
    for (const { key, value } of reverse ? this.#reversed(first, last) : this.#database.getRange({ start: first, end: last })) {
      if (left-- <= 0) return
      yield { key: key.toString(), value }
    }
  }

  async write (operations: readonly Operation[]): Promise<void> {
    try {
      await this.#database.batch(() => {
        for (const { key, value } of operations) {
          const written = value === null ? this.#database.remove(Buffer.from(key)) : this.#database.put(Buffer.from(key), value)
          // The batch's own promise tells; these reject as well, and would be unhandled.
          written.catch(() => {})
        }
      })
    } catch (error) {
      throw await storeError(error)
    }
  }

  async close (): Promise<void> {
    await this.#database.close()
  }

  /** Reversed, lmdb begins at `start` and takes in the bound that we leave out, and leaves out the one that we take in. */
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
