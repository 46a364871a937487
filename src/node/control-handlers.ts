/**
 * What the control socket's endpoints do: each is a few lines that hand over to the room that does it. Owns no state.
 */
import { keyOfRecord } from '../dht/placement.ts'
import { chunkIdOfDigest, digestOf } from '../protocols/cid.ts'
import { type ConflictReason, P2pvmError } from '../protocols/errors.ts'
import { FIRST_ATTEMPT } from '../versioning/attempts.ts'
import { parseRef } from '../versioning/blob-ref.ts'
import type { Version, WriteOptions } from '../versioning/blobs.ts'
import { exportVersion, readVersion, verifyVersion } from '../versioning/image-export.ts'
import { importImage } from '../versioning/image-import.ts'
import { listMounts } from './mounts.ts'
import type { Peer } from './peer.ts'
import type { ControlHandlers, Status, VersionRow, WriteRequest, WriteResult } from './control-api.ts'
import type { WorkingCopies } from './working-copies.ts'
import type { CounterRegistry } from './world.ts'

export interface ControlHandlersComponents {
  readonly peer: Peer
  readonly workingCopies: WorkingCopies
  readonly counters: CounterRegistry
  readonly control: string
  readonly version: string // of the program
}

export function controlHandlers ({ peer, workingCopies, counters, control, version: program }: ControlHandlersComponents): ControlHandlers {
  const startedMs = peer.clock.monotonic()
  const { dataDir, blobs, cachedChunks: chunks } = peer

  /** A blob by its id or name: the latest version. */
  const recent = async (ref: string, signal: AbortSignal): Promise<Version> => {
    if (parseRef(ref).version !== undefined) throw new P2pvmError('ERR_USAGE', `${ref} is one version; a blob is named by its id or name alone`, { ref })
    return await blobs.resolve(ref, { signal })
  }

  /** Asked before the first byte is read: nobody wants to learn it after two gigabytes. The assignment asks again. */
  const blobToWrite = async ({ ref, expectedBase, requestId }: WriteRequest, signal: AbortSignal): Promise<string> => {
    const { blob, version: latest } = await recent(ref, signal)
    // A repeated request may have moved it on itself.
    if (expectedBase === undefined || expectedBase === latest || requestId !== undefined) return blob
    throw new P2pvmError('ERR_CONFLICT', `${blob} has moved on: its latest version is ${latest}, not ${expectedBase}`, { blob, latest, expectedBase, reason: 'moved-on' satisfies ConflictReason })
  }

  return {
    async status (): Promise<Status> {
      const members = peer.membership.members()
      return {
        peerId: peer.id,
        fabric: peer.fabric.id,
        roles: peer.roles,
        addresses: peer.addresses(),
        pid: process.pid,
        version: program,
        uptimeMs: Math.round(peer.clock.monotonic() - startedMs),
        control,
        dataDir: dataDir.root,
        members: members.length,
        membersUp: members.filter(({ state }) => state === 'up').length,
        memberListComplete: peer.memberListComplete(),
        stored: peer.stored(),
        cache: peer.cache.usage(),
        mounts: (await listMounts(dataDir.mounts)).map(({ mountpoint, pid, driver }) => ({ mountpoint, pid, driver })),
        counters: counters.totals()
      }
    },

    async peers ({ signal }) {
      // By lookups alone a peer knows those whom it has asked lately. The nearest to any key are all of a small fabric.
      if (!peer.memberListComplete()) await peer.membership.closest(keyOfRecord(peer.id), { signal }).catch(() => {})
      return peer.membership.members().map((member) => ({
        peerId: member.id,
        addresses: member.addresses,
        roles: member.roles,
        capacityBytes: member.capacityBytes,
        state: member.state,
        self: member.id === peer.id
      }))
    },

    async folders () {
      const { cache, working, mounts } = dataDir
      return { cache, working, mounts }
    },

    async images ({ signal }) {
      return (await blobs.images({ signal })).map(({ name, latest }) => ({ name, ...rowOf(latest) }))
    },

    async versions (ref, { signal }) {
      const { blob } = await blobs.resolve(ref, { signal })
      return (await blobs.log(blob, { signal })).map(rowOf)
    },

    async resolve (ref, { signal }) {
      return rowOf(await blobs.resolve(ref, { signal }))
    },

    async chunkIds ({ blob, version, first, count }, { signal }) {
      return await blobs.chunkIds(await blobs.version({ blob, version }, { signal }), first, count, { signal })
    },

    async fetch (ids, { signal, priority = 'demand' }) {
      // Back and forth, so that what is no chunk id is refused before anybody is asked for it.
      return await chunks.ensureCached(ids.map((id) => chunkIdOfDigest(digestOf(id))), { signal, priority })
    },

    async import ({ name, chunkSize, message }, source, { signal, onProgress }) {
      const requestId = Buffer.from(peer.random.bytes(16)).toString('hex')
      const { version, totals } = await importImage(source, {
        name, chunkSize, requestId, signal, onProgress, ...message === undefined ? {} : { message }
      }, { blobs, chunks })
      return {
        blob: version.blob,
        version: version.version,
        name,
        size: version.size,
        chunkSize,
        chunks: totals.chunks,
        holes: totals.holes,
        newChunks: totals.newChunks,
        storedBytes: totals.storedBytes,
        sentBytes: totals.sentBytes,
        replicas: { wanted: totals.replicasWanted, degradedChunks: totals.degradedChunks }
      }
    },

    async export (ref, { signal }) {
      const version = await blobs.resolve(ref, { signal })
      return { version: rowOf(version), items: exportVersion(version, { blobs, chunks: peer.chunks, signal }) }
    },

    async verify (ref, { signal }) {
      const version = await blobs.resolve(ref, { signal })
      const { wanted, found, ...sums } = await verifyVersion(version, { blobs, chunks, signal })
      return { blob: version.blob, version: version.version, replicas: { wanted, found }, ...sums }
    },

    async createBlob ({ chunkSize, fanOut, name }, { signal }) {
      const created = await blobs.create({
        ...chunkSize === undefined ? {} : { chunkSize }, ...fanOut === undefined ? {} : { fanOut }, ...name === undefined ? {} : { name }
      }, { signal })
      return { blob: created.blob, version: created.version, chunkSize: created.chunkSize, fanOut: created.fanOut, name: name ?? null }
    },

    async writeBlob (request, parts, { signal }) {
      return writtenOf(await blobs.write(await blobToWrite(request, signal), parts, { ...optionsOf(request), signal }))
    },

    async appendBlob (request, bytes, { signal }) {
      const written = writtenOf(await blobs.append(await blobToWrite(request, signal), bytes, { ...optionsOf(request), signal }))
      return { ...written, offset: written.size - written.bytes }
    },

    async readBlob (ref, { offset = 0, size }, { signal }) {
      const version = await blobs.resolve(ref, { signal })
      // Not through the cache: it is for what machines read again, and one read of all would push that out.
      const items = readVersion(version, { offset, size: size ?? version.size }, { blobs, chunks: peer.chunks, signal })
      return { version: rowOf(version), items }
    },

    recent: async (ref, { signal }) => rowOf(await recent(ref, signal)),

    workingCopies: async () => await workingCopies.list(),
    createWorkingCopy: async ({ name, ref }, { signal }) => await workingCopies.create(name, ref, signal),
    removeWorkingCopy: async (name) => { await workingCopies.remove(name) },
    revertWorkingCopy: async (name, { signal }) => await workingCopies.revert(name, signal),
    commit: async (request, { signal }) => await workingCopies.commit(request, signal),
    commitGroup: async (request, { signal }) => ({ members: await workingCopies.commitGroup(request, signal) }),

    async clone ({ ref, name, ...which }, { signal }) {
      if (ref === undefined) return await workingCopies.clone({ ...which, name }, signal)
      const source = await blobs.resolve(ref, { signal })
      const { blob, version } = await blobs.clone({ blob: source.blob, version: source.version }, name === undefined ? {} : { name }, { signal })
      return { blob, version, name: name ?? null, path: null }
    },

    metrics: async () => counters.render()
  }
}

function optionsOf ({ expectedBase, message, requestId }: WriteRequest): Pick<WriteOptions, 'expectedBase' | 'message' | 'requestId'> {
  return { expectedBase, message, ...requestId === undefined ? {} : { requestId } }
}

function writtenOf ({ blob, version, size, bytesChanged }: Version): WriteResult {
  return { blob, version, size, bytes: bytesChanged }
}

export function rowOf (version: Version): VersionRow {
  const { blob, version: number, size, chunkSize, fanOut, timeMs, writer, message, bytesChanged, parent, attempt } = version
  return { blob, version: number, size, chunkSize, fanOut, timeMs, writer, message, bytesChanged, parent, aborted: attempt !== FIRST_ATTEMPT }
}
