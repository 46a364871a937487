/** When everything is up again after a power cut everywhere: is all there, once, in order, the same for everybody? */
import { deepStrictEqual, ok, strictEqual } from 'node:assert/strict'
import { unpack } from '../../src/dht/packed-chunk.ts'
import { FIRST_ATTEMPT } from '../../src/versioning/attempts.ts'
import type { Version } from '../../src/versioning/blobs.ts'
import type { Journal, Operation } from './journal.ts'
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
  #aborted = 0

  constructor (init: FinalChecksInit) {
    this.#init = init
  }

  /** How many versions there are, and how many of them were aborted. */
  async run (): Promise<{ versions: number, aborted: number }> {
    const { journal, peers } = this.#init
    const running = await Promise.all(peers.map(async (peer) => await peer.whenUp()))
    for (const blob of journal.blobs) await this.#replay(blob, running)
    this.#checkOperations()
    for (const log of this.#logs.values()) await this.#readBack(log, running)
    this.#checkReads()
    await this.#checkNames(running)
    await this.#checkReplicas()
    return { versions: [...this.#logs.values()].reduce((sum, log) => sum + log.length, 0), aborted: this.#aborted }
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
    const { blob, message } = version
    if (version.attempt !== FIRST_ATTEMPT) {
      // The version manager ended it in a dead writer's place: it grows the blob, and changes nothing else.
      this.#aborted += 1
      this.#model.write(blob, [{ offset: version.size, bytes: new Uint8Array(0) }])
      return
    }
    const operation = this.#init.journal.operations.get(message)
    ok(operation !== undefined, `${blob}@${version.version} is nobody's: ${message}`)
    ok(!this.#found.has(message), `${message} was done twice`)
    this.#found.add(message)
    ok(operation.refused !== true, `${message} was refused and is ${blob}@${version.version}`)
    if (operation.version !== undefined) deepStrictEqual(version, operation.version, `${message} was acknowledged as something else`)
    if (operation.change.kind === 'append') this.#model.append(blob, operation.change.bytes)
    else this.#model.write(blob, operation.change.parts)
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
