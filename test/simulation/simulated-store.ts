/**
 * What a peer's key-value store is on: a disk for its log, and the store behind that, under one power. `open` runs the production class
 * over both. The power's names: `write NAME` makes a write durable, `append NAME` comes before it, `settle NAME` is the store's.
 */
import { LoggedStore, markOf } from '../../src/dht/logged-store.ts'
import { entriesAfter } from '../../src/dht/write-ahead-log.ts'
import type { KeyValueStore } from '../../src/protocols/seams.ts'
import { SimulatedDisk, type SimulatedDiskInit, SimulatedKeyValueStore } from './simulated-disk.ts'
import type { SimulatedProcess } from './simulated-process.ts'

/** A few versions: it turns over again and again. */
const LOG_BYTES = 4096
const PATH = '/store'

export class SimulatedStore {
  readonly #name: string
  readonly #disk: SimulatedDisk
  readonly #store: SimulatedKeyValueStore

  private constructor (name: string, disk: SimulatedDisk, store: SimulatedKeyValueStore) {
    this.#name = name
    this.#disk = disk
    this.#store = store
  }

  /** As `before` is after a power cut, or empty. */
  static insert (name: string, before: SimulatedStore | undefined, process: SimulatedProcess): SimulatedStore {
    const init: SimulatedDiskInit = { power: process.power, clock: process.clock, name }
    if (before !== undefined) return new SimulatedStore(name, before.#disk.recover(init), before.#store.recover(process.power))
    return new SimulatedStore(name, new SimulatedDisk(init), new SimulatedKeyValueStore(process.power, new Map(), `settle ${name}`))
  }

  async open (process: SimulatedProcess): Promise<KeyValueStore> {
    return await LoggedStore.open({ store: this.#store, disk: this.#disk, path: PATH, random: process.random.fork(this.#name), turn: async () => {}, logBytes: LOG_BYTES })
  }

  /** What a power cut at this moment would leave at the least. */
  get durable (): ReadonlyMap<string, Uint8Array> {
    const content = new Map(this.#store.durable)
    const mark = markOf(content)
    if (mark === undefined) return content
    const files = [`${PATH}.log-0`, `${PATH}.log-1`].map((path) => this.#disk.durable(path) ?? new Uint8Array(0))
    for (const { key, value } of entriesAfter(mark.applied, files, { path: PATH, seed: mark.seed }).flatMap(({ operations }) => operations)) {
      if (value === null) content.delete(key)
      else content.set(key, value)
    }
    return content
  }
}
