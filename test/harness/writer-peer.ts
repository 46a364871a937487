/**
 * A writer in the test's own process that takes the steps of a WRITE one at a time, so that a test decides who is first at
 * each: chunks, then a version number, then the tree, then `complete`.
 */
import { randomBytes, randomUUID } from 'node:crypto'
import { ReplicatedChunks } from '../../src/dht/replicated-chunks.ts'
import { ReplicatedRecords } from '../../src/dht/replicated-records.ts'
import { ACKNOWLEDGEMENTS_DEFAULT, REPLICAS_DEFAULT } from '../../src/dht/replication.ts'
import { probeFabric } from '../../src/node/probe-fabric.ts'
import { nodeClock, nodeRandom } from '../../src/node/world.ts'
import { type ChunkId, chunkIdOf } from '../../src/protocols/cid.ts'
import { P2pvmError } from '../../src/protocols/errors.ts'
import { signerOf } from '../../src/protocols/signatures.ts'
import { type Assignment, assignmentOf } from '../../src/versioning/assignment.ts'
import { Attempts } from '../../src/versioning/attempts.ts'
import { BlobClient } from '../../src/versioning/blob-client.ts'
import type { Extent, Version } from '../../src/versioning/blobs.ts'
import { NodeStore } from '../../src/versioning/node-store.ts'
import { decodeHeader } from '../../src/versioning/publication-codec.ts'
import { writeTree } from '../../src/versioning/tree-writer.ts'
import { VersionClient } from '../../src/versioning/version-client.ts'
import type { FabricPeer } from '../../testnet/fabric.ts'
import { FabricGuest } from './fabric-guest.ts'

const REPLICATION = { replicas: REPLICAS_DEFAULT, acknowledgements: ACKNOWLEDGEMENTS_DEFAULT }

export interface AssignedWrite {
  readonly assignment: Assignment
  /** The tree, then `complete`: the published version, or null while one before it is not complete. */
  finish (chunks: ReadonlyMap<number, ChunkId>): Promise<Version | null>
}

export class WriterPeer {
  readonly #guest: FabricGuest
  readonly #chunks: ReplicatedChunks
  readonly #nodes: NodeStore
  readonly #signer = signerOf(randomBytes(32))
  readonly versions: VersionClient
  /** All steps in one. */
  readonly blobs: BlobClient

  static async join (host: FabricPeer): Promise<WriterPeer> {
    const guest = await FabricGuest.join(host)
    const { fabric } = await probeFabric(host.addresses.slice(0, 1), { clock: nodeClock, log: guest.log, counters: guest.counters })
    return new WriterPeer(guest, fabric.publicKey)
  }

  private constructor (guest: FabricGuest, fabricKey: Uint8Array) {
    const { transport, membership, log, counters } = guest
    const components = { transport, membership, clock: nodeClock, log, counters, random: nodeRandom }
    this.#guest = guest
    this.#chunks = new ReplicatedChunks(components, REPLICATION)
    const records = new ReplicatedRecords(components, REPLICATION)
    this.#nodes = new NodeStore({ records, fabricKey })
    this.versions = new VersionClient({
      ...components,
      async locate () {
        const versions = membership.members().find(({ roles }) => roles.includes('versions'))
        if (versions === undefined) throw new P2pvmError('ERR_UNAVAILABLE', 'no version manager is known')
        return versions.id
      }
    })
    this.blobs = new BlobClient({ ...components, chunks: this.#chunks, records, versions: this.versions, signer: this.#signer, fabricKey })
  }

  /** The pieces of `bytes`, the first of them chunk `first` of a blob. */
  async putChunks (bytes: Uint8Array, first: number, chunkSize: number): Promise<Map<number, ChunkId>> {
    return new Map(await Promise.all(Array.from({ length: Math.ceil(bytes.length / chunkSize) }, async (_, at) => {
      const piece = bytes.subarray(at * chunkSize, (at + 1) * chunkSize)
      const id = chunkIdOf(piece)
      await this.#chunks.put(id, piece)
      return [first + at, id] as const
    })))
  }

  async assign (blob: string, extents: Extent[]): Promise<AssignedWrite> {
    const requestId = randomUUID()
    const size = Math.max(...extents.map(({ offset, size }) => offset + size))
    const { assignment, credentials } = assignmentOf(await this.versions.ask({
      op: 'assign', requestId, target: { kind: 'blob', blob }, change: { kind: 'write', extents, size }, writerKey: this.#signer.publicKey
    }), this.#signer)
    return {
      assignment,
      finish: async (chunks) => {
        await writeTree({ assignment, chunks, credentials }, { nodes: this.#nodes, attempts: Attempts.first })
        const { version } = assignment
        const bytesChanged = extents.reduce((sum, extent) => sum + extent.size, 0)
        const { published } = await this.versions.ask({ op: 'complete', requestId, blob, version, message: '', bytesChanged })
        return published && decodeHeader(published).version
      }
    }
  }

  async leave (): Promise<void> {
    await this.#guest.leave()
  }
}
