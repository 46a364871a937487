import { convertBuffer, convertPeerId } from '../../../node_modules/@libp2p/kad-dht/dist/src/utils.js' // not exported by the package
import { generateKeyPair } from '@libp2p/crypto/keys'
import { peerIdFromPrivateKey } from '@libp2p/peer-id'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { compareDistance, kadIdOfKey, kadIdOfPeer, nearest } from '../../../src/dht/kad-id.ts'
import { peerIdOf } from '../../harness/peer-ids.ts'

const id = fc.uint8Array({ minLength: 32, maxLength: 32 }).map((bytes) => Buffer.from(bytes))

describe('kad ids', () => {
  it('are where kad-dht has them', async () => {
    const key = Buffer.from('some key')
    const peer = peerIdFromPrivateKey(await generateKeyPair('Ed25519'))
    expect(kadIdOfKey(key)).toEqual(Buffer.from(await convertBuffer(key)))
    expect(kadIdOfPeer(peer.toString())).toEqual(Buffer.from(await convertPeerId(peer)))
  })

  it('are compared by XOR, as big numbers', () => {
    const distance = (a: Buffer, b: Buffer): bigint => BigInt(`0x${a.toString('hex')}`) ^ BigInt(`0x${b.toString('hex')}`)
    fc.assert(fc.property(id, id, id, (target, a, b) => {
      const [toA, toB] = [distance(target, a), distance(target, b)]
      expect(Math.sign(compareDistance(target, a, b))).toBe(toA < toB ? -1 : toA > toB ? 1 : 0)
    }))
  })

  it('give the nearest few in order', () => {
    const candidates = Array.from({ length: 50 }, (_, at) => ({ kadId: kadIdOfPeer(peerIdOf(`peer ${at}`)) }))
    const target = kadIdOfKey(Buffer.from('key'))
    const found = nearest(target, candidates, 20)
    expect(found).toHaveLength(20)
    const farthest = found.at(-1)
    for (const other of candidates) {
      if (!found.includes(other) && farthest !== undefined) expect(compareDistance(target, farthest.kadId, other.kadId)).toBeLessThan(0)
    }
  })

  it('refuse what is no peer id', () => {
    expect(() => kadIdOfPeer('0OIl')).toThrowError(expect.objectContaining({ code: 'ERR_PROTOCOL' }))
  })
})
