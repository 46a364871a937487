/** What the examples of PROTOCOL.md must be: requests as the clients send them, answers as the services give them. */
import { encodeFabricRecord } from '../../src/dht/fabric.ts'
import { getChunk, haveChunks, auditChunks, putChunk, serveChunks } from '../../src/protocols/chunk-protocol.ts'
import { askFabric, serveFabric } from '../../src/protocols/fabric-protocol.ts'
import { describeMember, exchangeMembers, type MemberRow, pushMembers, serveMembers } from '../../src/protocols/member-protocol.ts'
import { getRecords, putRecords, serveRecords } from '../../src/protocols/record-protocol.ts'
import type { Transport } from '../../src/protocols/transport.ts'
import { askVersions, serveVersions, type VersionAnswer, type VersionService } from '../../src/protocols/version-protocol.ts'
import { nodeName, versionName } from '../../src/versioning/tree-names.ts'
import * as example from './example-fabric.ts'

/** A request and its answer: `NAME request` and `NAME answer` in the document. */
export interface WireExample {
  readonly name: string
  /** Behind `/p2pvm/`, and the fabric's id. */
  readonly protocol: string
  readonly ask: (transport: Transport) => Promise<unknown>
  readonly serve: (transport: Transport) => void
  readonly result: unknown
}

const peer = example.versionManager.peer
const options = { deadlineMs: 1000 }

const row: MemberRow = {
  id: peer, addresses: ['/ip4/192.0.2.1/tcp/4190'], roles: ['storage', 'versions'], capacityBytes: 2 ** 40,
  incarnation: example.createdMs, heartbeat: 77, down: false
}
const beat = { key: '0123456789abcdef', incarnation: example.createdMs, heartbeat: 76 }
const exchanged = { beats: [{ ...beat, heartbeat: 80 }], rows: [row], want: ['fedcba9876543210'], more: false, complete: true }

const serveChunk = (transport: Transport): void => {
  serveChunks(transport, {
    have: async (ids) => ids.map((id) => id === example.chunkId),
    put: async () => true,
    get: async () => example.chunk,
    audit: async () => ['good', 'corrupt']
  })
}

const serveMember = (transport: Transport): void => {
  serveMembers(transport, { describe: () => row, exchange: () => exchanged, push: () => {} })
}

const recordName = versionName(example.blob, 1)
const otherName = nodeName({ blob: example.blob, version: 1, level: 0, index: 9 }, 1)
const value = Uint8Array.of(1, 2, 3)
const serveRecord = (transport: Transport): void => {
  serveRecords(transport, { put: async () => ['stored', 'conflict'], get: async () => [value, undefined] })
}

const assigned: VersionAnswer<'assign'> = {
  blob: example.blob,
  version: 3,
  base: example.publication.header.signed,
  extents: [...example.assignment.extents],
  sizeBefore: 20480,
  sizeAfter: 28672,
  inFlight: example.assignment.inFlight.map(({ version, extents, sizeBefore, sizeAfter }) => ({ version, extents: [...extents], sizeBefore, sizeAfter })),
  certificate: example.certificateOf(3).signature
}
/** Beside it a new blob, whose version 0 the group has made. */
const newMember: VersionAnswer<'assign'> = {
  blob: example.newBlob, version: 1, base: example.newPublication.header.signed, extents: [{ offset: 0, size: 4096 }], sizeBefore: 0, sizeAfter: 4096, inFlight: [],
  certificate: example.newCertificate.signature
}
const outcome = { assigned: { blob: example.blob, version: 3, complete: true, aborted: false } }
/** Only these are asked for. */
const service = {
  assign: async () => assigned,
  assignGroup: async () => ({ members: [assigned, newMember] }),
  completeGroup: async () => ({ published: [null, null] }),
  renew: async () => ({ leaseMs: 30_000 }),
  complete: async () => ({ published: null }),
  outcome: async () => outcome
} as Partial<VersionService> as VersionService
const serveVersion = (transport: Transport): void => { serveVersions(transport, service) }

