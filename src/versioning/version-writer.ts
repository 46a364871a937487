/**
 * The lower half of a WRITE, from the version number on: assigned, its lease kept, its tree written, complete, published.
 * The chunks are on the fabric by then. State it owns: none.
 */
import { checkChunkSize, type ChunkId } from '../protocols/cid.ts'
import { errorCodeOf, P2pvmError } from '../protocols/errors.ts'
import { untilAvailable } from '../protocols/retry.ts'
import type { Clock, Random } from '../protocols/seams.ts'
import type { Signer } from '../protocols/signatures.ts'
import { RENEW_MS, type VersionRequest } from '../protocols/version-protocol.ts'
import { type Assigned, assignmentOf } from './assignment.ts'
import { checkBlobId } from './blob-id.ts'
import { FAN_OUT_DEFAULT, type GroupMember, type Target, type Version, type VersionId } from './blobs.ts'
import { extentsOfChunks } from './extents.ts'
import { checkImageName } from './image-name.ts'
import type { TreeSource } from './node-store.ts'
import { decodeHeader, type Header } from './publication-codec.ts'
import { BLOB_BYTES_MAX, checkFanOut } from './tree-names.ts'
import { writeTree } from './tree-writer.ts'
import type { VersionClient } from './version-client.ts'

export interface VersionWriterComponents {
  readonly versions: VersionClient
  readonly clock: Clock
  readonly random: Random
  /** What it writes is assigned to this key. */
  readonly signer: Signer
  /** Checks what the version manager showed. */
  readonly shown: (header: Header, signal: AbortSignal | undefined) => Promise<Version>
  readonly sourceOf: (version: Version, signal: AbortSignal | undefined) => Promise<TreeSource>
}

export type Ending = Pick<VersionRequest<'complete'>, 'requestId' | 'message' | 'bytesChanged'>
type Change = VersionRequest<'assign'>['change']

/** What is assigned, and the request that it was assigned to. */
export interface Lease {
  readonly requestId: string
  readonly assigned: Assigned
}

/** Once a version is assigned others wait for it: storage peers that do not answer are asked again for as long. */
const TREE_DEADLINE_MS = 30_000

export class VersionWriter {
  readonly #components: VersionWriterComponents

  constructor (components: VersionWriterComponents) {
    this.#components = components
  }

  async assign (requestId: string, target: Target, change: Change, signal: AbortSignal | undefined): Promise<Assigned> {
    const { versions, signer } = this.#components
    const answer = await versions.ask({ op: 'assign', requestId, target: wireTarget(target), change, writerKey: signer.publicKey }, { signal })
    return assignmentOf(answer, signer)
  }

  async complete (assigned: Assigned, chunks: ReadonlyMap<number, ChunkId | null>, ending: Ending, signal: AbortSignal | undefined): Promise<Version> {
    const { blob, version } = assigned.assignment
    await this.writeTree(assigned, chunks, signal)
    const { published } = await this.#components.versions.ask({ op: 'complete', blob, version, ...ending }, { signal })
    return await this.published({ blob, version }, published, signal)
  }

  async writeTree ({ assignment, base: header, credentials }: Assigned, chunks: ReadonlyMap<number, ChunkId | null>, signal: AbortSignal | undefined): Promise<void> {
    const { shown, sourceOf } = this.#components
    const checked = shown(header, signal)
    checked.catch(() => {}) // awaited below
    await untilAvailable(
      async (signal) => { await writeTree({ assignment, chunks, credentials }, await sourceOf(assignment.base, signal), { signal }) },
      { deadlineMs: TREE_DEADLINE_MS, signal }, this.#components)
    await checked
  }

  /** Of a version that is complete. `signed` is what the version manager has to show of it; null: nothing yet. */
  async published (id: VersionId, signed: Uint8Array | null, signal: AbortSignal | undefined): Promise<Version> {
    const { shown, versions } = this.#components
    return await shown(signed === null ? await versions.waitPublished(id, { signal }) : decodeHeader(signed), signal)
  }

  /** Lets the version manager hear of the writer while `work` is under way. ERR_CONFLICT when it has not, and took him for dead. */
  async whileRenewing<T> (leases: readonly Lease[], signal: AbortSignal | undefined, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const { clock, versions } = this.#components
    const [over, fenced] = [new AbortController(), new AbortController()]
    let refusal: unknown
    const renewing = leases.map(async ({ requestId, assigned: { assignment: { blob, version } } }) => {
      for (;;) {
        await clock.sleep(RENEW_MS, over.signal)
        try {
          await versions.ask({ op: 'renew', requestId, blob, version }, { signal: over.signal })
        } catch (error) {
          // Whatever else it is: the next one may come through, and `complete` has the last word.
          if (errorCodeOf(error) !== 'ERR_CONFLICT') continue
          refusal ??= error
          fenced.abort(error)
          return
        }
      }
    })
    const renewed = Promise.allSettled(renewing) // each ends when it is over
    try {
      return await work(signal === undefined ? fenced.signal : AbortSignal.any([signal, fenced.signal]))
    } catch (error) {
      throw refusal ?? error
    } finally {
      over.abort()
      await renewed
    }
  }
}

/** Where chunks go, and how large the blob is afterwards. ERR_USAGE for a size that none can have. */
export function changeOf ({ chunks, size = 0 }: Pick<GroupMember, 'chunks' | 'size'>, chunkSize: number, extentsMax?: number): Change {
  if (!Number.isSafeInteger(size) || size < 0 || size > BLOB_BYTES_MAX) throw new P2pvmError('ERR_USAGE', `size of a blob: ${size}`)
  return { kind: 'write', extents: extentsOfChunks(chunks.keys(), chunkSize, extentsMax), size }
}

/** The target as the protocol has it; what the version manager would refuse anyhow is refused here, with a better word. */
export function wireTarget (target: Target): VersionRequest<'assign'>['target'] {
  if (target.kind === 'blob') {
    checkBlobId(target.blob)
    return target
  }
  if (target.name !== undefined) checkImageName(target.name)
  if (target.kind === 'new') return { ...target, chunkSize: checkChunkSize(target.chunkSize), fanOut: checkFanOut(target.fanOut ?? FAN_OUT_DEFAULT) }
  checkBlobId(target.source.blob)
  return { ...target, source: { blob: target.source.blob, version: target.source.version } }
}
