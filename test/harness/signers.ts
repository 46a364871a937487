/** Keys that follow from a name: the same after a restart, and in every run. */
import { createHash } from 'node:crypto'
import { type Signer, signerOf } from '../../src/protocols/signatures.ts'

const signers = new Map<string, Signer>()

export function namedSigner (name: string): Signer {
  const signer = signers.get(name) ?? signerOf(createHash('sha256').update(`the key of ${name}`).digest())
  signers.set(name, signer)
  return signer
}

/** Of the fabrics that tests make in their own process. */
export const fabricSigner = namedSigner('the fabric')
