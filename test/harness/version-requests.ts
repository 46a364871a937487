/** What tests ask of a version manager themselves, without a client: one chunk per version, request ids in their hand. */
import type { VersionRequest } from '../../src/protocols/version-protocol.ts'
import type { AssignRequest } from './asked-manager.ts'
import { MemoryFabric } from './memory-fabric.ts'

export const CHUNK = 4096
export const context = { peer: 'writer', signal: new AbortController().signal }

export const newBlob = (requestId: string, name?: string): VersionRequest<'create'> =>
  ({ op: 'create', requestId, of: { kind: 'new', chunkSize: CHUNK, fanOut: 4 }, ...name === undefined ? {} : { name } })
export const writeTo = (blob: string, requestId: string, chunk = 0, expectedBase?: number): AssignRequest => ({
  op: 'assign',
  requestId,
  target: { kind: 'blob', blob, ...expectedBase === undefined ? {} : { expectedBase } },
  change: { kind: 'write', extents: [{ offset: chunk * CHUNK, size: CHUNK }], size: (chunk + 1) * CHUNK }
})
export const completeOf = (blob: string, version: number, requestId: string): VersionRequest<'complete'> =>
  ({ op: 'complete', requestId, blob, version, message: 'done', bytesChanged: 1 })

export async function withBlob (init?: ConstructorParameters<typeof MemoryFabric>[0]): Promise<{ fabric: MemoryFabric, blob: string }> {
  const fabric = new MemoryFabric(init)
  const { version: { blob } } = await fabric.manager.create(newBlob('create-request'), context)
  return { fabric, blob }
}

/** Assigns and completes, with request id `write-N`. */
export async function publish (fabric: MemoryFabric, blob: string, number: number): Promise<void> {
  const { version } = await fabric.manager.assign(writeTo(blob, `write-${number}`), context)
  await fabric.manager.complete(completeOf(blob, version, `write-${number}`), context)
}

export const recent = async (fabric: MemoryFabric, blob: string): Promise<number> => (await fabric.manager.recent({ op: 'recent', blob })).version.version
