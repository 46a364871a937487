/** Peer ids that are none of a real key: an ed25519 identity multihash with chosen bytes. */
import { createHash } from 'node:crypto'
import { base58btc } from 'multiformats/bases/base58'

/** The same name gives the same id. */
export function peerIdOf (name: string): string {
  const key = createHash('sha256').update(name).digest()
  return base58btc.encode(Buffer.concat([Buffer.from([0x00, 0x24, 0x08, 0x01, 0x12, 0x20]), key])).slice(1)
}
