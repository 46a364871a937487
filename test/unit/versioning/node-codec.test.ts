import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { encodeCbor } from '../../../src/protocols/codec.ts'
import { RECORD_NAME_BYTES_MAX } from '../../../src/dht/records.ts'
import { seal } from '../../../src/protocols/signatures.ts'
import { bytesOfBlobId } from '../../../src/versioning/blob-id.ts'
import { Certificates, certify } from '../../../src/versioning/certificates.ts'
import { decodeNode, encodeNode } from '../../../src/versioning/node-codec.ts'
import { nodeName } from '../../../src/versioning/tree-names.ts'
import { fabricSigner, namedSigner } from '../../harness/signers.ts'
import { anyInner, anyLeaf, credentialsFor } from '../../harness/versioning-arbitraries.ts'

const blob = 'abcdefghijklmn23'
const other = 'zzzzzzzzzzzzzzzz'
const bytes = bytesOfBlobId(blob)
const digest = new Uint8Array(32).fill(7)
const certificates = new Certificates(fabricSigner.publicKey)
const refused = expect.objectContaining({ code: 'ERR_PROTOCOL' }) as unknown

/** Signature, writer's key, certificate. */
const SIGNED_BYTES = 64 + 34 + 66

describe('tree nodes', () => {
  test('come back as they were, the same bytes each time', () => {
    fc.assert(fc.property(fc.oneof(anyLeaf, anyInner), fc.integer({ min: 1, max: 9 }), (node, attempt) => {
      const credentials = credentialsFor(node, attempt)
      const encoded = encodeNode(node, credentials)
      expect(decodeNode(encoded, node, attempt, certificates)).toEqual(node)
      expect(encodeNode(decodeNode(encoded, node, attempt, certificates), credentials)).toEqual(encoded)
      expect(nodeName(node, attempt).length).toBeLessThanOrEqual(RECORD_NAME_BYTES_MAX)
    }))
  })

  test('are compact', () => {
    const place = { blob, version: 1000, level: 0, index: 500 }
    const lengthOf = (node: Parameters<typeof encodeNode>[0]): number => encodeNode(node, credentialsFor(place, 1)).length - SIGNED_BYTES
    expect(lengthOf({ ...place, kind: 'leaf', slots: new Array(64).fill(digest) })).toBeLessThan(64 * 34 + 30)
    expect(lengthOf({ ...place, level: 1, kind: 'inner', children: new Array(64).fill({ blob, version: 1000 }) })).toBeLessThan(64 * 3 + 30)
    expect(lengthOf({ ...place, kind: 'leaf', slots: new Array(64).fill(null) })).toBeLessThan(30)
  })

  test('of another name are refused', () => {
    const node = { blob, version: 5, level: 1, index: 3, kind: 'inner' as const, children: [{ blob, version: 5 }] }
    for (const wrong of [{ blob: other }, { version: 6 }, { index: 4 }, { level: 2 }, { level: 0 }]) {
      expect(() => decodeNode(encodeNode(node, credentialsFor(node, 1)), { ...node, ...wrong }, 1, certificates)).toThrow(refused)
    }
  })

  test('of another attempt have another name, and are refused under this one', () => {
    const node = { blob, version: 5, level: 1, index: 3, kind: 'inner' as const, children: [{ blob, version: 5 }] }
    expect([1, 2].map((attempt) => nodeName(node, attempt))).toEqual([`node/${blob}/5/1/3`, `node/${blob}/5.2/1/3`])
    for (const [written, wanted] of [[1, 2], [2, 1], [2, 3]] as const) {
      expect(() => decodeNode(encodeNode(node, credentialsFor(node, written)), node, wanted, certificates)).toThrow(refused)
    }
  })

  test.each([
    ['a leaf that links to itself', 0, [5]],
    ['a leaf that links forward', 0, [6]],
    ['a leaf that links to another blob', 0, [[bytes, 1]]],
    ['a leaf with a short digest', 0, [new Uint8Array(31)]],
    ['a node that links forward', 1, [6]],
    ['a node that links forward in so many words', 1, [[bytes, 6]]],
    ['a node with a digest', 1, [digest]],
    ['a node with nothing at its end', 1, [5, null]],
    ['a node that is too wide', 1, new Array(129).fill(5)],
    ['a fraction', 1, [1.5]],
    ['a negative number', 1, [-1]]
  ])('%s is refused', (_, level, entries) => {
    const { certificate: { writerKey, signature }, signer } = credentialsFor({ blob, version: 5 }, 1)
    const sealed = seal(signer, 'p2pvm node', encodeCbor([1, bytes, 5, 1, level, 0, entries, writerKey, signature]))
    expect(() => decodeNode(sealed, { blob, version: 5, level, index: 0 }, 1, certificates)).toThrow(refused)
  })

  const node = { blob, version: 5, level: 0, index: 3, kind: 'leaf' as const, slots: [digest] }
  const certified = { blob, version: 5, attempt: 1, writerKey: namedSigner('writer').publicKey }

  test.each([
    ['that somebody else signed', { certificate: certify(certified, fabricSigner), signer: namedSigner('other') }],
    ['certified with another key than the fabric\'s', { certificate: certify(certified, namedSigner('writer')), signer: namedSigner('writer') }],
    ['with a certificate for somebody else', { certificate: { ...certify({ ...certified, writerKey: namedSigner('other').publicKey }, fabricSigner), writerKey: certified.writerKey }, signer: namedSigner('writer') }],
    ['with a certificate for another version', { certificate: { ...certify({ ...certified, version: 4 }, fabricSigner), version: 5 }, signer: namedSigner('writer') }],
    ['with a certificate for another blob', { certificate: { ...certify({ ...certified, blob: other }, fabricSigner), blob }, signer: namedSigner('writer') }],
    ['with a certificate for another attempt', { certificate: { ...certify({ ...certified, attempt: 2 }, fabricSigner), attempt: 1 }, signer: namedSigner('writer') }],
    ['of the version manager as if it were the writer', { certificate: { ...certified, signature: certify(certified, fabricSigner).signature }, signer: fabricSigner }]
  ])('%s are refused', (_, credentials) => {
    expect(() => decodeNode(encodeNode(node, credentials), node, 1, certificates)).toThrow(refused)
    expect(decodeNode(encodeNode(node, credentialsFor(node, 1)), node, 1, certificates)).toEqual(node)
  })

  test('that say another attempt than their certificate are refused', () => {
    const { certificate: { writerKey, signature }, signer } = credentialsFor(node, 1)
    const sealed = (attempt: number): Uint8Array => seal(signer, 'p2pvm node', encodeCbor([1, bytes, 5, attempt, 0, 3, [digest], writerKey, signature]))
    expect(decodeNode(sealed(1), node, 1, certificates)).toEqual(node)
    for (const wanted of [1, 2]) expect(() => decodeNode(sealed(2), node, wanted, certificates)).toThrow(refused)
  })

  test('are refused with any bit of them changed', () => {
    const encoded = encodeNode(node, credentialsFor(node, 1))
    expect(decodeNode(encoded, node, 1, certificates)).toEqual(node)
    for (const [at, byte] of encoded.entries()) expect(() => decodeNode(encoded.with(at, byte ^ 1), node, 1, certificates)).toThrow(refused)
  })
})
