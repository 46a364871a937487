/** What the examples of FORMAT.md must be, as the production code writes them. */
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { closeSync, openSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { generateKeyPairFromSeed, privateKeyToProtobuf } from '@libp2p/crypto/keys'
import { encodeFabricRecord } from '../../src/dht/fabric.ts'
import { LoggedStore } from '../../src/dht/logged-store.ts'
import { nodeDisk } from '../../src/dht/node-disk.ts'
import { RecordStore } from '../../src/dht/record-store.ts'
import { LeafStore } from '../../src/mirror/leaf-store.ts'
import { PAGE_BYTES, PageMap } from '../../src/mirror/page-map.ts'
import { createWorkingCopy } from '../../src/mirror/working-copy.ts'
import { writeCommitIntent } from '../../src/mirror/commit-intent.ts'
import { dataDirAt } from '../../src/node/data-dir.ts'
import { encodeSparse } from '../../src/node/sparse-stream.ts'
import { saveMembers } from '../../src/node/stored-members.ts'
import { P2pvmError } from '../../src/protocols/errors.ts'
import type { MemberRow } from '../../src/protocols/member-protocol.ts'
import type { SparseItem } from '../../src/versioning/image-import.ts'
import { encodeNode } from '../../src/versioning/node-codec.ts'
import { PublicationRecords } from '../../src/versioning/publication-records.ts'
import { SeenVersions } from '../../src/versioning/seen-versions.ts'
import { type Operation, putAborted, putAssigned, putBlob, putName, putRequest } from '../../src/versioning/version-store.ts'
import * as example from './example-fabric.ts'
import { FakeClock } from './fake-clock.ts'
import { MemoryKeyValueStore, MemoryRecords } from './memory-stores.ts'
import { KeptLog } from './quiet.ts'

/** As a disk keeps them: lease and value. */
async function recordEntry (): Promise<Uint8Array> {
  const store = new MemoryKeyValueStore()
  await new RecordStore({ store, clock: new FakeClock(example.createdMs) }).put([{ name: 'version/abcdefghijklmn23/1', value: Uint8Array.of(1, 2, 3) }])
  return store.get('record/version/abcdefghijklmn23/1')!
}

const id = { blob: example.blob, version: 3 }
const completion = {
  timeMs: example.createdMs + 180_000, message: 'a chunk', bytesChanged: 4096, attempt: 1, root: id, parent: { blob: example.blob, version: 2 }
}
const [assigned, open] = putAssigned(id, {
  requestId: example.requestId, writer: example.writer.peer, writerKey: example.writer.signer.publicKey, base: 1,
  sizeBefore: 20480, sizeAfter: 28672, extents: example.assignment.extents
}, completion)

/** By the key under which the version manager keeps them. */
export const managerEntries: ReadonlyMap<string, Uint8Array> = new Map([
  putBlob(example.blob, example.geometry), assigned!, open!, putAborted(example.blob, { version: 2, attempt: 2, sizeBefore: 20480 }),
  putRequest(example.requestId, { ...id, op: 'assign' }), putName('debian-12', { blob: example.blob, version: 0 })
].map(({ key, value }: Operation) => [key, value!]))

async function seenEntry (): Promise<Uint8Array> {
  const store = new MemoryKeyValueStore()
  const clock = new FakeClock()
  const publications = new PublicationRecords({ records: new MemoryRecords(), fabricKey: example.fabric.publicKey })
  const seen = new SeenVersions({ publications, clock, log: new KeptLog(), store })
  await seen.check(example.publication.header)
  await seen.check(example.publication.header)
  await seen.flush()
  await clock.advance(10_000)
  return store.get(`seen/${example.blob}`)!
}

const member: MemberRow = {
  id: example.versionManager.peer, addresses: ['/ip4/192.0.2.1/tcp/4190'], roles: ['storage', 'versions'], capacityBytes: 2 ** 40,
  incarnation: example.createdMs, heartbeat: 77, down: false
}

async function inFolder<T> (work: (folder: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), 'p2pvm-format-'))
  try {
    return await work(folder)
  } finally {
    await rm(folder, { recursive: true })
  }
}

async function membersFile (): Promise<Uint8Array> {
  return await inFolder(async (folder) => {
    const dataDir = dataDirAt(folder)
    await saveMembers(dataDir, { rows: [member], complete: true })
    return await readFile(dataDir.members)
  })
}

