/**
 * The records of a storage peer that lies to those who ask it: now and then it has nothing, or hands out what it has with a bit turned
 * over, or what it has under another name, of the same blob if it can: mostly older.
 */
import type { RecordServiceComponents } from '../../src/dht/record-service.ts'
import type { KeyValueStore } from '../../src/protocols/seams.ts'
import type { SeededRandom } from './seeded-random.ts'

type Store = NonNullable<RecordServiceComponents['store']>

export interface LyingRecordsInit {
  readonly random: SeededRandom
  /** Where the records lie, under `prefix` and their names. */
  readonly entries: KeyValueStore
  readonly prefix: string
  readonly onLie: (name: string) => void
}

const LYING_SHARE = 0.3

export class LyingRecords implements Store {
  readonly #store: Store
  readonly #init: LyingRecordsInit

  constructor (store: Store, init: LyingRecordsInit) {
    this.#store = store
    this.#init = init
  }

  async put (records: Parameters<Store['put']>[0]): ReturnType<Store['put']> {
    return await this.#store.put(records)
  }

  get (name: string): Uint8Array | undefined {
    const { random, onLie } = this.#init
    const value = this.#store.get(name)
    if (value === undefined || random.unit() >= LYING_SHARE) return value
    onLie(name)
    return random.pick([
      () => undefined,
      () => this.#altered(value),
      () => this.#ofAnother(name)
    ])()
  }

  #altered (value: Uint8Array): Uint8Array {
    const altered = Uint8Array.from(value) // a Buffer's slice is no copy
    altered[this.#init.random.below(altered.length)]! ^= 1 << this.#init.random.below(8)
    return altered
  }

  #ofAnother (name: string): Uint8Array | undefined {
    const { entries, prefix, random } = this.#init
    const beginning = `${prefix}${name.split('/').slice(0, 2).join('/')}/`
    const others = Array.from(entries.range({ start: beginning, end: `${beginning}~` }), ({ key }) => key.slice(prefix.length)).filter((other) => other !== name)
    return others.length === 0 ? undefined : this.#store.get(random.pick(others))
  }
}
