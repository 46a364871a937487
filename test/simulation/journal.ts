/**
 * What the writers did and what anybody saw, for the checks at the end; and the checks that can be made at once: a version that
 * shows is complete, as are all before it, on W disks, and with it all of its group; it never changes; the latest never goes back.
 */
import { deepStrictEqual } from 'node:assert/strict'
import { FIRST_ATTEMPT } from '../../src/versioning/attempts.ts'
import type { Version, VersionId } from '../../src/versioning/blobs.ts'
import { decodePublication } from '../../src/versioning/publication-codec.ts'
import { namesWrittenBy, nodeName, versionName } from '../../src/versioning/tree-names.ts'
import { fabricSigner } from '../harness/signers.ts'
import type { Part } from './reference-model.ts'
import type { SimulatedPeer } from './simulated-peer.ts'

export type Change = { readonly kind: 'write', readonly parts: readonly Part[] } | { readonly kind: 'append', readonly bytes: Uint8Array }

/** An operation that makes a version. Its id is in the version's message. */
export interface Operation {
  readonly id: string
  readonly change: Change
  /** Acknowledged as this. */
  version?: Version
  /** The answer was that it will never be. */
  refused?: boolean
}

/** A version of each of several blobs, all or none. Its id is in the message of each. */
export interface Group {
  readonly id: string
  readonly members: readonly GroupMember[]
  /** Acknowledged as these. */
  versions?: readonly Version[]
  /** The answer was that none of it will ever be. */
  refused?: boolean
}

export interface GroupMember {
  /** A blob that was there; of one that the group made, the name. */
  readonly of: { readonly blob: string } | { readonly name: string }
  readonly parts: readonly Part[]
}

export interface Read {
  readonly id: VersionId
  readonly offset: number
  readonly bytes: Uint8Array
}

export class Journal {
  readonly #storagePeers: readonly SimulatedPeer[]
  readonly #acknowledgements: number
  readonly #seen = new Map<string, Version>()
  readonly #newest = new Map<string, Version>()
  readonly operations = new Map<string, Operation>()
  readonly groups = new Map<string, Group>()
  readonly reads: Read[] = []
  /** Acknowledged names, and the blobs that they were given to. */
  readonly names = new Map<string, string>()
  /** Of which a version 0 was acknowledged. */
  readonly blobs: string[] = []

  constructor (storagePeers: readonly SimulatedPeer[], acknowledgements: number) {
    this.#storagePeers = storagePeers
    this.#acknowledgements = acknowledgements
  }

  /** The newest version that anybody has seen. Whoever asks from now on must not see an older one. */
  newest (blob: string): Version {
    return this.#newest.get(blob)!
  }

  checkNotOlder ({ blob, version }: VersionId, floor: number): void {
    if (version < floor) throw new Error(`the latest version of ${blob} was ${floor}, and is ${version} now`)
  }

  created (version: Version): void {
    this.blobs.push(version.blob)
    this.saw(version)
  }

  /** A published version was shown to somebody. */
  saw (version: Version): void {
    const name = `${version.blob}@${version.version}`
    const before = this.#seen.get(name)
    if (before !== undefined) {
      deepStrictEqual(version, before, `${name} has changed`)
      return
    }
    this.#seen.set(name, version)
    const newest = this.#newest.get(version.blob)
    for (let earlier = (newest?.version ?? -1) + 1; earlier <= version.version; earlier++) this.#checkComplete({ blob: version.blob, version: earlier })
    this.#checkGroupOf(version)
    if (newest === undefined || newest.version < version.version) this.#newest.set(version.blob, version)
  }

  /** Its publication record and every tree node that it names are on W disks. */
  #checkComplete (id: VersionId): void {
    const { header: { version, sizeBefore }, extents } = decodePublication(this.#onDisks(versionName(id.blob, id.version)), id, fabricSigner.publicKey)
    if (id.version === 0) return
    for (const place of namesWrittenBy({ extents, sizeBefore, sizeAfter: version.size }, version).names()) this.#onDisks(nodeName({ ...id, ...place }, version.attempt))
  }

  /** That a group is complete is one record: when one member shows the version manager can forget none. */
  #checkGroupOf ({ message, attempt }: Version): void {
    const group = this.groups.get(message)
    if (group === undefined || attempt !== FIRST_ATTEMPT) return
    const versions = this.#storagePeers[0]!.versionsOnDisk()
    for (const member of group.members.keys()) {
      const entry = versions.request(`${group.id}-${member}`)
      const history = entry && versions.history(entry.blob)
      if (entry === undefined || history === undefined) throw new Error(`a member of ${group.id} shows, and member ${member} was never assigned`)
      const open = history.open.find(({ version }) => version === entry.version)
      if (open !== undefined && open.complete?.attempt !== FIRST_ATTEMPT) throw new Error(`a member of ${group.id} shows, and ${entry.blob}@${entry.version} is not complete`)
      if (history.aborted.some(({ version }) => version === entry.version)) throw new Error(`a member of ${group.id} shows, and ${entry.blob}@${entry.version} is aborted`)
    }
  }

  #onDisks (name: string): Uint8Array {
    const values = this.#storagePeers.map((peer) => peer.recordOnDisk(name)).filter((value) => value !== undefined)
    if (values[0] === undefined || values.length < this.#acknowledgements) throw new Error(`a published version shows, and ${name} is on ${values.length} disks`)
    return values[0]
  }
}
