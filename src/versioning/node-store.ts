/**
 * Tree nodes on the fabric: many per request, decoded and checked, cached. State it owns: the caches. A published node never
 * changes, and a node that was read under its name is the node of that name, so nothing here ever has to be dropped but for room.
 */
import type { NamedRecord, Records } from '../dht/records.ts'
import { mapAtMost } from '../dht/semaphore.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { Attempts } from './attempts.ts'
import { Certificates, type Credentials } from './certificates.ts'
import { LruCache } from './lru-cache.ts'
import { decodeNode, encodeNode, type TreeNode } from './node-codec.ts'
import { nodeName, type NodeRef } from './tree-names.ts'

/** Leaves of 64 digests are 2.3 KB; some 6,000 of them map 100 GB of image at 256 KiB. */
const CACHE_BYTES_DEFAULT = 16 * 1024 * 1024
/** What the objects around a node's bytes take, measured roughly: 64 views of 32 bytes. */
const DECODED_FACTOR = 4
/** Names in one call of Records: at 2.3 KB each about a megabyte of answer. */
const NODES_PER_BATCH = 512
/** A batch goes to every replica's peer, and W of them sync their disk: two keep them busy, more only queue there. */
const BATCHES_AT_ONCE = 2
const BATCH_BYTES_MAX = 512 * 1024

export interface NodeStoreComponents {
  readonly records: Records
  /** The public half, raw. */
  readonly fabricKey: Uint8Array
}

export interface NodeStoreInit {
  readonly cacheBytesMax?: number
}

/** Nodes, and which attempts at their versions count. */
export interface TreeSource {
  readonly nodes: NodeStore
  readonly attempts: Attempts
}

interface Wanted {
  readonly ref: NodeRef
  readonly attempt: number
}

type Options = { readonly signal?: AbortSignal | undefined }

export class NodeStore {
  readonly #records: Records
  readonly #certificates: Certificates
  readonly #cache: LruCache<TreeNode>

  constructor ({ records, fabricKey }: NodeStoreComponents, { cacheBytesMax = CACHE_BYTES_DEFAULT }: NodeStoreInit = {}) {
    this.#records = records
    this.#certificates = new Certificates(fabricKey)
    this.#cache = new LruCache(cacheBytesMax)
  }

  /** In the order asked for, of the attempts that count. ERR_MISSING when one is nowhere, ERR_UNAVAILABLE when somebody who could have it did not answer. */
  async get (refs: readonly NodeRef[], attempts: Attempts, { signal }: Options = {}): Promise<TreeNode[]> {
    const found = new Map<string, TreeNode>()
    const missing = new Map<string, Wanted>()
    const asked = refs.map((ref) => nodeName(ref, attempts.of(ref)))
    for (const [at, name] of asked.entries()) {
      const cached = this.#cache.get(name)
      if (cached === undefined) missing.set(name, { ref: refs[at]!, attempt: attempts.of(refs[at]!) })
      else found.set(name, cached)
    }
    const names = [...missing.keys()]
    const batches = Array.from({ length: Math.ceil(names.length / NODES_PER_BATCH) },
      (_, at) => names.slice(at * NODES_PER_BATCH, (at + 1) * NODES_PER_BATCH))
    await mapAtMost(BATCHES_AT_ONCE, batches, async (batch) => {
      const nodes = await this.#fetch(batch, missing, signal)
      for (const [at, name] of batch.entries()) found.set(name, nodes[at]!)
    })
    return asked.map((name) => found.get(name)!)
  }

  async #fetch (names: readonly string[], wanted: ReadonlyMap<string, Wanted>, signal: AbortSignal | undefined): Promise<TreeNode[]> {
    const accepted = new Map<string, TreeNode>()
    const accept = (name: string, value: Uint8Array): boolean => {
      const { ref, attempt } = wanted.get(name)!
      try {
        accepted.set(name, decodeNode(value, ref, attempt, this.#certificates))
        return true
      } catch {
        return false // another replica is asked; this one is reported
      }
    }
    const values = await this.#records.get(names, { signal, accept })
    return names.map((name, at) => {
      const value = values[at]
      if (value === undefined) throw new P2pvmError('ERR_MISSING', `tree node ${name} is on no storage peer`, { name })
      const node = accepted.get(name)!
      this.#cache.set(name, node, value.length * DECODED_FACTOR)
      return node
    })
  }

  /** For a version's new nodes, any number of them, in bounded batches. */
  writer (credentials: Credentials, options: Options = {}): NodeWriter {
    return new NodeWriter(credentials, async (batch) => { await this.#records.put(batch, options) })
  }
}

/** Puts nodes as they come, some batches at once. `flush` when done; the first failure is thrown from the next call. */
export class NodeWriter {
  readonly #credentials: Credentials
  readonly #put: (batch: readonly NamedRecord[]) => Promise<void>
  readonly #underWay = new Set<Promise<void>>()
  #batch: NamedRecord[] = []
  #batchBytes = 0
  readonly #failures: unknown[] = []

  constructor (credentials: Credentials, put: (batch: readonly NamedRecord[]) => Promise<void>) {
    this.#credentials = credentials
    this.#put = put
  }

  async add (node: TreeNode): Promise<void> {
    const value = encodeNode(node, this.#credentials)
    this.#batch.push({ name: nodeName(node, this.#credentials.certificate.attempt), value })
    this.#batchBytes += value.length
    if (this.#batch.length >= NODES_PER_BATCH || this.#batchBytes >= BATCH_BYTES_MAX) await this.#send()
  }

  /** All that was added is durable. */
  async flush (): Promise<void> {
    await this.#send()
    await Promise.all(this.#underWay)
    this.#throwFailure()
  }

  /** Waits for what is under way, so that nobody works on behind the caller's back after a failure elsewhere. */
  async abandon (): Promise<void> {
    this.#batch = []
    await Promise.all(this.#underWay)
  }

  async #send (): Promise<void> {
    while (this.#underWay.size >= BATCHES_AT_ONCE) await Promise.race(this.#underWay)
    this.#throwFailure()
    if (this.#batch.length === 0) return
    const put = this.#put(this.#batch)
      .catch((error: unknown) => { this.#failures.push(error) })
      .finally(() => { this.#underWay.delete(put) })
    this.#underWay.add(put)
    this.#batch = []
    this.#batchBytes = 0
  }

  #throwFailure (): void {
    if (this.#failures.length > 0) throw this.#failures[0]
  }
}
