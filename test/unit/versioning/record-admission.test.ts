/** What a storage peer takes, and from whom. */
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { certify } from '../../../src/versioning/certificates.ts'
import { encodeNode } from '../../../src/versioning/node-codec.ts'
import { type Publication, sealPublication } from '../../../src/versioning/publication-codec.ts'
import { createRecordAdmission } from '../../../src/versioning/record-admission.ts'
import { nodeName, nodeOfName, versionName, versionOfName } from '../../../src/versioning/tree-names.ts'
import { fabricSigner, namedSigner } from '../../harness/signers.ts'
import { anyInner, anyLeaf, anyPublication, credentialsFor, linksOf } from '../../harness/versioning-arbitraries.ts'

const blob = 'abcdefghijklmn23'
const admits = createRecordAdmission({ fabricKey: fabricSigner.publicKey, versionManager: 'the version manager' })
const node = { blob, version: 5, level: 0, index: 3, kind: 'leaf' as const, slots: [new Uint8Array(32)] }
const value = encodeNode(node, credentialsFor(node, 1))
const name = nodeName(node, 1)
const [publication] = fc.sample(anyPublication, 1) as [Publication]
const recordName = versionName(publication.version.blob, publication.version.version)
const record = sealPublication(publication, linksOf(publication), fabricSigner).value

describe('names', () => {
  test('are read as they are made', () => {
    fc.assert(fc.property(fc.oneof(anyLeaf, anyInner), fc.integer({ min: 1, max: 9 }), ({ blob, version, level, index }, attempt) => {
      expect(nodeOfName(nodeName({ blob, version, level, index }, attempt))).toEqual({ blob, version, level, index, attempt })
      expect(versionOfName(versionName(blob, version))).toEqual({ blob, version })
    }))
  })

  test.each([
    `node/${blob}/5.1/0/3`, `node/${blob}/05/0/3`, `node/${blob}/5/0`, `node/${blob}/5/0/3/`, `node/${blob}/5/0/1e3`, `node/${blob}/5/0/99999999999999999999`,
    `node/${blob.toUpperCase()}/5/0/3`, `node/${blob}a/5/0/3`, `version/${blob}/05`, `version/${blob}/`, `version/${blob}/1.2`, `version/${blob}`, 'other', ''
  ])('%s is none', (name) => {
    expect([nodeOfName(name), versionOfName(name)]).toEqual([undefined, undefined])
  })
})

describe('a storage peer takes', () => {
  test('a node and a record, whoever brings them: the writer, or somebody who makes another copy', () => {
    for (const from of ['writer', 'another storage peer', 'the version manager']) {
      expect([admits({ name, value }, from), admits({ name: recordName, value: record }, from)]).toEqual([true, true])
    }
    expect(admits({ name: nodeName(node, 2), value: encodeNode(node, credentialsFor(node, 2, fabricSigner)) }, 'the version manager')).toBe(true)
  })

  test('a record from the version manager without looking at its signature', () => {
    expect(admits({ name: recordName, value: record.with(-1, record.at(-1)! ^ 1) }, 'the version manager')).toBe(true)
  })
})

describe('a storage peer does not take', () => {
  test.each([
    ['garbage as a node', name, new Uint8Array(50)],
    ['garbage as a record', recordName, new Uint8Array(50)],
    ['nothing', name, new Uint8Array(0)],
    ['other names', 'anything', value],
    ['a node under another name', nodeName({ ...node, index: 4 }, 1), value],
    ['a node under another attempt\'s name', nodeName(node, 2), value],
    ['a node as a record', recordName, value],
    ['a record as a node', name, record],
    ['a record under another name', versionName(blob, 77), record],
    ['a node of who has no certificate', name, encodeNode(node, { certificate: certify({ blob, version: 5, attempt: 1, writerKey: namedSigner('x').publicKey }, namedSigner('x')), signer: namedSigner('x') })],
    ['a node signed by somebody else', name, encodeNode(node, { ...credentialsFor(node, 1), signer: namedSigner('x') })],
    ['a record of somebody else\'s', recordName, sealPublication(publication, linksOf(publication), namedSigner('x')).value]
  ])('%s', (_, name, value) => {
    expect(admits({ name, value }, 'anybody')).toBe(false)
  })

  test('a bad node from the version manager either', () => {
    expect(admits({ name, value: value.with(0, value[0]! ^ 1) }, 'the version manager')).toBe(false)
    expect(admits({ name: 'anything', value: record }, 'the version manager')).toBe(false)
  })
})
