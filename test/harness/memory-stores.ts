/**
 * Stores in memory for tests of what lies above them: a key-value store that can crash, and the fabric's records and chunks
 * without a fabric. They keep the contracts' promises (write-once names, verified bytes) and break down when told to.
 */
import type { ChunkAudit, Chunks, PutOutcome } from '../../src/dht/chunks.ts'
import type { NamedRecord, Records } from '../../src/dht/records.ts'
import { type ChunkId, isZero, matches } from '../../src/protocols/cid.ts'
import { P2pvmError } from '../../src/protocols/errors.ts'
import type { KeyValueStore } from '../../src/protocols/seams.ts'

type Operations = Parameters<KeyValueStore['write']>[0]

/** What happens to a write: nothing unless the test says so. `at` counts all writes of this store from 1. */
export type WriteFate = (at: number) => 'kept' | 'lost' | 'kept, not answered' | 'disk full'

export class MemoryKeyValueStore implements KeyValueStore {
  readonly #visible: Map<string, Uint8Array>
  readonly #durable: Map<string, Uint8Array>
  readonly #crashed = Promise.withResolvers<never>()
  #dead = false
  #gate: Promise<void> = Promise.resolve()
  fate: WriteFate = () => 'kept'
  writes = 0

  constructor (content: ReadonlyMap<string, Uint8Array> = new Map()) {
    this.#visible = new Map(content)
    this.#durable = new Map(content)
    this.#crashed.promise.catch(() => {})
  }

  get (key: string): Uint8Array | undefined {
    if (this.#dead) throw crashed()
    return this.#visible.get(key)
  }

  * range ({ start, end, limit = Infinity, reverse = false }: Parameters<KeyValueStore['range']>[0]): Generator<{ key: string, value: Uint8Array }> {
    if (this.#dead) throw crashed()
    const keys = [...this.#visible.keys()].filter((key) => key >= start && key < end).sort()
    if (reverse) keys.reverse()
    for (const key of keys.slice(0, limit)) yield { key, value: this.#visible.get(key)! }
  }

  async write (operations: Operations): Promise<void> {
    if (this.#dead) return await this.#crashed.promise
    this.writes += 1
    const fate = this.fate(this.writes)
    if (fate === 'disk full') throw new P2pvmError('ERR_DISK_FULL', 'the disk is full')
    apply(operations, this.#visible)
    if (fate === 'lost') this.#die()
    await this.#gate
    if (this.#dead) return await this.#crashed.promise
    apply(operations, this.#durable)
    if (fate === 'kept, not answered') {
      this.#die()
      return await this.#crashed.promise
    }
  }

  async close (): Promise<void> {}

  /** Until the returned function is called, nothing gets to the disk. */
  hold (): () => void {
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#gate = promise
    return resolve
  }

  get dead (): boolean {
    return this.#dead
  }

  /** Power is gone: what was not on disk is lost, and nobody who waits for this store gets anything but an error. */
  crash (): MemoryKeyValueStore {
    this.#die()
    return new MemoryKeyValueStore(this.#durable)
  }

  #die (): void {
    this.#dead = true
    this.#crashed.reject(crashed())
  }
}

function crashed (): P2pvmError {
  return new P2pvmError('ERR_UNAVAILABLE', 'crashed')
}

function apply (operations: Operations, map: Map<string, Uint8Array>): void {
  for (const { key, value } of operations) {
    if (value === null) map.delete(key)
    else map.set(key, value.slice())
  }
}

export class MemoryRecords implements Records {
  readonly values = new Map<string, Uint8Array>()
  /** What the replica that is asked first says instead. */
  readonly lies = new Map<string, Uint8Array>()
  /** Names in the order in which they were first stored. */
  readonly stored: string[] = []
  /** Calls of get with at least one name. */
  gets = 0
  down = false
  /** Awaited before a put takes effect. */
  beforePut: (records: readonly NamedRecord[]) => Promise<void> = async () => {}

  async put (records: readonly NamedRecord[]): Promise<void> {
    await this.beforePut(records)
    if (this.down) throw new P2pvmError('ERR_UNAVAILABLE', 'no storage peer answers')
    for (const { name, value } of records) {
      const before = this.values.get(name)
      if (before !== undefined && Buffer.compare(before, value) !== 0) throw new P2pvmError('ERR_CONFLICT', `${name} has another value`, { name })
      if (before === undefined) this.stored.push(name)
      this.values.set(name, value.slice())
    }
  }

  async get (names: readonly string[], { accept = () => true }: Parameters<Records['get']>[1] = {}): Promise<Array<Uint8Array | undefined>> {
    if (this.down) throw new P2pvmError('ERR_UNAVAILABLE', 'no storage peer answers')
    if (names.length > 0) this.gets += 1
    return names.map((name) => [this.lies.get(name), this.values.get(name)].find((value) => value !== undefined && accept(name, value)))
  }
}

export class MemoryChunks implements Chunks {
  readonly values = new Map<ChunkId, Uint8Array>()
  puts = 0
  down = false

  async put (id: ChunkId, bytes: Uint8Array): Promise<PutOutcome> {
    if (this.down) throw new P2pvmError('ERR_UNAVAILABLE', 'no storage peer answers')
    if (!matches(id, bytes)) throw new P2pvmError('ERR_CORRUPT', `${id} is not what these bytes are called`)
    if (isZero(bytes)) throw new P2pvmError('ERR_USAGE', 'a chunk of zeros is a hole and is not stored', { cid: id })
    this.puts += 1
    const isNew = !this.values.has(id)
    this.values.set(id, bytes.slice())
    const newBytes = isNew ? bytes.length : 0
    return { isNew, storedBytes: newBytes, replicas: 1, settled: Promise.resolve({ replicas: 1, wanted: 1, sentBytes: newBytes }) }
  }

  async get (id: ChunkId): Promise<Uint8Array> {
    if (this.down) throw new P2pvmError('ERR_UNAVAILABLE', 'no storage peer answers')
    const bytes = this.values.get(id)
    if (bytes === undefined) throw new P2pvmError('ERR_MISSING', `${id} is nowhere`, { cid: id })
    return bytes
  }

  async audit (ids: readonly ChunkId[]): Promise<ChunkAudit[]> {
    return ids.map((id) => ({ found: this.values.has(id) ? ['memory'] : [], corrupt: [], unreachable: [], wanted: 1 }))
  }
}
