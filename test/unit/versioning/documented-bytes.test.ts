/** FORMAT.md tells the truth: its examples are what we write, and what we read. */
import { createHash } from 'node:crypto'
import { join, relative } from 'node:path'
import { privateKeyFromProtobuf } from '@libp2p/crypto/keys'
import { peerIdFromPrivateKey } from '@libp2p/peer-id'
import { describe, expect, it, test } from 'vitest'
import { chunkPath } from '../../../src/dht/chunk-path.ts'
import { decodeFabricRecord, fabricIdOf } from '../../../src/dht/fabric.ts'
import { markOf } from '../../../src/dht/logged-store.ts'
import { pack, unpack } from '../../../src/dht/packed-chunk.ts'
import { entriesAfter } from '../../../src/dht/write-ahead-log.ts'
import { dataDirAt } from '../../../src/node/data-dir.ts'
import { signerOfIdentity } from '../../../src/node/identity.ts'
import { decodeSparse } from '../../../src/node/sparse-stream.ts'
import { chunkIdOf, chunkIdOfDigest, digestOf } from '../../../src/protocols/cid.ts'
import { decodeCbor } from '../../../src/protocols/codec.ts'
import { verifySignature } from '../../../src/protocols/signatures.ts'
import type { SparseItem } from '../../../src/versioning/image-import.ts'
import { Attempts } from '../../../src/versioning/attempts.ts'
import { bytesOfBlobId } from '../../../src/versioning/blob-id.ts'
import { Certificates } from '../../../src/versioning/certificates.ts'
import { decodeNode, type TreeNode } from '../../../src/versioning/node-codec.ts'
import { NodeStore } from '../../../src/versioning/node-store.ts'
import { decodePublication } from '../../../src/versioning/publication-codec.ts'
import { skipOf, wayDown } from '../../../src/versioning/skip-chain.ts'
import { namesWrittenBy, nodeName, versionName, type WriteShape } from '../../../src/versioning/tree-names.ts'
import { writeTree } from '../../../src/versioning/tree-writer.ts'
import { VersionStore } from '../../../src/versioning/version-store.ts'
import { DocumentedExamples, hexOf, withHex } from '../../harness/documented.ts'
import * as example from '../../harness/example-fabric.ts'
import { formatBytes, formatFiles, managerEntries } from '../../harness/format-examples.ts'
import { MemoryKeyValueStore, MemoryRecords } from '../../harness/memory-stores.ts'

const documented = new DocumentedExamples('FORMAT.md')
const { blob, assignment, publication, fabric, writer } = example

test('every example is checked', () => {
  const keys = [
    ...Object.keys(formatBytes).map((name) => `hex ${name}`), ...Object.keys(formatFiles).map((name) => `json ${name}`),
    'hex packed chunk', 'hex what a certificate signs', 'json chunk', 'json keys', 'json names', 'json skip chain'
  ]
  expect([...documented.keys].sort()).toEqual(keys.sort())
})

test.each(Object.entries(formatBytes))('%s is what is written', async (name, make) => {
  expect(hexOf(documented.bytes(name))).toBe(hexOf(await make()))
})

test.each(Object.entries(formatFiles))('%s is what is written', async (name, make) => {
  expect(documented.json(name)).toEqual(JSON.parse(await make()))
})

test('the data directory has what is documented', () => {
  const { root, ...paths } = dataDirAt('data')
  const names = documented.rows(/^\| `([a-z.]+)[/`]/gm).flat()
  for (const path of Object.values(paths)) expect(names).toContain(relative(root, path))
})

describe('chunks', () => {
  const { bytes, digest, cid, id, file } = documented.json('chunk') as Record<'bytes' | 'digest' | 'cid' | 'id' | 'file', string>

  it('are named and kept as documented', () => {
    expect(chunkIdOf(Buffer.from(bytes))).toBe(id)
    expect([hexOf(digestOf(id)), chunkIdOfDigest(Buffer.from(digest, 'hex'))]).toEqual([digest, id])
    expect(cid).toBe(`01551220${digest}`)
    expect(chunkPath('ROOT', id)).toBe(join('ROOT', file))
  })

  it('are unpacked from what is documented', () => {
    const plain = new Uint8Array(Buffer.alloc(4096, 'p2pvm '))
    const packed = documented.bytes('packed chunk')
    expect(hexOf(unpack(chunkIdOf(plain), packed)!)).toBe(hexOf(plain))
    expect(hexOf(packed.subarray(0, 4))).toBe(hexOf(pack(plain).subarray(0, 4)))
  })
})

describe('keys and certificates', () => {
  it('belong to the seeds, peers and fabric that are documented', () => {
    const rows = documented.json('keys') as Array<Record<'of' | 'seed' | 'publicKey' | 'peer', string>>
    const keys = [example.fabricKey, writer, example.versionManager]
    expect(rows.map(({ seed, publicKey, peer }) => ({ seed, publicKey, peer })))
      .toEqual(keys.map(({ seed, signer, peer }, at) => ({ seed: hexOf(seed), publicKey: hexOf(signer.publicKey), peer: at === 0 ? fabric.id : peer })))
    expect(fabricIdOf(Buffer.from(rows[0]!.publicKey, 'hex'))).toBe(rows[0]!.peer)
  })

  it('are read from what is documented', () => {
    const identity = privateKeyFromProtobuf(documented.bytes('identity.key'))
    expect(peerIdFromPrivateKey(identity).toString()).toBe(example.versionManager.peer)
    expect(hexOf(signerOfIdentity(identity).publicKey)).toBe(hexOf(example.versionManager.signer.publicKey))
    expect(withHex(decodeFabricRecord(documented.bytes('fabric.cbor')))).toEqual(withHex(fabric))
  })

  it('sign what is documented', () => {
    const signed = Buffer.from(documented.bytes('what a certificate signs'))
    const prefix = Buffer.from('p2pvm certificate\0')
    expect(signed.subarray(0, prefix.length)).toEqual(prefix)
    expect(verifySignature(fabric.publicKey, 'p2pvm certificate', signed.subarray(prefix.length), documented.bytes('certificate'))).toBe(true)
    expect(withHex(decodeCbor(signed.subarray(prefix.length)))).toEqual(withHex([bytesOfBlobId(blob), 1, 1, writer.signer.publicKey]))
  })
})

