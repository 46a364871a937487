/** A version manager and a blob client over stores in memory, in one process, without a transport: for tests of versioning. */
import type { Records } from '../../src/dht/records.ts'
import { nodeClock } from '../../src/node/world.ts'
import { P2pvmError } from '../../src/protocols/errors.ts'
import type { Clock, Log, Random } from '../../src/protocols/seams.ts'
import { BlobClient } from '../../src/versioning/blob-client.ts'
import { VersionClient } from '../../src/versioning/version-client.ts'
import { VersionManager } from '../../src/versioning/version-manager.ts'
import { AskedManager } from './asked-manager.ts'
import { MemoryChunks, MemoryKeyValueStore, MemoryRecords } from './memory-stores.ts'
import { fabricSigner, namedSigner } from './signers.ts'

const silentLog: Log = { debug () {}, info () {}, warn () {}, error () {} }

/** xorshift32: the same seed, the same numbers. */
function seededRandom (seed: number): Random {
  let state = seed >>> 0 || 1
  const next = (): number => {
    state ^= state << 13
    state >>>= 0
    state ^= state >>> 17
    state ^= state << 5
    state >>>= 0
    return state
  }
  return {
    bytes: (count) => Uint8Array.from({ length: count }, () => next() & 0xff),
    unit: () => next() / 2 ** 32
  }
}

/** That versions are published is durable after this at the latest, in ms. */
export const MARKED_MS = 1000

export class MemoryFabric {
  readonly records = new MemoryRecords()
  readonly chunks = new MemoryChunks()
  readonly clock: Clock
  readonly random: Random
  store = new MemoryKeyValueStore()
  manager: AskedManager
  readonly fabricKey = fabricSigner.publicKey

  constructor ({ seed = 1, clock = nodeClock }: { seed?: number, clock?: Clock } = {}) {
    this.clock = clock
    this.random = seededRandom(seed)
    this.manager = this.#start()
  }

  /** A new manager over what the old one had on disk. */
  restart (): AskedManager {
    void this.manager.stop()
    this.store = this.store.crash()
    this.manager = this.#start()
    return this.manager
  }

  /** A client with caches of its own, of whatever manager there is when it asks. */
  client (peer = 'writer', { deadlineMs = 1000, records = this.records }: { deadlineMs?: number, records?: Records } = {}): BlobClient {
    const { chunks, clock, random } = this
    const gone = async (): Promise<never> => { throw new P2pvmError('ERR_UNAVAILABLE', 'the version manager is gone') }
    const fabric = this
    const versions = new VersionClient({
      transport: { self: peer, request: gone },
      clock,
      random,
      locate: async () => peer,
      get local () { return fabric.store.dead ? undefined : fabric.manager.service }
    }, { deadlineMs })
    return new BlobClient({ chunks, records, versions, clock, random, signer: namedSigner(peer), fabricKey: this.fabricKey, log: silentLog })
  }

  #start (): AskedManager {
    const { store, records, clock, random } = this
    return new AskedManager(new VersionManager({ store, records, clock, random, log: silentLog, signer: fabricSigner }))
  }
}
