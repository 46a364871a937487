/**
 * The layout of a daemon's data directory. One daemon owns it (`daemon.lock`); its mounts share `cache`, `working`, `mounts`.
 */
import { join } from 'node:path'
import type { MirrorFolders } from '../mirror/source.ts'

export interface DataDir extends MirrorFolders {
  readonly root: string
  readonly lock: string
  readonly identity: string // the libp2p private key
  readonly fabric: string // which fabric this peer belongs to
  readonly fabricKey: string // of the fabric, on the peer that made it
  readonly members: string // last known member list
  readonly chunks: string // storage role: durable chunks
  readonly records: string // storage role: tree nodes and publication records
  readonly versions: string // versions role: the version manager's memory
  readonly seen: string // which versions were seen of each blob
}

export function dataDirAt (root: string): DataDir {
  return {
    root,
    lock: join(root, 'daemon.lock'),
    identity: join(root, 'identity.key'),
    fabric: join(root, 'fabric.cbor'),
    fabricKey: join(root, 'fabric.key'),
    members: join(root, 'members.cbor'),
    chunks: join(root, 'chunks'),
    records: join(root, 'records.mdb'),
    versions: join(root, 'versions.mdb'),
    seen: join(root, 'seen.mdb'),
    cache: join(root, 'cache'),
    working: join(root, 'working'),
    mounts: join(root, 'mounts')
  }
}
