/**
 * Who a peer is: an ed25519 key in the data directory, made on the first start. Whoever has the file is the peer.
 */
import { readFile } from 'node:fs/promises'
import { generateKeyPair, privateKeyFromProtobuf, privateKeyToProtobuf } from '@libp2p/crypto/keys'
import type { PrivateKey } from '@libp2p/interface'
import { replaceFile } from '../mirror/files.ts'
import { P2pvmError, errorCodeOf } from '../protocols/errors.ts'
import { type Signer, signerOf } from '../protocols/signatures.ts'

const SEED_BYTES = 32

/** ERR_NOT_FOUND when there is none, ERR_CORRUPT when the file holds no key. */
export async function loadIdentity (path: string): Promise<PrivateKey> {
  return readKey(await readFile(path), path)
}

/** ERR_CORRUPT when the file is there and holds no key: a new identity would orphan what the old one stored. */
export async function loadOrCreateIdentity (path: string): Promise<PrivateKey> {
  try {
    return await loadIdentity(path)
  } catch (error) {
    if (errorCodeOf(error) !== 'ERR_NOT_FOUND') throw error
  }
  const key = await generateKeyPair('Ed25519')
  await replaceFile(path, privateKeyToProtobuf(key), { mode: 0o600 })
  return key
}

/** Signs with the same key as libp2p does, under prefixes of our own. */
export function signerOfIdentity (key: PrivateKey): Signer {
  return signerOf(key.raw.subarray(0, SEED_BYTES)) // the public half follows
}

function readKey (bytes: Uint8Array, path: string): PrivateKey {
  try {
    return privateKeyFromProtobuf(bytes)
  } catch (error) {
    throw new P2pvmError('ERR_CORRUPT', `${path} does not hold a private key`, { path }, error)
  }
}