test('a log is read from what is documented', () => {
  const mark = markOf(new Map([['\0', documented.bytes('log mark')]]))!
  expect(mark).toEqual({ applied: 1, seed: 0x5a5a5a5a })
  const operations = [{ key: 'record/version/abcdefghijklmn23/1', value: documented.bytes('record entry') }, { key: 'record/other', value: null }]
  expect(withHex(entriesAfter(0, [documented.bytes('log entry')], { path: '', seed: mark.seed }))).toEqual(withHex([{ sequence: 1, operations }]))
})

describe('tree nodes', () => {
  const certificates = new Certificates(fabric.publicKey)
  const read = (name: string, expected: TreeNode): void => {
    expect(withHex(decodeNode(documented.bytes(name), expected, 1, certificates))).toEqual(withHex(expected))
  }

  it('are read from what is documented', () => {
    read('leaf node', example.leafNode)
    read('inner node', example.rootNode)
  })

  it('are what a writer makes of the assignment that is documented', async () => {
    const records = new MemoryRecords()
    const nodes = new NodeStore({ records, fabricKey: fabric.publicKey })
    const base = nodes.writer({ certificate: example.certificateOf(1), signer: writer.signer })
    await base.add(example.rootNode)
    await base.add(example.rootLeaf)
    await base.flush()
    const credentials = { certificate: example.certificateOf(3), signer: writer.signer }
    await writeTree({ assignment, chunks: new Map([[6, example.otherChunkId]]), credentials }, { nodes, attempts: Attempts.first })
    expect(hexOf(records.values.get(nodeName(example.leafNode, 1))!)).toBe(hexOf(documented.bytes('leaf node')))
  })

  it('have the names that are documented', () => {
    const rows = documented.json('names') as Array<WriteShape & { readonly chunkSize: number, readonly fanOut: number, readonly names: string[] }>
    expect(rows.length).toBeGreaterThan(2)
    for (const { chunkSize, fanOut, names, ...shape } of rows) {
      expect(Array.from(namesWrittenBy(shape, { chunkSize, fanOut }).names(), ({ level, index }) => `${level}/${index}`)).toEqual(names)
    }
  })
})

describe('publication records', () => {
  it('are read from what is documented', () => {
    const decoded = decodePublication(documented.bytes('publication record'), { blob, version: 1 }, fabric.publicKey)
    expect(withHex(decoded)).toEqual(withHex({ header: publication.header, extents: [{ offset: 16384, size: 4096 }], exceptions: [] }))
  })

  it('are linked as documented', () => {
    const { hash, ways } = documented.json('skip chain') as { hash: string, ways: Array<{ from: number, to: number, skip: number | null, way: number[] }> }
    const [signed] = decodeCbor(documented.bytes('publication record')) as [Uint8Array]
    expect([createHash('sha256').update(signed).digest('hex'), publication.header.version.hash]).toEqual([hash, hash])
    for (const { from, to, skip, way } of ways) expect([skipOf(from) ?? null, wayDown(from, to)]).toEqual([skip, way])
  })
})

test('the version manager reads the entries that are documented', async () => {
  const store = new MemoryKeyValueStore(new Map([...managerEntries.keys()].map((key) => [key, documented.bytes(key)])))
  const versions = new VersionStore(store)
  expect(versions.assigned(blob, 3)).toMatchObject({ requestId: example.requestId, writer: writer.peer, base: 1, sizeBefore: 20480, sizeAfter: 28672 })
  expect(versions.request(example.requestId)).toEqual({ blob, version: 3, op: 'assign' })
  expect(versions.name('debian-12')).toEqual({ blob, version: 0 })
  await store.write([{ key: `vm/published/${blob}/000000000002`, value: publication.header.signed }])
  expect(versions.history(blob)).toMatchObject({ geometry: example.geometry, aborted: [{ version: 2, attempt: 2, sizeBefore: 20480 }], open: [{ version: 3, complete: { message: 'a chunk' } }] })
})

describe('sparse streams', () => {
  async function read (name: string): Promise<SparseItem[]> {
    const items: SparseItem[] = []
    const bytes = documented.bytes(name)
    for await (const item of decodeSparse((async function * () { yield bytes })())) items.push(item)
    return items
  }

  it('are read from what is documented', async () => {
    expect(withHex(await read('sparse stream'))).toEqual(withHex([{ offset: 4096, bytes: example.chunk }, { size: 8192 }]))
    await expect(read('sparse stream that failed')).rejects.toMatchObject({ code: 'ERR_MISSING', message: 'gone' })
  })
})

test('records have the names that are documented', () => {
  expect(versionName(blob, 1)).toBe('version/abcdefghijklmn23/1')
  expect([nodeName(example.leafNode, 1), nodeName(example.leafNode, 2)]).toEqual(['node/abcdefghijklmn23/3/0/1', 'node/abcdefghijklmn23/3.2/0/1'])
})
