/** When everything is up again after a power cut everywhere: is all there, once, in order, the same for everybody? */
import { deepStrictEqual, ok, strictEqual } from 'node:assert/strict'
import { unpack } from '../../src/dht/packed-chunk.ts'
import { FIRST_ATTEMPT } from '../../src/versioning/attempts.ts'
import type { Version } from '../../src/versioning/blobs.ts'
import type { Change, Journal, Operation } from './journal.ts'
import { ReferenceModel } from './reference-model.ts'
import type { SeededRandom } from './seeded-random.ts'
import type { Running, SimulatedPeer } from './simulated-peer.ts'

export interface FinalChecksInit {
  readonly journal: Journal
  readonly peers: readonly SimulatedPeer[]
  readonly random: SeededRandom
}

export class FinalChecks {
  readonly #init: FinalChecksInit
  readonly #model = new ReferenceModel()
  readonly #logs = new Map<string, Version[]>()
  readonly #found = new Set<string>()
  /** Members of groups, by the group's id. */
  readonly #foundMembers = new Map<string, Set<number>>()
  #aborted = 0

  constructor (init: FinalChecksInit) {
    this.#init = init
  }

  /** How many versions there are, how many of them were aborted, and how many groups show. */
  async run (): Promise<{ versions: number, aborted: number, groups: number }> {
    const { journal, peers } = this.#init
    const running = await Promise.all(peers.map(async (peer) => await peer.whenUp()))
    await this.#findBlobsOfGroups(running)
    for (const blob of journal.blobs) await this.#replay(blob, running)
    this.#checkOperations()
    this.#checkGroups()
    for (const log of this.#logs.values()) await this.#readBack(log, running)
    this.#checkReads()
    await this.#checkNames(running)
    await this.#checkReplicas()
    return { versions: [...this.#logs.values()].reduce((sum, log) => sum + log.length, 0), aborted: this.#aborted, groups: this.#foundMembers.size }
  }

  /** Whoever made a group may have died before he learned which blob it made. */
  async #findBlobsOfGroups (running: readonly Running[]): Promise<void> {
    const { journal, random } = this.#init
    const { blobs } = random.pick(running)
    const images = new Map((await blobs.images()).map(({ name, blob }) => [name, blob]))
    for (const { members } of journal.groups.values()) {
      for (const { of } of members) {
        const blob = 'name' in of ? images.get(of.name) : undefined
        if (blob !== undefined && !journal.blobs.includes(blob)) journal.created(await blobs.version({ blob, version: 0 }))
        if (blob !== undefined && 'name' in of) journal.names.set(of.name, blob)
      }
    }
  }

  /** The history of a blob goes through the model, after that of the blob it is a clone of. */
  async #replay (blob: string, running: readonly Running[]): Promise<void> {
    if (this.#logs.has(blob)) return
    const { journal, random } = this.#init
    const log = await random.pick(running).blobs.log(blob)
    this.#logs.set(blob, log)
    deepStrictEqual(log.map(({ version }) => version), [...log.keys()], `the versions of ${blob}`)
    ok(log.length > journal.newest(blob).version, `${blob}@${journal.newest(blob).version} was seen and is gone`)
    const parent = log[0]!.parent
    if (parent !== null) await this.#replay(parent.blob, running)
    this.#model.create(blob, parent === null ? undefined : this.#content(parent))
    for (const version of log.slice(1)) this.#apply(version)
    for (const version of log) journal.saw(version)
  }

  #apply (version: Version): void {
    const { blob } = version
    if (version.attempt !== FIRST_ATTEMPT) {
      // The version manager ended it in a dead writer's place: it grows the blob, and changes nothing else.
      this.#aborted += 1
      this.#model.write(blob, [{ offset: version.size, bytes: new Uint8Array(0) }])
      return
    }
    const change = this.#changeOfMember(version) ?? this.#changeOfOperation(version)
    if (change.kind === 'append') this.#model.append(blob, change.bytes)
    else this.#model.write(blob, change.parts)
  }

  #changeOfOperation (version: Version): Change {
    const { blob, message } = version
    const operation = this.#init.journal.operations.get(message)
    ok(operation !== undefined, `${blob}@${version.version} is nobody's: ${message}`)
    ok(!this.#found.has(message), `${message} was done twice`)
    this.#found.add(message)
    ok(operation.refused !== true, `${message} was refused and is ${blob}@${version.version}`)
    if (operation.version !== undefined) deepStrictEqual(version, operation.version, `${message} was acknowledged as something else`)
    return operation.change
  }

  /** undefined: it is of no group. */
  #changeOfMember (version: Version): Change | undefined {
    const { journal } = this.#init
    const { blob, message } = version
    const group = journal.groups.get(message)
    if (group === undefined) return undefined
    const member = group.members.findIndex(({ of }) => ('name' in of ? journal.names.get(of.name) : of.blob) === blob)
    const found = this.#foundMembers.get(message) ?? new Set()
    this.#foundMembers.set(message, found)
    ok(member >= 0, `${blob}@${version.version} is of no member of ${message}`)
    ok(!found.has(member), `member ${member} of ${message} was done twice`)
    found.add(member)
    ok(group.refused !== true, `${message} was refused and is ${blob}@${version.version}`)
    if (group.versions !== undefined) deepStrictEqual(version, group.versions[member], `member ${member} of ${message} was acknowledged as something else`)
    return { kind: 'write', parts: group.members[member]!.parts }
  }

