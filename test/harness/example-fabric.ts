/**
 * The fabric that the examples of PROTOCOL.md and FORMAT.md are of: a blob that was cloned from another one, version 1 of it
 * published, version 2 in flight, version 3 assigned. All keys follow from their seeds.
 */
import { base58btc } from 'multiformats/bases/base58'
import { type FabricRecord, fabricIdOf } from '../../src/dht/fabric.ts'
import { chunkIdOf, digestOf } from '../../src/protocols/cid.ts'
import { type Signer, signerOf } from '../../src/protocols/signatures.ts'
import type { Assignment } from '../../src/versioning/assignment.ts'
import { certify } from '../../src/versioning/certificates.ts'
import type { InnerNode, LeafNode } from '../../src/versioning/node-codec.ts'
import { sealPublication } from '../../src/versioning/publication-codec.ts'

/** From 32 bytes that count up. */
function countingSigner (first: number): { readonly seed: Uint8Array, readonly signer: Signer, readonly peer: string } {
  const seed = Uint8Array.from({ length: 32 }, (_, at) => first + at)
  const signer = signerOf(seed)
  // An identity multihash of the key in libp2p's protobuf.
  const peer = base58btc.encode(Buffer.concat([Buffer.from('002408011220', 'hex'), signer.publicKey])).slice(1)
  return { seed, signer, peer }
}

export const fabricKey = countingSigner(0x00)
export const writer = countingSigner(0x20)
export const versionManager = countingSigner(0x40)

export const createdMs = Date.UTC(2026, 0, 2)
export const requestId = 'fedcba9876543210fedcba9876543210'

export const fabric: FabricRecord = {
  id: fabricIdOf(fabricKey.signer.publicKey),
  publicKey: fabricKey.signer.publicKey,
  versionManager: { peer: versionManager.peer, addresses: ['/ip4/192.0.2.1/tcp/4190'] },
  createdMs
}

export const chunk = new Uint8Array(Buffer.from('hello, fabric\n'))
export const chunkId = chunkIdOf(chunk)
export const otherChunk = new Uint8Array(Buffer.from('another chunk\n'))
export const otherChunkId = chunkIdOf(otherChunk)

export const blob = 'abcdefghijklmn23'
export const source = { blob: 'zyxwvutsrqponm76', version: 7 }
export const geometry = { chunkSize: 4096, fanOut: 4 }
const sourceHash = 'aa'.repeat(32)

const common = { blob, ...geometry, message: '', bytesChanged: 0, attempt: 1, exceptions: 0, timeMs: createdMs + 60_000, writer: writer.peer }

/** Version 0: what it was cloned from, three chunks. */
export const clonePublication = sealPublication({
  version: { ...common, version: 0, size: 12288, root: source, parent: source }, sizeBefore: 12288, extents: [], exceptions: []
}, { previous: sourceHash, skip: null }, fabricKey.signer)

/** Version 1: the fifth chunk was written, and the tree grew by a level. */
export const publication = sealPublication({
  version: { ...common, version: 1, size: 20480, root: { blob, version: 1 }, parent: { blob, version: 0 }, message: 'a chunk', bytesChanged: 4096, timeMs: createdMs + 120_000 },
  sizeBefore: 12288,
  extents: [{ offset: 16384, size: 4096 }],
  exceptions: []
}, { previous: clonePublication.header.version.hash, skip: null }, fabricKey.signer)

export function certificateOf (version: number): ReturnType<typeof certify> {
  return certify({ blob, version, attempt: 1, writerKey: writer.signer.publicKey }, fabricKey.signer)
}

/** Another blob, made together with version 3 in one group: its version 0, without content. */
export const newBlob = 'mnopqrstuvwxyz45'
export const newPublication = sealPublication({
  version: { ...common, blob: newBlob, version: 0, size: 0, root: null, parent: null, timeMs: createdMs + 180_000 }, sizeBefore: 0, extents: [], exceptions: []
}, { previous: null, skip: null }, fabricKey.signer)
export const newCertificate = certify({ blob: newBlob, version: 1, attempt: 1, writerKey: writer.signer.publicKey }, fabricKey.signer)

export const rootNode: InnerNode = { blob, version: 1, level: 1, index: 0, kind: 'inner', children: [source, { blob, version: 1 }] }
export const rootLeaf: LeafNode = { blob, version: 1, level: 0, index: 1, kind: 'leaf', slots: [digestOf(chunkId)] }

/** Version 2 writes the fifth chunk anew and is in flight; version 3 writes the seventh. */
export const assignment: Assignment = {
  blob,
  version: 3,
  base: publication.header.version,
  extents: [{ offset: 24576, size: 4096 }],
  sizeBefore: 20480,
  sizeAfter: 28672,
  inFlight: [{ version: 2, extents: [{ offset: 16384, size: 4096 }], sizeBefore: 20480, sizeAfter: 20480 }]
}
/** What version 3 writes: a link, a hole, a chunk. */
export const leafNode: LeafNode = { blob, version: 3, level: 0, index: 1, kind: 'leaf', slots: [2, null, digestOf(otherChunkId)] }
