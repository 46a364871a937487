/** Well-formed tree nodes, publication records and protocol messages for fast-check. */
import fc from 'fast-check'
import { type Certificate, certify, type Credentials } from '../../src/versioning/certificates.ts'
import type { LeafNode, InnerNode } from '../../src/versioning/node-codec.ts'
import type { Links, Publication } from '../../src/versioning/publication-codec.ts'
import { skipOf } from '../../src/versioning/skip-chain.ts'
import { fabricSigner, namedSigner } from './signers.ts'

const blob = fc.stringMatching(/^[a-z2-7]{16}$/)
const version = fc.integer({ min: 1, max: 2 ** 40 })
const index = fc.nat(2 ** 40)

/** The last entry of a node is never null. */
function endingWithSomething<T> (entries: Array<T | null>): Array<T | null> {
  return entries.slice(0, entries.findLastIndex((entry) => entry !== null) + 1)
}

export const anyLeaf: fc.Arbitrary<LeafNode> = fc.record({ blob, version, index }).chain((place) =>
  fc.array(fc.option(fc.oneof(fc.uint8Array({ minLength: 32, maxLength: 32 }), fc.nat(place.version - 1))), { maxLength: 128 })
    .map((slots) => ({ ...place, kind: 'leaf' as const, level: 0, slots: endingWithSomething(slots) })))

export const anyInner: fc.Arbitrary<InnerNode> = fc.record({ blob, version, index, level: fc.integer({ min: 1, max: 41 }) }).chain((place) =>
  fc.array(fc.option(fc.oneof(
    fc.nat(place.version).map((version) => ({ blob: place.blob, version })),
    fc.record({ blob, version }).filter((link) => link.blob !== place.blob)
  )), { maxLength: 128 }).map((children) => ({ ...place, kind: 'inner' as const, children: endingWithSomething(children) })))

const versionId = fc.record({ blob, version })

/** Of the writer of this version. */
export function credentialsFor ({ blob, version }: Pick<Certificate, 'blob' | 'version'>, attempt: number, signer = namedSigner('writer')): Credentials {
  return { certificate: certify({ blob, version, attempt, writerKey: signer.publicKey }, fabricSigner), signer }
}

/** Those that the record must have. */
export function linksOf ({ version: { version, parent } }: Publication): Links {
  return { previous: parent === null ? null : '11'.repeat(32), skip: skipOf(version) === undefined ? null : '22'.repeat(32) }
}

export const anyPublication: fc.Arbitrary<Publication> = fc.record({
  version: fc.record({
    blob,
    version,
    size: fc.nat(2 ** 52),
    chunkSize: fc.constantFrom(4096, 262144, 4194304),
    fanOut: fc.constantFrom(2, 64, 128),
    root: fc.option(versionId),
    parent: fc.option(versionId),
    timeMs: fc.nat(2 ** 41),
    writer: fc.string({ maxLength: 100 }),
    message: fc.string({ maxLength: 1000 }),
    bytesChanged: fc.nat(2 ** 52),
    attempt: fc.constantFrom(1, 1, 2)
  }),
  exceptions: fc.array(fc.record({ blob, version, attempt: fc.integer({ min: 2, max: 9 }) }), { maxLength: 5 }),
  extents: fc.array(fc.record({ offset: fc.nat(2 ** 52), size: fc.integer({ min: 1, max: 2 ** 52 }) }), { maxLength: 10 })
}).map(({ version, extents, exceptions }) => (
  { version: { ...version, exceptions: exceptions.length }, extents, exceptions, sizeBefore: Math.floor(version.size / 2) }
))
