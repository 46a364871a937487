/** Garbage, and messages that were right before one byte of them changed: ERR_PROTOCOL or a value of the right shape, never anything else. */
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { decodeCbor } from '../../src/protocols/codec.ts'
import { P2pvmError } from '../../src/protocols/errors.ts'
import { decodeVersionAnswer, decodeVersionRequest, serveVersions, VERSION_PROTOCOL, type VersionOperation } from '../../src/protocols/version-protocol.ts'
import { Certificates } from '../../src/versioning/certificates.ts'
import { decodeNode, encodeNode } from '../../src/versioning/node-codec.ts'
import { decodeHeader, decodePublication, sealPublication } from '../../src/versioning/publication-codec.ts'
import { nodeClock } from '../../src/node/world.ts'
import { MemoryFabric } from '../harness/memory-fabric.ts'
import { MemoryNetwork } from '../harness/memory-transport.ts'
import { fabricSigner } from '../harness/signers.ts'
import { anyInner, anyLeaf, anyPublication, credentialsFor, linksOf } from '../harness/versioning-arbitraries.ts'

const RUNS = { numRuns: 3000 }

/** Anything that CBOR carries. */
const garbage: fc.Arbitrary<unknown> = fc.anything({
  values: [fc.boolean(), fc.integer(), fc.double({ noNaN: true }), fc.string(), fc.constant(null), fc.uint8Array({ maxLength: 40 })],
  maxDepth: 3
})

const changed = (bytes: Uint8Array): fc.Arbitrary<Uint8Array> => fc.oneof(
  fc.record({ at: fc.nat(bytes.length - 1), to: fc.nat(255) }).map(({ at, to }) => bytes.with(at, to)),
  fc.nat(bytes.length).map((end) => bytes.subarray(0, end)),
  fc.uint8Array({ minLength: 1, maxLength: 5 }).map((more) => Uint8Array.from([...bytes, ...more]))
)

function onlyProtocolErrors (decode: () => unknown): void {
  try {
    decode()
  } catch (error) {
    expect(error).toBeInstanceOf(P2pvmError)
    expect((error as P2pvmError).code).toBe('ERR_PROTOCOL')
  }
}

const blob = 'abcdefghijklmn23'
const requestId = 'a-request-id'
const certificates = new Certificates(fabricSigner.publicKey)
const blobOf = (signed: Uint8Array): string => decodeHeader(signed).version.blob
const requests = [
  { op: 'create', requestId, of: { kind: 'new', chunkSize: 4096, fanOut: 64 }, name: 'image' },
  { op: 'create', requestId, of: { kind: 'clone', source: { blob, version: 3 } } },
  { op: 'assign', requestId, target: { kind: 'blob', blob, expectedBase: 4 }, change: { kind: 'write', extents: [0, 10, 20, 5], size: 25 }, writerKey: new Uint8Array(32) },
  { op: 'assign', requestId, target: { kind: 'clone', source: { blob, version: 3 }, name: 'x' }, change: { kind: 'append', size: 5 }, writerKey: new Uint8Array(32) },
  {
    op: 'assignGroup', requestId, writerKey: new Uint8Array(32), members: [
      { target: { kind: 'blob', blob, expectedBase: 4 }, change: { kind: 'write', extents: [0, 10, 20, 5], size: 25 } },
      { target: { kind: 'new', chunkSize: 4096, fanOut: 4, name: 'y' }, change: { kind: 'append', size: 5 } }
    ]
  },
  { op: 'completeGroup', requestId, message: 'm', members: [{ blob, version: 1, bytesChanged: 5 }, { blob, version: 2, bytesChanged: 0 }] },
  { op: 'complete', requestId, blob, version: 1, message: 'm', bytesChanged: 5 },
  { op: 'renew', requestId, blob, version: 1 },
  { op: 'wait', blob, version: 1, waitMs: 10 },
  { op: 'recent', blob }, { op: 'resolve', ref: 'image', version: 3 }, { op: 'images', after: '' }, { op: 'log', blob, from: 0 }, { op: 'outcome', requestId }
]