export const wireExamples: readonly WireExample[] = [
  {
    name: 'fabric/1', protocol: 'fabric/1', result: encodeFabricRecord(example.fabric),
    ask: async (transport) => await askFabric(transport, peer, options),
    serve: (transport) => { serveFabric(transport, () => encodeFabricRecord(example.fabric)) }
  },
  {
    name: 'member/1 describe', protocol: 'member/1', result: row, serve: serveMember,
    ask: async (transport) => await describeMember(transport, peer, options)
  },
  {
    name: 'member/1 exchange', protocol: 'member/1', result: exchanged, serve: serveMember,
    ask: async (transport) => await exchangeMembers(transport, peer, { from: '0000000000000000', to: null, beats: [beat], complete: false, pull: true }, options)
  },
  {
    name: 'member/1 push', protocol: 'member/1', result: undefined, serve: serveMember,
    ask: async (transport) => { await pushMembers(transport, peer, [{ ...row, id: example.writer.peer, roles: ['storage'], down: true }], options) }
  },
  {
    name: 'chunk/1 have', protocol: 'chunk/1', result: [true, false], serve: serveChunk,
    ask: async (transport) => await haveChunks(transport, peer, [example.chunkId, example.otherChunkId], options)
  },
  {
    name: 'chunk/1 put', protocol: 'chunk/1', result: true, serve: serveChunk,
    ask: async (transport) => await putChunk(transport, peer, example.chunkId, example.chunk, options)
  },
  {
    name: 'chunk/1 get', protocol: 'chunk/1', result: example.chunk, serve: serveChunk,
    ask: async (transport) => await getChunk(transport, peer, example.chunkId, options)
  },
  {
    name: 'chunk/1 audit', protocol: 'chunk/1', result: ['good', 'corrupt'], serve: serveChunk,
    ask: async (transport) => await auditChunks(transport, peer, [example.chunkId, example.otherChunkId], options)
  },
  {
    name: 'record/1 put', protocol: 'record/1', result: ['stored', 'conflict'], serve: serveRecord,
    ask: async (transport) => await putRecords(transport, peer, [{ name: recordName, value }, { name: otherName, value: Uint8Array.of(4) }], options)
  },
  {
    name: 'record/1 get', protocol: 'record/1', result: [value, undefined], serve: serveRecord,
    ask: async (transport) => await getRecords(transport, peer, [recordName, otherName], options)
  },
  {
    name: 'version/1 assign', protocol: 'version/1', result: assigned, serve: serveVersion,
    ask: async (transport) => await askVersions(transport, peer, {
      op: 'assign', requestId: example.requestId, target: { kind: 'blob', blob: example.blob }, writerKey: example.writer.signer.publicKey,
      change: { kind: 'write', extents: [{ offset: 24576, size: 4096 }], size: 28672 }
    }, options)
  },
  {
    name: 'version/1 assignGroup', protocol: 'version/1', result: { members: [assigned, newMember] }, serve: serveVersion,
    ask: async (transport) => await askVersions(transport, peer, {
      op: 'assignGroup', requestId: example.requestId, writerKey: example.writer.signer.publicKey,
      members: [
        { target: { kind: 'blob', blob: example.blob, expectedBase: 1 }, change: { kind: 'write', extents: [{ offset: 24576, size: 4096 }], size: 28672 } },
        { target: { kind: 'new', ...example.geometry, name: 'data-1' }, change: { kind: 'write', extents: [{ offset: 0, size: 4096 }], size: 4096 } }
      ]
    }, options)
  },
  {
    name: 'version/1 completeGroup', protocol: 'version/1', result: { published: [null, null] }, serve: serveVersion,
    ask: async (transport) => await askVersions(transport, peer, {
      op: 'completeGroup', requestId: example.requestId, message: 'both disks',
      members: [{ blob: example.blob, version: 3, bytesChanged: 4096 }, { blob: example.newBlob, version: 1, bytesChanged: 4096 }]
    }, options)
  },
  {
    name: 'version/1 renew', protocol: 'version/1', result: { leaseMs: 30_000 }, serve: serveVersion,
    ask: async (transport) => await askVersions(transport, peer, { op: 'renew', requestId: example.requestId, blob: example.blob, version: 3 }, options)
  },
  {
    name: 'version/1 complete', protocol: 'version/1', result: { published: null }, serve: serveVersion,
    ask: async (transport) => await askVersions(transport, peer,
      { op: 'complete', requestId: example.requestId, blob: example.blob, version: 3, message: 'a chunk', bytesChanged: 4096 }, options)
  },
  {
    name: 'version/1 outcome', protocol: 'version/1', result: outcome, serve: serveVersion,
    ask: async (transport) => await askVersions(transport, peer, { op: 'outcome', requestId: example.requestId }, options)
  }
]
