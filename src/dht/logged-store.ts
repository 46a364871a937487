/**
 * `KeyValueStore` with a log in front of an ordered store: a write is durable with one append and one sync of the log, and reaches the
 * store later, together with thousands of others. What was written and removed in between never gets there. (As in etcd and PostgreSQL.)
 *
 * A `write` is applied whole or not at all. Those of one turn of the event loop, and those that come while an entry is on its way to the
 * disk, share the next entry: group commit. With LOG_BYTES in it the log turns over: the store takes what it held, in one transaction,
 * while the log's other file takes what comes. When the store cannot (its disk is full), that file fills, and then writes are refused with
 * the reason, tried anew with each; nothing that was acknowledged is lost.
 *
 * State it owns: the log, the writes that are on their way to it, and those that are in it and not in the store, which readers see.
 */
import { P2pvmError, errorCodeOf } from '../protocols/errors.ts'
import type { Disk, KeyValueStore } from '../protocols/seams.ts'
import { type Operation, WriteAheadLog } from './write-ahead-log.ts'

interface Entry { readonly key: string, readonly value: Uint8Array }
/** By key; null: removed. */
type Layer = Map<string, Uint8Array | null>
/** Writes that go into one entry of the log. */
interface Group {
  readonly layer: Layer
  readonly committed: PromiseWithResolvers<void>
}
/** What one file of the log holds. */
interface Logged {
  readonly layer: Layer
  /** Sequence of its last entry. */
  readonly last: number
}

export interface LoggedStoreInit {
  /** Takes all of a write or nothing, durably. Nobody else writes to it. */
  readonly store: KeyValueStore
  readonly disk: Disk
  /** Of the log's files, without their endings. */
  readonly path: string
  /** Resolves when the rest of what comes in this turn of the event loop has come. */
  readonly turn: () => Promise<void>
}

/** Some thousand versions. */
const LOG_BYTES = 1024 * 1024
/** In the store: the sequence of the last entry that it has taken, 8 bytes, big-endian. Before every other key. */
const APPLIED = '\0'
const AFTER_APPLIED = '\0\0'
const SEQUENCE_BYTES = 8

export class LoggedStore implements KeyValueStore {
  readonly #store: KeyValueStore
  readonly #log: WriteAheadLog
  readonly #turn: () => Promise<void>
  /** For the next entry, and the one that is on its way to the disk. */
  #waiting: Group | undefined
  #committing: Group | undefined
  /** In the file of the log that is used; and in the other one, of which the store has not all yet. */
  #recent: Layer = new Map()
  #settling: Logged | undefined
  /** While there are groups. Neither rejects. */
  #commits: Promise<void> | undefined
  #settled: Promise<void> | undefined
  #broken: P2pvmError | undefined

  private constructor ({ store, turn }: LoggedStoreInit, log: WriteAheadLog) {
    this.#store = store
    this.#turn = turn
    this.#log = log
  }

  /** The store takes what is only in the log. ERR_CORRUPT, ERR_DISK_FULL. */
  static async open (init: LoggedStoreInit): Promise<LoggedStore> {
    const { store, disk, path } = init
    const mark = store.get(APPLIED)
    const { log, entries } = await WriteAheadLog.open({ disk, path, applied: mark === undefined ? undefined : sequenceOf(mark) })
    const layer: Layer = new Map(entries.flatMap(({ operations }) => operations.map(({ key, value }) => [key, value] as const)))
    if (mark === undefined || entries.length > 0) await store.write(settling({ layer, last: log.last }))
    return new LoggedStore(init, log)
  }

  get (key: string): Uint8Array | undefined {
    for (const layer of this.#newestFirst()) {
      const value = layer?.get(key)
      if (value !== undefined) return value ?? undefined
    }
    return this.#store.get(key)
  }

  * range ({ start, end, limit = Infinity, reverse = false }: Parameters<KeyValueStore['range']>[0]): Generator<Entry> {
    let left = limit
    for (const { key, value } of this.#merged(start < AFTER_APPLIED ? AFTER_APPLIED : start, end, reverse)) {
      if (value === null) continue
      if (left-- <= 0) return
      yield { key, value }
    }
  }