  /** All members show, or none: what was acknowledged, all. */
  #checkGroups (): void {
    for (const { id, members, versions } of this.#init.journal.groups.values()) {
      const found = this.#foundMembers.get(id)?.size ?? 0
      ok(found === members.length || (found === 0 && versions === undefined), `of ${members.length} members of ${id} ${found} show`)
    }
  }

  #checkOperations (): void {
    const lost = (operation: Operation): boolean => operation.version !== undefined && !this.#found.has(operation.id)
    deepStrictEqual([...this.#init.journal.operations.values()].filter(lost).map(({ id }) => id), [], 'acknowledged and lost')
  }

  /** Every version from some peer, the latest from all of them. */
  async #readBack (log: readonly Version[], running: readonly Running[]): Promise<void> {
    for (const version of log) {
      const readers = version === log.at(-1) ? running : [this.#init.random.pick(running)]
      for (const { blobs } of readers) {
        const found = await blobs.version(version)
        deepStrictEqual(found, version, 'a publication record')
        this.#compare(version, 0, this.#content(version).length, await blobs.read(found, 0, found.size))
      }
    }
  }

  #checkReads (): void {
    for (const { id, offset, bytes } of this.#init.journal.reads) this.#compare(id, offset, bytes.length, bytes)
  }

  async #checkNames (running: readonly Running[]): Promise<void> {
    const { blobs } = this.#init.random.pick(running)
    const images = await blobs.images()
    for (const [name, blob] of this.#init.journal.names) {
      deepStrictEqual(images.filter((image) => image.name === name).map((image) => image.blob), [blob], `the image ${name}`)
      strictEqual((await blobs.resolve(name)).blob, blob)
    }
  }

  /** One value per name, whoever keeps it; no chunk that is not what it is called. */
  async #checkReplicas (): Promise<void> {
    const values = new Map<string, Uint8Array>()
    for (const peer of this.#init.peers) {
      for (const [name, value] of peer.recordsOnDisk()) {
        const other = values.get(name)
        ok(other === undefined || Buffer.compare(other, value) === 0, `${name} has two values`)
        values.set(name, value)
      }
      // Of one that rotted, what was read back was good all the same.
      if (peer.hasRotted) continue
      for (const [path, bytes] of await peer.chunkFiles()) ok(unpack(path.slice(path.lastIndexOf('/') + 1), bytes) !== undefined, `${path} of ${peer.id} is not what it is called`)
    }
  }

  #compare ({ blob, version }: { blob: string, version: number }, offset: number, size: number, bytes: Uint8Array): void {
    const content = this.#content({ blob, version })
    const expected = content.subarray(offset, offset + Math.max(size, bytes.length))
    strictEqual(bytes.length, expected.length, `length of what was read of ${blob}@${version}`)
    if (Buffer.compare(bytes, expected) === 0) return
    const at = expected.findIndex((byte, index) => byte !== bytes[index])
    throw new Error(`${blob}@${version} (${content.length} bytes) differs from the model at byte ${offset + at}`)
  }

  #content ({ blob, version }: { blob: string, version: number }): Uint8Array {
    return this.#model.content(blob, version)!
  }
}
