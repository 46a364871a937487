import { describe, expect, it } from 'vitest'
import { checkSameFabric, decodeFabricRecord, encodeFabricRecord, fabricIdOf } from '../../../src/dht/fabric.ts'
import type { FabricRecord } from '../../../src/dht/fabric.ts'
import { encodeCbor } from '../../../src/protocols/codec.ts'
import { P2pvmError, errorCodeOf } from '../../../src/protocols/errors.ts'

function fabric (seed: number): FabricRecord {
  const publicKey = new Uint8Array(32).fill(seed)
  return { id: fabricIdOf(publicKey), publicKey, versionManager: { peer: '12D3KooW', addresses: ['/ip4/127.0.0.1/tcp/4190'] }, createdMs: 1_700_000_000_000 }
}

const codeOf = (run: () => unknown): string => {
  try {
    run()
    return 'none'
  } catch (error) {
    return errorCodeOf(error)
  }
}

describe('fabric record', () => {
  it('survives encoding, and has a short printable id', () => {
    const one = fabric(1)
    expect(one.id).toMatch(/^[a-z2-7]{16}$/)
    expect(decodeFabricRecord(encodeFabricRecord(one))).toEqual(one)
    expect(fabric(2).id).not.toBe(one.id)
  })

  it('takes along as many addresses as a reader accepts', () => {
    const addresses = Array.from({ length: 40 }, (_, at) => at === 3 ? `/dns4/${'x'.repeat(200)}/tcp/1` : `/ip4/10.0.0.${at}/tcp/4190`)
    const record = { ...fabric(1), versionManager: { peer: '12D3KooW', addresses } }
    expect(decodeFabricRecord(encodeFabricRecord(record)).versionManager.addresses).toEqual(addresses.filter((_, at) => at !== 3).slice(0, 16))
  })

  it('derives the id as base32 of the first 80 bits of the hash', () => {
    // sha256 of 32 zero bytes is 66687aadf862bd776c8f…, RFC 4648 of the first ten bytes:
    expect(fabricIdOf(new Uint8Array(32))).toBe('mzuhvlpymk6xo3ep')
  })

  it.each([
    ['a key that is not the id\'s', { publicKey: new Uint8Array(32).fill(9) }],
    ['a short key', { publicKey: new Uint8Array(31) }],
    ['an address that is none', { versionManager: { peer: 'x', addresses: ['not an address'] } }],
    ['no version manager', { versionManager: undefined }],
    ['a time that is none', { createdMs: -1 }]
  ])('refuses %s', (_name, change) => {
    expect(codeOf(() => decodeFabricRecord(encodeCbor({ ...fabric(1), ...change })))).toBe('ERR_PROTOCOL')
  })

  it('names both fabrics when they differ', () => {
    const [own, found] = [fabric(1), fabric(2)]
    checkSameFabric(own, fabric(1))
    try {
      checkSameFabric(own, found)
      expect.unreachable()
    } catch (error) {
      expect(error).toBeInstanceOf(P2pvmError)
      expect((error as P2pvmError).code).toBe('ERR_NOT_ALLOWED')
      expect((error as P2pvmError).message).toContain(own.id)
      expect((error as P2pvmError).message).toContain(found.id)
    }
  })
})
