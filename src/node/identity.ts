/**
 * Who a peer is: an ed25519 key in the data directory, made on the first start. Whoever has the file is the peer.
 */
import { randomUUID } from 'node:crypto'
import { open, readFile, rename, unlink } from 'node:fs/promises'
import { dirname } from 'node:path'
import { generateKeyPair, privateKeyFromProtobuf, privateKeyToProtobuf } from '@libp2p/crypto/keys'
import type { PrivateKey } from '@libp2p/interface'
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
  await writeAside(path, privateKeyToProtobuf(key))
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

async function writeAside (path: string, bytes: Uint8Array): Promise<void> {
  const aside = `${path}.${randomUUID()}`
  const file = await open(aside, 'wx', 0o600)
  try {
    await file.writeFile(bytes)
    await file.sync()
  } catch (error) {
    await unlink(aside).catch(() => {})
    throw error
  } finally {
    await file.close()
  }
  await rename(aside, path)
  const directory = await open(dirname(path), 'r')
  try {
    await directory.sync()
  } finally {
    await directory.close()
  }
}
