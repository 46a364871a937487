/**
 * What a storage peer takes: tree nodes of whoever their version was assigned to, and publication records of the version manager, each
 * under its own name and no other. So nobody can occupy a name that somebody else will write, nor fill disks with what nobody will
 * read. Who hands it over does not matter: copies that repair makes are as good as the first.
 */
import type { NamedRecord } from '../dht/records.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { PeerId } from '../protocols/transport.ts'
import { Certificates } from './certificates.ts'
import { decodeNode } from './node-codec.ts'
import { decodePublication } from './publication-codec.ts'
import { nodeOfName, versionOfName } from './tree-names.ts'

export interface RecordAdmissionInit {
  /** The public half, raw. */
  readonly fabricKey: Uint8Array
  /** Its publication records are taken as they are: the connection proves whose they are. */
  readonly versionManager: PeerId
}

export function createRecordAdmission ({ fabricKey, versionManager }: RecordAdmissionInit): (record: NamedRecord, from: PeerId) => boolean {
  const certificates = new Certificates(fabricKey)
  const check = ({ name, value }: NamedRecord, from: PeerId): boolean => {
    const node = nodeOfName(name)
    const version = versionOfName(name)
    if (node !== undefined) decodeNode(value, node, node.attempt, certificates)
    else if (version !== undefined && from !== versionManager) decodePublication(value, version, fabricKey)
    return node !== undefined || version !== undefined
  }
  return (record, from) => {
    try {
      return check(record, from)
    } catch (error) {
      if (error instanceof P2pvmError) return false
      throw error
    }
  }
}
