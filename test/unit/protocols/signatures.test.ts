import { createHash } from 'node:crypto'
import { generateKeyPair } from '@libp2p/crypto/keys'
import { expect, test } from 'vitest'
import { partsOfSealed, seal, signAs, signerOf, verifySignature } from '../../../src/protocols/signatures.ts'

const bytes = Buffer.from('something')
const signer = signerOf(createHash('sha256').update('a seed').digest())

test('what is signed with a key is known by its public half, always the same', () => {
  const signature = signAs(signer, 'p2pvm node', bytes)
  expect(verifySignature(signer.publicKey, 'p2pvm node', bytes, signature)).toBe(true)
  expect(signAs(signer, 'p2pvm node', bytes)).toEqual(signature)
  expect([signer.publicKey.length, signature.length]).toEqual([32, 64])
})

test('other bytes, another kind, another key, and what is no key or signature at all are not', () => {
  const signature = signAs(signer, 'p2pvm node', bytes)
  const { publicKey } = signer
  const other = signerOf(new Uint8Array(32).fill(9)).publicKey
  expect(verifySignature(publicKey, 'p2pvm node', Buffer.from('Something'), signature)).toBe(false)
  expect(verifySignature(publicKey, 'p2pvm certificate', bytes, signature)).toBe(false)
  expect(verifySignature(other, 'p2pvm node', bytes, signature)).toBe(false)
  expect(verifySignature(publicKey, 'p2pvm node', bytes, signature.with(0, signature[0]! ^ 1))).toBe(false)
  expect(verifySignature(publicKey, 'p2pvm node', bytes, signature.subarray(1))).toBe(false)
  expect(verifySignature(publicKey.subarray(1), 'p2pvm node', bytes, signature)).toBe(false)
  for (const byte of [0, 1, 2, 255]) expect(verifySignature(new Uint8Array(32).fill(byte), 'p2pvm node', bytes, signature)).toBe(false)
})

test('a signature travels in front of its bytes', () => {
  const sealed = partsOfSealed(seal(signer, 'p2pvm publication', bytes))
  expect(Buffer.from(sealed.bytes)).toEqual(bytes)
  expect(verifySignature(signer.publicKey, 'p2pvm publication', sealed.bytes, sealed.signature)).toBe(true)
})

test('many keys, one after the other', () => {
  for (let count = 0; count < 1100; count++) {
    const one = signerOf(createHash('sha256').update(`${count}`).digest())
    if (count % 100 === 0) expect(verifySignature(one.publicKey, 'p2pvm node', bytes, signAs(one, 'p2pvm node', bytes))).toBe(true)
    else verifySignature(one.publicKey, 'p2pvm node', bytes, new Uint8Array(64))
  }
  expect(verifySignature(signer.publicKey, 'p2pvm node', bytes, signAs(signer, 'p2pvm node', bytes))).toBe(true)
})

test('a libp2p key is such a key', async () => {
  const key = await generateKeyPair('Ed25519')
  const ours = signerOf(key.raw.subarray(0, 32))
  expect(ours.publicKey).toEqual(new Uint8Array(key.publicKey.raw))
  expect(await key.publicKey.verify(bytes, ours.sign(bytes))).toBe(true)
})