async function leafSlot (): Promise<Uint8Array> {
  return await inFolder(async (folder) => {
    const store = new LeafStore(folder, { blob: example.blob, version: 1 })
    store.write(0, [example.chunkId, null])
    store.close()
    return await readFile(join(folder, `${example.blob}@1`))
  })
}

async function pageMap (): Promise<Uint8Array> {
  return await inFolder(async (folder) => {
    const path = join(folder, 'map.live')
    const fd = openSync(path, 'w+')
    const map = PageMap.forSize(3 * PAGE_BYTES)
    map.mark(fd, PAGE_BYTES, 2 * PAGE_BYTES)
    map.mark(fd, 2 * PAGE_BYTES + 512, 2 * PAGE_BYTES + 1536)
    closeSync(fd)
    return await readFile(path)
  })
}

async function stateFile (): Promise<string> {
  return await inFolder(async (folder) => {
    const base = { blob: example.blob, version: 1, size: 20480, chunkSize: 4096 }
    const random = { bytes: (count: number) => new Uint8Array(count).fill(0x5a), unit: () => 0 }
    await createWorkingCopy(folder, 'vm1', base, random)
    return await readFile(join(folder, 'vm1', 'state.json'), 'utf8')
  })
}

async function commitFile (): Promise<string> {
  return await inFolder(async (folder) => {
    const member = {
      target: { kind: 'blob', blob: example.blob, expectedBase: 1 } as const, chunks: new Map([[6, example.otherChunkId], [7, null]]), size: 32768, bytesChanged: 8192
    }
    await writeCommitIntent(folder, { request: { members: [member], message: '', requestId: example.requestId }, member: 0 })
    return await readFile(join(folder, 'commit.json'), 'utf8')
  })
}

async function sparse (items: () => AsyncGenerator<SparseItem>): Promise<Uint8Array> {
  const parts: Uint8Array[] = []
  for await (const part of encodeSparse(items())) parts.push(part)
  return Buffer.concat(parts)
}

/** One entry, of a record that is stored and a key that is removed; and what the store behind the log says of that afterwards. */
async function log (): Promise<{ readonly entry: Uint8Array, readonly mark: Uint8Array }> {
  return await inFolder(async (folder) => {
    const store = new MemoryKeyValueStore()
    const path = join(folder, 'records.mdb')
    const logged = await LoggedStore.open({ store, disk: nodeDisk, path, random: { bytes: (count) => new Uint8Array(count).fill(0x5a) }, turn: async () => {}, logBytes: 1 })
    await logged.write([{ key: 'record/version/abcdefghijklmn23/1', value: await recordEntry() }, { key: 'record/other', value: null }])
    const entry = await readFile(`${path}.log-0`)
    await logged.write([{ key: 'record/other', value: null }]) // it turns over
    await logged.close()
    return { entry, mark: store.get('\0')! }
  })
}

type Maker<T> = () => T | Promise<T>

const credentials = (version: number) => ({ certificate: example.certificateOf(version), signer: example.writer.signer })

/** `hex NAME`. */
export const formatBytes: Readonly<Record<string, Maker<Uint8Array>>> = {
  'record entry': recordEntry,
  'log entry': async () => (await log()).entry,
  'log mark': async () => (await log()).mark,
  'certificate': () => example.certificateOf(1).signature,
  'leaf node': () => encodeNode(example.leafNode, credentials(3)),
  'inner node': () => encodeNode(example.rootNode, credentials(1)),
  'publication record': () => example.publication.value,
  'seen': seenEntry,
  'fabric.cbor': () => encodeFabricRecord(example.fabric),
  'members.cbor': membersFile,
  'identity.key': async () => privateKeyToProtobuf(await generateKeyPairFromSeed('Ed25519', example.versionManager.seed)),
  'leaf slot': leafSlot,
  'map.live': pageMap,
  'sparse stream': async () => await sparse(async function * () {
    yield { offset: 4096, bytes: example.chunk }
    yield { size: 8192 }
  }),
  'sparse stream that failed': async () => await sparse(async function * () {
    yield { offset: 0, bytes: Uint8Array.of(7) }
    throw new P2pvmError('ERR_MISSING', 'gone')
  }),
  ...Object.fromEntries([...managerEntries].map(([key, value]) => [key, () => value]))
}

/** `json NAME`: whole files. */
export const formatFiles: Readonly<Record<string, Maker<string>>> = { 'state.json': stateFile, 'commit.json': commitFile }