  async write (operations: readonly Operation[]): Promise<void> {
    if (operations.length === 0) return
    this.#waiting ??= { layer: new Map(), committed: Promise.withResolvers() }
    const { layer, committed } = this.#waiting
    for (const { key, value } of operations) layer.set(key, value)
    this.#commits ??= this.#commitAll()
    await committed.promise
  }

  /** When what was asked before is durable. */
  async close (): Promise<void> {
    await this.#commits
    await this.#settled
    await this.#log.close()
    await this.#store.close()
  }

  async #commitAll (): Promise<void> {
    await this.#turn() // for the rest of this one
    for (let group; (group = this.#waiting) !== undefined;) {
      this.#waiting = undefined
      this.#committing = group
      try {
        await this.#commit(group.layer)
        group.committed.resolve()
      } catch (error) {
        group.committed.reject(error)
      }
      this.#committing = undefined
    }
    this.#commits = undefined
  }

  async #commit (layer: Layer): Promise<void> {
    if (this.#broken !== undefined) throw this.#broken
    if (this.#log.bytes >= LOG_BYTES) await this.#turnOver()
    const { operations } = await this.#append(layer)
    for (const { key, value } of operations) this.#recent.set(key, value)
  }

  async #append (layer: Layer): ReturnType<WriteAheadLog['append']> {
    try {
      return await this.#log.append(operationsOf(layer))
    } catch (error) {
      if (errorCodeOf(error) === 'ERR_DISK_FULL') throw new P2pvmError('ERR_DISK_FULL', 'the disk of the record store is full', {}, error)
      // What a disk says once about a page it may not say again: nothing more is taken until a restart has looked at what is there.
      this.#broken = new P2pvmError('ERR_INTERNAL', `the log of the record store failed: ${(error as Error).message}`, {}, error)
      throw this.#broken
    }
  }

  /** Waits for the store to have taken what the other file holds. Its errors. */
  async #turnOver (): Promise<void> {
    await this.#settled
    if (this.#settling !== undefined) await this.#settle(this.#settling) // it could not, before
    this.#settling = { layer: this.#recent, last: this.#log.last }
    this.#recent = new Map()
    this.#log.turnOver()
    this.#settled = this.#settle(this.#settling).catch(() => {}) // it is tried again, and told, when there is no room left
  }

  async #settle (logged: Logged): Promise<void> {
    await this.#store.write(settling(logged))
    this.#settling = undefined
  }

  #newestFirst (): Array<Layer | undefined> {
    return [this.#waiting?.layer, this.#committing?.layer, this.#recent, this.#settling?.layer]
  }

  /** What is in the store and what is on its way there, in order; the latter wins. */
  * #merged (start: string, end: string, reverse: boolean): Generator<{ key: string, value: Uint8Array | null }> {
    const unsettled = new Map<string, Uint8Array | null>()
    for (const layer of this.#newestFirst().reverse()) {
      for (const [key, value] of layer ?? []) if (key >= start && key < end) unsettled.set(key, value)
    }
    const isAhead = (a: string, b: string): boolean => reverse ? a > b : a < b
    const ahead = Array.from(unsettled, ([key, value]) => ({ key, value })).sort((a, b) => isAhead(a.key, b.key) ? -1 : 1)
    let next = 0
    for (const entry of this.#store.range({ start, end, reverse })) {
      for (let one; (one = ahead[next]) !== undefined && isAhead(one.key, entry.key); next++) yield one
      if (!unsettled.has(entry.key)) yield entry
    }
    yield * ahead.slice(next)
  }
}

function operationsOf (layer: Layer): Operation[] {
  return Array.from(layer, ([key, value]) => ({ key, value }))
}

/** What the store takes of a file of the log. */
function settling ({ layer, last }: Logged): Operation[] {
  const mark = Buffer.alloc(SEQUENCE_BYTES)
  mark.writeBigUInt64BE(BigInt(last))
  return [...operationsOf(layer), { key: APPLIED, value: mark }]
}

function sequenceOf (mark: Uint8Array): number {
  return Number(Buffer.from(mark).readBigUInt64BE())
}
