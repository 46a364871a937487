/**
 * Who may write which version: the version manager certifies, with the fabric's key, that a version was assigned to whoever has a key,
 * for one attempt. Every tree node carries its version's certificate and is signed with that key, so that a node proves by itself that
 * it was written by the writer of that version, whoever hands it out.
 */
import { encodeCbor } from '../protocols/codec.ts'
import { type Signer, signAs, verifySignature } from '../protocols/signatures.ts'
import { bytesOfBlobId } from './blob-id.ts'
import type { VersionId } from './blobs.ts'
import { LruCache } from './lru-cache.ts'

export interface Certificate extends VersionId {
  readonly attempt: number
  /** Raw ed25519, of whoever it was assigned to. */
  readonly writerKey: Uint8Array
  /** Of the fabric's key, over all of the above. */
  readonly signature: Uint8Array
}

/** What it takes to write a version's nodes. */
export interface Credentials {
  readonly certificate: Certificate
  /** Of `certificate.writerKey`. */
  readonly signer: Signer
}

/** Some 300 bytes each. A version's nodes are mostly read together. */
const VERIFIED_MAX = 4096

/** The same certificate each time. */
export function certify ({ blob, version, attempt, writerKey }: Omit<Certificate, 'signature'>, fabric: Signer): Certificate {
  const signature = signAs(fabric, 'p2pvm certificate', bytesOf({ blob, version, attempt, writerKey }))
  return { blob, version, attempt, writerKey, signature }
}

/** State it owns: which certificates have been checked. */
export class Certificates {
  readonly #fabricKey: Uint8Array
  readonly #verified = new LruCache<true>(VERIFIED_MAX)

  constructor (fabricKey: Uint8Array) {
    this.#fabricKey = fabricKey
  }

  /** Signed with the fabric's key. */
  isGenuine (certificate: Certificate): boolean {
    const bytes = bytesOf(certificate)
    const name = Buffer.concat([bytes, certificate.signature]).toString('latin1')
    if (this.#verified.get(name) !== undefined) return true
    if (!verifySignature(this.#fabricKey, 'p2pvm certificate', bytes, certificate.signature)) return false
    this.#verified.set(name, true, 1)
    return true
  }
}

function bytesOf ({ blob, version, attempt, writerKey }: Omit<Certificate, 'signature'>): Uint8Array {
  return encodeCbor([bytesOfBlobId(blob), version, attempt, writerKey])
}
