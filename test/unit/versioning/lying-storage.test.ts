/** Storage peers that answer with something else: it is found out, they are reported, and another replica's answer is read. */
import { beforeAll, describe, expect, test } from 'vitest'
import { LEASE_MS } from '../../../src/protocols/version-protocol.ts'
import { encodeNode, type LeafNode } from '../../../src/versioning/node-codec.ts'
import { decodePublication, type Publication, sealPublication } from '../../../src/versioning/publication-codec.ts'
import { certify } from '../../../src/versioning/certificates.ts'
import { nodeName, versionName } from '../../../src/versioning/tree-names.ts'
import { MortalWriters } from '../../harness/mortal-writers.ts'
import { fabricSigner, namedSigner } from '../../harness/signers.ts'
import { StorageFabric } from '../../harness/storage-fabric.ts'
import { credentialsFor } from '../../harness/versioning-arbitraries.ts'

const LEASE_BYTES = 8
/** Version 3 was aborted; its writer's nodes are there all the same. */
let run: MortalWriters
let blob: string

beforeAll(async () => {
  run = await new MortalWriters().begin(64)
  for (const chunks of [[0, 1], [1, 2]]) await (await run.write({ fate: 'lives', chunks }))()
  await run.write({ fate: 'dies after all nodes', chunks: [0, 3] })
  await run.clock.advance(LEASE_MS + 100)
  await (await run.write({ fate: 'lives', chunks: [2] }))()
  expect(await run.check()).toEqual([1, 1, 1, 2, 1])
  blob = run.blob
})

const leaf = (version: number, attempt = 1): string => nodeName({ blob, version, level: 0, index: 0 }, attempt)
const valueOf = (name: string): Uint8Array => run.fabric.records.values.get(name)!
const flipped = (value: Uint8Array, at: number): Uint8Array => value.with(at, value.at(at)! ^ 1)
const otherLeaf = (version: number): LeafNode => ({ blob, version, level: 0, index: 0, kind: 'leaf', slots: [new Uint8Array(32).fill(9)] })

/** Every peer has everything, and the one that is asked first for `name` has `value` instead. */
async function fabricWithLiar (name: string, value: Uint8Array): Promise<{ fabric: StorageFabric, liar: string }> {
  const fabric = await StorageFabric.of(3)
  const entries = [...run.fabric.records.values].map(([name, value]) => ({ name, value }))
  for (const { records } of fabric.peers.values()) await records.put(entries)
  const liar = fabric.placementOfRecord(name)[0]!
  const entry = new Uint8Array(LEASE_BYTES + value.length)
  entry.set(value, LEASE_BYTES)
  await fabric.peer(liar).recordDisk.write([{ key: `record/${name}`, value: entry }])
  return { fabric, liar }
}

async function readsRight (version: number, name: string, value: Uint8Array): Promise<void> {
  const { fabric, liar } = await fabricWithLiar(name, value)
  const { records, membership, counters, warnings } = fabric.client('reader')
  const reader = run.fabric.client('reader', { records })
  const found = await reader.version({ blob, version })
  const expected = run.expected[version]!
  expect(await reader.chunkIds(found, 0, expected.length)).toEqual(expected)
  expect(found).toEqual((await run.log())[version])
  expect(counters.value('record_corrupt_total', { peer: liar })).toBeGreaterThan(0)
  expect(membership.reports).toContainEqual([liar, 'failed'])
  expect(warnings.some((one) => one.includes('do not match'))).toBe(true)
}

describe('a tree node', () => {
  test.each<[string, number, () => [string, Uint8Array]]>([
    ['that was altered', 2, () => [leaf(2), flipped(valueOf(leaf(2)), 90)]],
    ['with another signature', 2, () => [leaf(2), flipped(valueOf(leaf(2)), 3)]],
    ['with an altered certificate', 2, () => [leaf(2), flipped(valueOf(leaf(2)), -1)]],
    ['of another version', 2, () => [leaf(2), valueOf(leaf(1))]],
    ['of an attempt that was aborted', 3, () => [leaf(3, 2), valueOf(leaf(3, 1))]],
    ['that another writer of the blob wrote, with his own certificate', 2, () =>
      [leaf(2), encodeNode(otherLeaf(2), { certificate: { ...credentialsFor({ blob, version: 1 }, 1).certificate, version: 2 }, signer: namedSigner('writer') })]],
    ['of somebody without a certificate', 2, () => {
      const signer = namedSigner('a storage peer')
      return [leaf(2), encodeNode(otherLeaf(2), { certificate: certify({ blob, version: 2, attempt: 1, writerKey: signer.publicKey }, signer), signer })]
    }]
  ])('%s', async (_, version, lie) => { await readsRight(version, ...lie()) })
})

describe('a publication record', () => {
  test.each<[string, () => Uint8Array]>([
    ['that was altered', () => flipped(valueOf(versionName(blob, 4)), 120)],
    ['of an older version', () => valueOf(versionName(blob, 2))],
    ['that another key signed', () => {
      const { header: { version, links }, extents, exceptions } = decodePublication(valueOf(versionName(blob, 4)), { blob, version: 4 }, fabricSigner.publicKey)
      const publication: Publication = { version: { ...version, size: 1 }, sizeBefore: 0, extents, exceptions }
      return sealPublication(publication, links, namedSigner('a storage peer')).value
    }]
  ])('%s', async (_, lie) => { await readsRight(4, versionName(blob, 4), lie()) })
})

test('when nobody has the right one it is corrupt, and not something else', async () => {
  const { fabric } = await fabricWithLiar(leaf(2), new Uint8Array(5))
  for (const { recordDisk } of fabric.peers.values()) await recordDisk.write([{ key: `record/${leaf(2)}`, value: new Uint8Array(100) }])
  const reader = run.fabric.client('reader', { records: fabric.client('reader').records })
  const version = await reader.version({ blob, version: 2 })
  await expect(reader.chunkIds(version, 0, 3)).rejects.toMatchObject({ code: 'ERR_CORRUPT' })
})
