/**
 * `KeyValueStore` with a log in front of an ordered store: a write is durable with one append and one sync of the log, and reaches the
 * store later, together with thousands of others. What was written and removed in between never gets there. (As in etcd and PostgreSQL.)
 *
 * A `write` is applied whole or not at all. Those of one turn of the event loop, and those that come while an entry is on its way to the
 * disk, share the next entry: group commit. With LOG_BYTES in it the log turns over: the store takes what it held, in one transaction,
 * while the log's other file takes what comes. When the store cannot (its disk is full), that file fills, and then writes are refused with
 * the reason, tried anew with each; nothing that was acknowledged is lost. A start reads the log and goes on with it: it needs no room in
 * the store.
 *
 * State it owns: the log, the writes that are on their way to it, and those that are in it and not in the store, which readers see.
 */
import assert from 'node:assert/strict'
import { P2pvmError, errorCodeOf } from '../protocols/errors.ts'
import type { Disk, KeyValueStore, Random } from '../protocols/seams.ts'
import { type LogEntry, type Operation, WriteAheadLog } from './write-ahead-log.ts'

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
  readonly random: Pick<Random, 'bytes'>
  /** Resolves when the rest of what comes in this turn of the event loop has come. */
  readonly turn: () => Promise<void>
  /** When a file of the log has so much in it, the other one is taken: LOG_BYTES unless told. */
  readonly logBytes?: number
}

/** What the store knows of the log. */
interface Mark {
  /** Sequence of the last entry that the store has taken. */
  readonly applied: number
  /** Of the log's checks. */
  readonly seed: number
}

/** Some hundred versions: few enough for every range to look through, and no more work than with a MiB. */
export const LOG_BYTES = 256 * 1024
/** lmdb's bound. */
const KEY_CHARACTERS_MAX = 1978
/** In the store: `applied`, 8 bytes, and `seed`, 4, big-endian. Before every other key. */
const MARK = '\0'
const AFTER_MARK = '\0\0'
const APPLIED_BYTES = 8
const SEED_BYTES = 4

export class LoggedStore implements KeyValueStore {
  readonly #store: KeyValueStore
  readonly #log: WriteAheadLog
  readonly #seed: number
  readonly #turn: () => Promise<void>
  readonly #logBytes: number
  /** For the next entry, and the one that is on its way to the disk. */
  #waiting: Group | undefined
  #committing: Group | undefined
  /** In the file of the log that is used; and in the other one, of which the store has not all yet. */
  #recent: Layer
  #settling: Logged | undefined
  /** While there are groups. Neither rejects. */
  #commits: Promise<void> | undefined
  #settled: Promise<void> | undefined
  #broken: P2pvmError | undefined
  #closing: Promise<void> | undefined

  private constructor ({ store, turn, logBytes = LOG_BYTES }: LoggedStoreInit, { log, before, current }: Awaited<ReturnType<typeof WriteAheadLog.open>>, seed: number) {
    this.#store = store
    this.#turn = turn
    this.#logBytes = logBytes
    this.#log = log
    this.#seed = seed
    this.#recent = layerOf(current)
    const last = before.at(-1)
    if (last !== undefined) this.#settling = { layer: layerOf(before), last: last.sequence }
  }

  /** ERR_CORRUPT; ERR_DISK_FULL for a new store. */
  static async open (init: LoggedStoreInit): Promise<LoggedStore> {
    const { store, disk, path, random } = init
    const mark = markOf(store)
    const seed = mark?.seed ?? Buffer.from(random.bytes(SEED_BYTES)).readUInt32BE()
    const logged = await WriteAheadLog.open({ disk, path, applied: mark?.applied, seed })
    try {
      if (mark === undefined) await store.write(settling({ layer: new Map(), last: 0 }, seed))
    } catch (error) {
      await logged.log.close()
      throw error
    }
    return new LoggedStore(init, logged, seed)
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
    for (const { key, value } of this.#merged(start < AFTER_MARK ? AFTER_MARK : start, end, reverse)) {
      if (value === null) continue
      if (left-- <= 0) return
      yield { key, value }
    }
  }

  async write (operations: readonly Operation[]): Promise<void> {
    const wrong = operations.find(({ key }) => !isKey(key))
    assert(wrong === undefined, `not a key: ${JSON.stringify(wrong?.key)}`)
    if (this.#closing !== undefined) throw new P2pvmError('ERR_UNAVAILABLE', 'the record store is closed')
    if (operations.length === 0) return
    this.#waiting ??= { layer: new Map(), committed: Promise.withResolvers() }
    const { layer, committed } = this.#waiting
    for (const { key, value } of operations) layer.set(key, value)
    this.#commits ??= this.#commitAll()
    await committed.promise
  }

  /** When what was asked before is durable, or was refused. The store need not have all of it: the log keeps it. */
  async close (): Promise<void> {
    await (this.#closing ??= this.#close())
  }

  async #close (): Promise<void> {
    await this.#commits
    await this.#settled
    try {
      await this.#log.close()
    } finally {
      await this.#store.close()
    }
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
    if (this.#log.bytes >= this.#logBytes) await this.#turnOver()
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
    if (this.#settling !== undefined) await this.#settle(this.#settling) // it could not, or another process did not
    this.#settling = { layer: this.#recent, last: this.#log.last }
    this.#recent = new Map()
    this.#log.turnOver()
    this.#settled = this.#settle(this.#settling).catch(() => {}) // it is tried again, and told, when there is no room left
  }

  async #settle (logged: Logged): Promise<void> {
    await this.#store.write(settling(logged, this.#seed))
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

function layerOf (entries: readonly LogEntry[]): Layer {
  return new Map(entries.flatMap(({ operations }) => operations.map(({ key, value }) => [key, value] as const)))
}

/** ASCII: JavaScript orders them as their bytes. What lies before all of them is ours. */
function isKey (key: string): boolean {
  return key.length > 0 && key.length <= KEY_CHARACTERS_MAX && Buffer.byteLength(key) === key.length && !key.includes('\0')
}

/** What the store takes of a file of the log. */
function settling ({ layer, last }: Logged, seed: number): Operation[] {
  return [...operationsOf(layer), { key: MARK, value: encodeMark({ applied: last, seed }) }]
}

function encodeMark ({ applied, seed }: Mark): Uint8Array {
  const bytes = Buffer.alloc(APPLIED_BYTES + SEED_BYTES)
  bytes.writeBigUInt64BE(BigInt(applied))
  bytes.writeUInt32BE(seed, APPLIED_BYTES)
  return bytes
}

/** undefined: there was never a log. ERR_CORRUPT. */
export function markOf (store: Pick<KeyValueStore, 'get'>): Mark | undefined {
  const value = store.get(MARK)
  if (value === undefined) return undefined
  const bytes = Buffer.from(value)
  if (bytes.length !== APPLIED_BYTES + SEED_BYTES) throw new P2pvmError('ERR_CORRUPT', 'what the record store says of its log is malformed')
  return { applied: Number(bytes.readBigUInt64BE()), seed: bytes.readUInt32BE(APPLIED_BYTES) }
}
