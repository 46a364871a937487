/** REF, as people type it: NAME, NAME@VERSION, NAME@latest, BLOB@VERSION, or an unambiguous prefix of a blob id. */
import { P2pvmError } from '../protocols/errors.ts'
import { BLOB_ID } from './blob-id.ts'

export interface BlobRef {
  /** An image's name, a blob id, or the beginning of one. */
  readonly name: string
  /** undefined: the latest. */
  readonly version: number | undefined
  readonly isBlobId: boolean
}

const REF = /^([a-z0-9][a-z0-9._-]{0,127})(?:@(latest|0|[1-9][0-9]{0,11}))?$/

/** ERR_USAGE. */
export function parseRef (ref: string): BlobRef {
  const [, name, version] = REF.exec(ref) ?? []
  if (name === undefined) {
    throw new P2pvmError('ERR_USAGE', `not an image or version: ${JSON.stringify(ref)}; expected NAME, NAME@VERSION, NAME@latest or BLOB@VERSION`)
  }
  return { name, version: version === undefined || version === 'latest' ? undefined : Number(version), isBlobId: BLOB_ID.test(name) }
}