/** Also with one field replaced by anything. */
const nearlyRequests = fc.record({ request: fc.constantFrom<Record<string, unknown>>(...requests), field: fc.nat(10), value: garbage })
  .map(({ request, field, value }) => ({ ...request, [Object.keys(request)[field % Object.keys(request).length]!]: value }))

describe('decoders', () => {
  test('the requests that are meant are understood', () => {
    for (const request of requests) expect(decodeVersionRequest(request)).toMatchObject({ op: request.op })
  })

  test('requests', () => {
    fc.assert(fc.property(fc.oneof(garbage, nearlyRequests), (body) => { onlyProtocolErrors(() => decodeVersionRequest(body)) }), RUNS)
  })

  test.each(['create', 'assign', 'assignGroup', 'renew', 'complete', 'completeGroup', 'wait', 'recent', 'resolve', 'images', 'log', 'outcome'] satisfies VersionOperation[])('answers to %s', (op) => {
    fc.assert(fc.property(garbage, (body) => { onlyProtocolErrors(() => decodeVersionAnswer(op, body)) }))
  })

  test('tree nodes', () => {
    fc.assert(fc.property(fc.tuple(fc.oneof(anyLeaf, anyInner), fc.constantFrom(1, 2)).chain(([node, attempt]) =>
      changed(encodeNode(node, credentialsFor(node, attempt))).map((bytes) => ({ node, attempt, bytes }))), ({ node, attempt, bytes }) => {
      onlyProtocolErrors(() => {
        // What is accepted is what was signed.
        expect(decodeNode(bytes, node, attempt, certificates)).toEqual(node)
      })
    }), RUNS)
  })

  test('publication records', () => {
    fc.assert(fc.property(anyPublication.chain((one) => {
      const { header: { signed }, value } = sealPublication(one, linksOf(one), fabricSigner)
      return fc.record({ one: fc.constant(one), bytes: changed(value), header: changed(signed) })
    }), ({ one, bytes, header }) => {
      onlyProtocolErrors(() => decodePublication(bytes, one.version, fabricSigner.publicKey))
      onlyProtocolErrors(() => decodeHeader(header))
    }), RUNS)
  })

  test('anything at all', () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      onlyProtocolErrors(() => decodeVersionRequest(decodeCbor(bytes)))
      onlyProtocolErrors(() => decodeNode(bytes, { blob, version: 1, level: 0, index: 0 }, 1, certificates))
      onlyProtocolErrors(() => decodeNode(bytes, { blob, version: 1, level: 1, index: 0 }, 2, certificates))
      onlyProtocolErrors(() => decodePublication(bytes, { blob, version: 1 }, fabricSigner.publicKey))
      onlyProtocolErrors(() => decodeHeader(bytes))
    }), RUNS)
  })
})

test('whatever a version manager is asked, it answers the next one', async () => {
  const network = new MemoryNetwork(nodeClock)
  const [manager, client] = [network.join('manager'), network.join('client')]
  const fabric = new MemoryFabric()
  serveVersions(manager, fabric.manager.service)
  const ask = async (body: unknown): Promise<unknown> => (await client.request('manager', VERSION_PROTOCOL, { body }, { deadlineMs: 1000 })).body
  const { version } = decodeVersionAnswer('create', await ask(requests[0]))
  await fc.assert(fc.asyncProperty(nearlyRequests, async (body) => {
    await ask(body).catch((error: unknown) => {
      expect(['ERR_PROTOCOL', 'ERR_USAGE', 'ERR_NOT_FOUND', 'ERR_CONFLICT', 'ERR_NOT_ALLOWED']).toContain((error as P2pvmError).code)
    })
    expect(blobOf(decodeVersionAnswer('recent', await ask({ op: 'recent', blob: blobOf(version) })).version)).toBe(blobOf(version))
  }), { numRuns: 300 })
})
