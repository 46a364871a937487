/** One blob, written chunk by chunk by writers of whom some die between `assign` and `complete`, and what each version must read as. */
import { expect } from 'vitest'
import type { NamedRecord, Records } from '../../src/dht/records.ts'
import { type ChunkId, chunkIdOf } from '../../src/protocols/cid.ts'
import { Attempts } from '../../src/versioning/attempts.ts'
import type { Version } from '../../src/versioning/blobs.ts'
import { extentsOfChunks } from '../../src/versioning/extents.ts'
import { NodeStore } from '../../src/versioning/node-store.ts'
import { writeTree } from '../../src/versioning/tree-writer.ts'
import { FakeClock } from './fake-clock.ts'
import type { AskedManager, AssignRequest } from './asked-manager.ts'
import { MemoryFabric } from './memory-fabric.ts'

export const CHUNK = 4096
export const context = { peer: 'writer', signal: new AbortController().signal }

export type Fate = 'lives' | 'dies at once' | 'dies after some nodes' | 'dies after all nodes'

interface Write {
  readonly fate: Fate
  readonly chunks: readonly number[]
  readonly sizeChunks?: number
}

const idOf = (requestId: string, chunk: number): ChunkId => chunkIdOf(Buffer.from(`${requestId} wrote ${chunk}`))

/** Stores the first half of every batch, and then fails. */
function halfOf (records: Records): Records {
  return {
    get: async (names, options) => await records.get(names, options),
    put: async (batch: readonly NamedRecord[]) => {
      await records.put(batch.slice(0, Math.ceil(batch.length / 2)))
      throw new Error('died')
    }
  }
}

export class MortalWriters {
  readonly clock = new FakeClock()
  readonly fabric = new MemoryFabric({ clock: this.clock })
  readonly expected: Array<Array<ChunkId | null>> = [[]]
  blob = ''
  #count = 0

  async begin (fanOut = 4): Promise<this> {
    const { version } = await this.fabric.manager.create({ op: 'create', requestId: 'create-it', of: { kind: 'new', chunkSize: CHUNK, fanOut } }, context)
    this.blob = version.blob
    return this
  }

  request (chunks: readonly number[], { requestId = `request-${this.#count++}`, sizeChunks = Math.max(-1, ...chunks) + 1 } = {}): AssignRequest {
    return {
      op: 'assign', requestId, target: { kind: 'blob', blob: this.blob },
      change: { kind: 'write', extents: extentsOfChunks(chunks, CHUNK), size: sizeChunks * CHUNK }
    }
  }

  /** Returns the writer's last step, or what a dead one would do if it came back. */
  async write ({ fate, chunks, sizeChunks }: Write): Promise<() => Promise<Version | null>> {
    const request = this.request(chunks, sizeChunks === undefined ? {} : { sizeChunks })
    const { requestId } = request
    const assignment = await this.fabric.manager.assign(request, context)
    const content = [...this.expected.at(-1)!]
    while (content.length < assignment.sizeAfter / CHUNK) content.push(null)
    if (fate === 'lives') for (const chunk of chunks) content[chunk] = idOf(requestId, chunk)
    this.expected.push(content)
    await this.#tree(assignment, requestId, fate, chunks)
    return async () => await this.complete(assignment.version, requestId)
  }

  async #tree ({ credentials, ...assignment }: Awaited<ReturnType<AskedManager['assign']>>, requestId: string, fate: Fate, chunks: readonly number[]): Promise<void> {
    if (fate === 'dies at once') return
    const { records } = this.fabric
    const nodes = new NodeStore({ records: fate === 'dies after some nodes' ? halfOf(records) : records, fabricKey: this.fabric.fabricKey })
    const source = await this.#sourceFor(assignment.base, nodes)
    const written = writeTree({ assignment, chunks: new Map(chunks.map((chunk) => [chunk, idOf(requestId, chunk)])), credentials }, source)
    if (fate === 'dies after some nodes') await expect(written).rejects.toThrow('died')
    else await written
  }

  /** A writer knows which attempts its base is read by. */
  async #sourceFor (base: Version, nodes: NodeStore): Promise<{ nodes: NodeStore, attempts: Attempts }> {
    const exceptions = Array.from({ length: base.version + 1 }, (_, version) => ({ blob: this.blob, version, attempt: this.#isAborted(version) ? 2 : 1 }))
    return { nodes, attempts: new Attempts(exceptions) }
  }

  #isAborted (version: number): boolean {
    return this.fabric.records.stored.some((name) => name.startsWith(`node/${this.blob}/${version}.2/`))
  }

  async complete (version: number, requestId: string): Promise<Version | null> {
    return (await this.fabric.manager.complete({ op: 'complete', requestId, blob: this.blob, version, message: '', bytesChanged: 0 }, context)).published
  }

  async log (): Promise<Version[]> {
    return (await this.fabric.manager.log({ op: 'log', blob: this.blob, from: 0 })).versions
  }

  /** All published so far read right, to a reader with nothing but storage peers. Returns their attempts. */
  async check (): Promise<number[]> {
    const versions = await this.log()
    for (const answered of versions) {
      const reader = this.fabric.client('reader')
      const version = await reader.version(answered)
      expect(version).toEqual(answered)
      const expected = this.expected[version.version]!
      expect(version.size).toBe(expected.length * CHUNK)
      expect(await reader.chunkIds(version, 0, expected.length), `version ${version.version}`).toEqual(expected)
    }
    return versions.map(({ attempt }) => attempt)
  }
}
