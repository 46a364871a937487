/**
 * Which fabric this is. The first version manager makes the record, every other peer gets it at first contact and keeps it;
 * the id is part of every wire id, so that peers of two fabrics never mix by accident.
 */
import { createHash } from 'node:crypto'
import { decodeCbor, encodeCbor } from '../protocols/codec.ts'
import { array, bytes, record, string, uint } from '../protocols/decode.ts'
import { P2pvmError } from '../protocols/errors.ts'
import { FABRIC_RECORD_BYTES_MAX } from '../protocols/fabric-protocol.ts'
import type { PeerId } from '../protocols/transport.ts'

export interface FabricRecord {
  /** 16 characters of lower-case base32: the first 80 bits of the hash of the key. */
  readonly id: string
  /** ed25519, raw. */
  readonly publicKey: Uint8Array
  readonly versionManager: {
    readonly peer: PeerId
    /** Multiaddrs without /p2p, as far as known when the record was handed out. */
    readonly addresses: readonly string[]
  }
  readonly createdMs: number
}

const PUBLIC_KEY_BYTES = 32
const ID_BYTES = 10
const ID_PATTERN = /^[a-z2-7]{16}$/
const ADDRESSES_MAX = 16
const ADDRESS_CHARACTERS_MAX = 128
const BASE32 = 'abcdefghijklmnopqrstuvwxyz234567'

const fabricRecord = record({
  id: string(16, ID_PATTERN),
  publicKey: bytes(PUBLIC_KEY_BYTES),
  versionManager: record({ peer: string(64, /^[A-Za-z0-9]+$/), addresses: array(string(ADDRESS_CHARACTERS_MAX, /^\/[\x21-\x7e]*$/), ADDRESSES_MAX) }),
  createdMs: uint()
})

/** The id follows from the key, so nobody can present another key under it. */
export function fabricIdOf (publicKey: Uint8Array): string {
  const hash = createHash('sha256').update(publicKey).digest().subarray(0, ID_BYTES)
  let bits = hash.reduce((all, byte) => all << 8n | BigInt(byte), 0n)
  let id = ''
  for (let digit = 0; digit < ID_BYTES * 8 / 5; digit++) {
    id = BASE32.charAt(Number(bits & 31n)) + id
    bits >>= 5n
  }
  return id
}

/** With as many of the version manager's addresses as a reader takes. */
export function encodeFabricRecord (fabric: FabricRecord): Uint8Array {
  const addresses = fabric.versionManager.addresses.filter(({ length }) => length <= ADDRESS_CHARACTERS_MAX).slice(0, ADDRESSES_MAX)
  return encodeCbor({ ...fabric, versionManager: { ...fabric.versionManager, addresses } })
}

/** ERR_PROTOCOL when it is not a record, or its id is not that of its key. */
export function decodeFabricRecord (encoded: Uint8Array): FabricRecord {
  if (encoded.length > FABRIC_RECORD_BYTES_MAX) throw new P2pvmError('ERR_PROTOCOL', 'a fabric record that is too long')
  const fabric = fabricRecord(decodeCbor(encoded), 'fabric record')
  if (fabric.id !== fabricIdOf(fabric.publicKey)) throw new P2pvmError('ERR_PROTOCOL', 'the fabric record\'s id is not that of its key')
  return fabric
}

/** ERR_NOT_ALLOWED with both ids when a peer that belongs to one fabric is led to another. */
export function checkSameFabric (own: FabricRecord, found: FabricRecord): void {
  if (own.id === found.id) return
  throw new P2pvmError(
    'ERR_NOT_ALLOWED',
    `this peer belongs to the fabric ${own.id}, and the bootstrap address leads to the fabric ${found.id}`,
    { fabric: own.id, found: found.id }
  )
}
