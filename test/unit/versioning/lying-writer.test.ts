/** A writer that was assigned a version, and signs nodes that are no part of its tree: nobody but a reader can find out. */
import { describe, expect, test } from 'vitest'
import type { Version } from '../../../src/versioning/blobs.ts'
import { encodeNode, type TreeNode } from '../../../src/versioning/node-codec.ts'
import { nodeName } from '../../../src/versioning/tree-names.ts'
import { MemoryFabric } from '../../harness/memory-fabric.ts'
import { credentialsFor } from '../../harness/versioning-arbitraries.ts'

const CHUNK = 4096
const FAN_OUT = 4
/** Three levels. */
const CHUNKS = FAN_OUT ** 3

async function written (): Promise<{ fabric: MemoryFabric, version: Version }> {
  const fabric = new MemoryFabric()
  const client = fabric.client()
  const { blob } = await client.create({ chunkSize: CHUNK, fanOut: FAN_OUT })
  const version = await client.write(blob, [{ offset: 0, bytes: new Uint8Array(CHUNKS * CHUNK).fill(1) }])
  return { fabric, version }
}

/** Every replica has it: it is the only one that the writer has signed. */
function put ({ records }: MemoryFabric, node: TreeNode): void {
  const name = nodeName(node, 1)
  expect(records.values.has(name)).toBe(true)
  records.values.set(name, encodeNode(node, credentialsFor(node, 1)))
}

async function readThrough (fabric: MemoryFabric, version: Version): Promise<void> {
  for await (const _ of fabric.client('reader').storedChunks(version, { offset: 0, size: version.size }));
}

describe('a tree node with an entry too many', () => {
  const slots = (count: number): Uint8Array[] => Array.from({ length: count }, () => new Uint8Array(32).fill(9))

  test.each<[string, number, (version: Version) => TreeNode]>([
    ['a leaf', 0, ({ blob, version }) => ({ kind: 'leaf', blob, version, level: 0, index: 0, slots: slots(FAN_OUT + 1) })],
    ['an inner node', 1, ({ blob, version }) => ({ kind: 'inner', blob, version, level: 1, index: 1, children: Array.from({ length: FAN_OUT + 1 }, () => ({ blob, version })) })]
  ])('%s, is found out: it would say what its neighbour holds', async (_, level, lie) => {
    const { fabric, version } = await written()
    const before = await fabric.client('reader').chunkIds(version, 0, CHUNKS)
    await readThrough(fabric, version)
    const node = lie(version)
    put(fabric, node)
    const refused = { code: 'ERR_PROTOCOL', fields: { blob: version.blob, version: 1, level, index: node.index } }
    await expect(fabric.client('reader').chunkIds(version, 0, CHUNKS)).rejects.toMatchObject(refused)
    await expect(readThrough(fabric, version)).rejects.toMatchObject(refused)
    // Where it plays no part nothing is wrong.
    expect(await fabric.client('reader').chunkIds(version, 2 * FAN_OUT ** 2, FAN_OUT ** 2)).toEqual(before.slice(2 * FAN_OUT ** 2, 3 * FAN_OUT ** 2))
  })

  test('that is within the fan-out is read', async () => {
    const { fabric, version: { blob, version }, version: whole } = await written()
    put(fabric, { kind: 'leaf', blob, version, level: 0, index: 0, slots: slots(FAN_OUT) })
    expect(new Set((await fabric.client('reader').chunkIds(whole, 0, 2 * FAN_OUT))).size).toBe(2)
  })
})
