/**
 * Publication records from storage peers, who may say what they like: signature, name and body are checked, and who sends another
 * record than the one that was asked for is reported. State it owns: the exceptions of versions that were read and have some.
 */
import type { Records } from '../dht/records.ts'
import { P2pvmError } from '../protocols/errors.ts'
import { Attempts, EXCEPTIONS_MAX } from './attempts.ts'
import type { BlobId, Version, VersionId } from './blobs.ts'
import { LruCache } from './lru-cache.ts'
import { decodePublication, type Header, type PublicationRecord } from './publication-codec.ts'
import { versionName } from './tree-names.ts'

export interface PublicationRecordsComponents {
  readonly records: Records
  /** The public half, raw. */
  readonly fabricKey: Uint8Array
}

/** Of all versions together: some 150 bytes each. */
const EXCEPTIONS_CACHED_MAX = 16 * EXCEPTIONS_MAX

type Options = { readonly signal?: AbortSignal | undefined }

export class PublicationRecords {
  readonly #components: PublicationRecordsComponents
  readonly #attempts = new LruCache<Attempts>(EXCEPTIONS_CACHED_MAX)

  constructor (components: PublicationRecordsComponents) {
    this.#components = components
  }

  /** ERR_NOT_FOUND when there is no such version, else as Records.get. */
  async get (id: VersionId, options: Options = {}): Promise<PublicationRecord> {
    const { blob, version } = id
    const [record] = await this.#fetch(blob, [version], options)
    if (record === undefined) throw new P2pvmError('ERR_NOT_FOUND', `no version ${version} of ${blob}`, { blob, version })
    const { exceptions } = record
    if (exceptions.length > 0) this.#attempts.set(versionName(blob, version), new Attempts(exceptions), exceptions.length)
    return record
  }

  /** In their order, one batch for all. undefined: there is none. Errors as Records.get. */
  async headers (blob: BlobId, versions: readonly number[], options: Options = {}): Promise<Array<Header | undefined>> {
    return (await this.#fetch(blob, versions, options)).map((record) => record?.header)
  }

  /** What a version's tree is read by. Its exceptions are in its publication record alone: few versions have any. */
  async attemptsOf (version: Version, options: Options = {}): Promise<Attempts> {
    if (version.exceptions === 0) return Attempts.first
    const known = this.#attempts.get(versionName(version.blob, version.version))
    return known ?? new Attempts((await this.get(version, options)).exceptions)
  }

  async #fetch (blob: BlobId, versions: readonly number[], { signal }: Options): Promise<Array<PublicationRecord | undefined>> {
    const { records, fabricKey } = this.#components
    const byName = new Map(versions.map((version) => [versionName(blob, version), version]))
    const accepted = new Map<string, PublicationRecord>()
    const accept = (name: string, value: Uint8Array): boolean => {
      try {
        accepted.set(name, decodePublication(value, { blob, version: byName.get(name)! }, fabricKey))
        return true
      } catch {
        return false // another replica is asked; this one is reported
      }
    }
    const names = [...byName.keys()]
    const values = await records.get(names, { signal, accept })
    return names.map((name, at) => values[at] === undefined ? undefined : accepted.get(name))
  }
}
