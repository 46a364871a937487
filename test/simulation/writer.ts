/**
 * One writer: random operations, one after the other, each from a random peer, whose key its version is assigned to. It keeps on until an operation is acknowledged or refused,
 * also when its peer dies under it: what it was about to do, and the request id, it knows again. Some operations it dies of.
 */
import { untilAborted } from '../../src/protocols/abort.ts'
import { chunkIdOf, isZero, type ChunkId } from '../../src/protocols/cid.ts'
import { errorCodeOf } from '../../src/protocols/errors.ts'
import { LEASE_MS } from '../../src/protocols/version-protocol.ts'
import type { GroupMember as MemberRequest, Target, Version } from '../../src/versioning/blobs.ts'
import type { Change, Group, Journal, Operation } from './journal.ts'
import type { Part } from './reference-model.ts'
import type { SeededRandom } from './seeded-random.ts'
import type { Running, SimulatedPeer } from './simulated-peer.ts'
import type { Surroundings } from './simulated-process.ts'

export interface WriterInit {
  readonly name: string
  readonly peers: readonly SimulatedPeer[]
  readonly random: SeededRandom
  readonly surroundings: Surroundings
  readonly journal: Journal
  /** Whether there is one more operation to do. */
  readonly take: () => boolean
}

/** An attempt at an operation, on a peer that is up. */
type Attempt<T> = (running: Running, signal: AbortSignal, first: boolean) => Promise<T>

export const CHUNK_BYTES = 4096
const BLOB_BYTES_MAX = 16 * CHUNK_BYTES
const PARTS_MAX = 4
/** Whose outcome is not known. Everything else is an answer, and only some of those may be given. */
const TRANSIENT: ReadonlySet<string> = new Set(['ERR_UNAVAILABLE', 'ERR_TIMEOUT', 'ERR_ABORTED'])
const PATIENCE_MS = 90_000
/** An operation that is left where it is, within DIES_MS_MAX of its beginning: whoever comes after it must not wait for ever. */
const DYING_SHARE = 0.07
const DIES_MS_MAX = 1_500
/** A pause in which the version manager takes the writer for dead. What it asks afterwards comes too late. */
const SLEEPING_SHARE = 0.05

export class Writer {
  readonly #init: WriterInit
  #count = 0

  constructor (init: WriterInit) {
    this.#init = init
  }

  async run (): Promise<void> {
    const { random, take, journal } = this.#init
    while (take()) {
      this.#count += 1
      if (journal.blobs.length === 0) await this.#create()
      else await this.#weighted([
        [4, this.#create], [6, this.#clone], [5, this.#publish], [18, this.#publishGroup], [40, this.#write], [20, this.#append], [15, this.#read], [10, this.#recent]
      ])
      await this.#init.surroundings.timeline.sleep(random.exponential(20))
    }
  }

  async #weighted (choices: ReadonlyArray<readonly [number, () => Promise<void>]>): Promise<void> {
    let left = this.#init.random.below(choices.reduce((sum, [weight]) => sum + weight, 0))
    for (const [weight, work] of choices) {
      left -= weight
      if (left < 0) return await work.call(this)
    }
  }

  async #create (): Promise<void> {
    const fanOut = this.#init.random.pick([2, 4, 64])
    await this.#settled(await this.#untilDone('create', async ({ blobs }, signal) => await blobs.create({ chunkSize: CHUNK_BYTES, fanOut }, { signal })))
  }

  async #clone (): Promise<void> {
    const source = this.#anyVersion()
    await this.#settled(await this.#untilDone(`clone ${source.blob}@${source.version}`, async ({ blobs }, signal) => await blobs.clone(source, {}, { signal })))
  }

  /** A clone with a name and a first version of its own, in one step. */
  async #publish (): Promise<void> {
    const { journal } = this.#init
    const source = this.#anyVersion()
    const name = `image-${this.#init.name}-${this.#count}`
    const parts = this.#chunks()
    const operation = this.#operation({ kind: 'write', parts })
    const version = await this.#untilDone(`${operation.id} as ${name}`, async ({ blobs, chunks }, signal, first) => {
      const known = await this.#outcome(operation, blobs, signal, first)
      if (known !== undefined || operation.refused === true) return known
      const request = { requestId: operation.id, message: operation.id, ...await this.#put({ kind: 'clone', source, name }, parts, chunks, signal) }
      return await this.#unlessRefused(operation, async () => await blobs.publish(request, { signal }))
    })
    if (version === undefined) return
    operation.version = version
    await this.#named(name, version)
    journal.saw(version)
  }

  /** A new version of each of some blobs, which others write, too, and now and then of a clone with a name. */
  async #publishGroup (): Promise<void> {
    const { random, journal } = this.#init
    const blobs = new Set(Array.from({ length: 1 + random.below(3) }, () => random.pick(journal.blobs)))
    const targets: Target[] = [...blobs].map((blob) => ({ kind: 'blob', blob, expectedBase: journal.newest(blob).version }))
    const name = `image-${this.#init.name}-${this.#count}`
    if (random.unit() < 0.4) targets.push({ kind: 'clone', source: this.#anyVersion(), name })
    const group: Group = {
      id: `group-${this.#init.name}-${this.#count}`,
      members: targets.map((target) => ({ of: target.kind === 'blob' ? { blob: target.blob } : { name }, parts: this.#chunks() }))
    }
    journal.groups.set(group.id, group)
    const versions = await this.#untilDone(`${group.id} on ${[...blobs].join(' ')}`, async ({ blobs, chunks }, signal, first) => {
      if (!first && random.unit() < 0.5) {
        const outcome = await blobs.groupOutcome({ requestId: group.id, count: targets.length }, { signal })
        group.refused = outcome === 'aborted'
        if (outcome !== undefined) return outcome === 'aborted' ? undefined : outcome
      }
      const members: MemberRequest[] = []
      for (const [at, target] of targets.entries()) members.push(await this.#put(target, group.members[at]!.parts, chunks, signal))
      return await this.#unlessRefused(group, async () => await blobs.publishGroup({ requestId: group.id, members, message: group.id }, { signal }))
    })
    if (versions === undefined) return
    group.versions = versions
    for (const [at, version] of versions.entries()) {
      if (targets[at]!.kind !== 'blob') await this.#named(name, version)
      journal.saw(version)
    }
  }

  /** Some whole chunks. */
  #chunks (): Part[] {
    const { random } = this.#init
    const indices = new Set(Array.from({ length: 1 + random.below(4) }, () => random.below(BLOB_BYTES_MAX / CHUNK_BYTES)))
    return [...indices].map((index) => ({ offset: index * CHUNK_BYTES, bytes: this.#bytes(CHUNK_BYTES) }))
  }

  /** What is to be asked when they are on the fabric. */
  async #put (target: Target, parts: readonly Part[], chunks: Running['chunks'], signal: AbortSignal): Promise<MemberRequest> {
    const ids = new Map<number, ChunkId | null>()
    for (const { offset, bytes } of parts) {
      if (!isZero(bytes)) await chunks.put(chunkIdOf(bytes), bytes, { signal })
      ids.set(offset / CHUNK_BYTES, isZero(bytes) ? null : chunkIdOf(bytes))
    }
    const size = Math.max(...parts.map(({ offset }) => offset + CHUNK_BYTES))
    return { target, chunks: ids, size, bytesChanged: size }
  }

  /** A name was acknowledged, and with it a blob, whose beginning is looked at. */
  async #named (name: string, { blob }: Version): Promise<void> {
    this.#init.journal.names.set(name, blob)
    const start = await this.#untilDone(`version 0 of ${blob}`, async ({ blobs }, signal) => await blobs.version({ blob, version: 0 }, { signal }), { mayDie: false })
    await this.#settled(start)
  }

  async #write (): Promise<void> {
    const { random, journal } = this.#init
    const blob = random.pick(journal.blobs)
    const parts = Array.from({ length: 1 + random.below(PARTS_MAX) }, () => {
      const aligned = random.unit() < 0.3
      const offset = random.below(BLOB_BYTES_MAX / 2) * (random.unit() < 0.2 ? 2 : 1)
      return { offset: aligned ? offset - offset % CHUNK_BYTES : offset, bytes: this.#bytes(aligned ? CHUNK_BYTES : 1 + random.below(3 * CHUNK_BYTES)) }
    })
    const expectedBase = random.unit() < 0.1 ? journal.newest(blob).version : undefined
    await this.#change(blob, { kind: 'write', parts }, expectedBase)
  }

  async #append (): Promise<void> {
    const { random, journal } = this.#init
    await this.#change(random.pick(journal.blobs), { kind: 'append', bytes: this.#bytes(1 + random.below(2 * CHUNK_BYTES)) }, undefined)
  }

  async #change (blob: string, change: Change, expectedBase: number | undefined): Promise<void> {
    const operation = this.#operation(change)
    const options = { requestId: operation.id, message: operation.id, ...expectedBase === undefined ? {} : { expectedBase } }
    const version = await this.#untilDone(`${operation.id} on ${blob}`, async ({ blobs }, signal, first) => {
      const known = await this.#outcome(operation, blobs, signal, first)
      if (known !== undefined || operation.refused === true) return known
      return await this.#unlessRefused(operation, async () => change.kind === 'append'
        ? await blobs.append(blob, change.bytes, { ...options, signal })
        : await blobs.write(blob, change.parts, { ...options, signal }))
    })
    if (version === undefined) return
    operation.version = version
    this.#init.journal.saw(version)
  }

  async #read (): Promise<void> {
    const { random, journal } = this.#init
    const id = this.#anyVersion()
    const offset = random.below(BLOB_BYTES_MAX)
    const size = random.below(BLOB_BYTES_MAX)
    await this.#untilDone(`read ${id.blob}@${id.version}`, async ({ blobs }, signal) => {
      const version = await blobs.version(id, { signal })
      journal.reads.push({ id, offset, bytes: await blobs.read(version, offset, size, { signal }) })
      journal.saw(version)
    })
  }

  async #recent (): Promise<void> {
    const { random, journal } = this.#init
    const blob = random.pick(journal.blobs)
    await this.#untilDone(`recent ${blob}`, async ({ blobs }, signal) => {
      const floor = journal.newest(blob).version
      const version = await blobs.recent(blob, { signal })
      journal.checkNotOlder(version, floor)
      journal.saw(version)
    })
  }

  /** After a failure, sometimes, what became of it is asked first. */
  async #outcome (operation: Operation, blobs: Running['blobs'], signal: AbortSignal, first: boolean): Promise<Version | undefined> {
    if (first || this.#init.random.unit() < 0.5) return undefined
    const outcome = await blobs.outcome(operation.id, { signal })
    if (outcome !== 'aborted') return outcome
    operation.refused = true
    return undefined
  }

  /** A conflict: the blob has moved on from what was expected, or the writer was taken for dead. Nothing of it may ever show. */
  async #unlessRefused<T> (operation: Operation | Group, publish: () => Promise<T>): Promise<T | undefined> {
    try {
      return await publish()
    } catch (error) {
      if (errorCodeOf(error) !== 'ERR_CONFLICT') throw error
      operation.refused = true
      return undefined
    }
  }

  /** Of a new blob's version 0. */
  async #settled (version: Version | undefined): Promise<void> {
    if (version !== undefined) this.#init.journal.created(version)
  }

  /** The outcome of the first attempt that does not end in doubt; undefined when the writer died of it. */
  async #untilDone<T> (what: string, attempt: Attempt<T>, { mayDie = true } = {}): Promise<T | undefined> {
    const { peers, random, surroundings: { timeline, trace }, name } = this.#init
    const endMs = mayDie && random.unit() < DYING_SHARE ? timeline.elapsedMs + random.unit() * DIES_MS_MAX : Infinity
    const peer = random.pick(peers)
    for (let first = true; ; first = false) {
      const running = await peer.whenUp()
      trace.add(name, first ? 'begins' : 'repeats', what, 'at', peer.id)
      const patienceMs = Math.min(random.unit() < 0.2 ? 20 + random.unit() * 2_000 : PATIENCE_MS, endMs - timeline.elapsedMs)
      const patience = running.process.clock.deadline(patienceMs)
      try {
        const result = await untilAborted(attempt(running, patience.signal, first), running.process.death)
        trace.add(name, 'has done', what)
        return result
      } catch (error) {
        const code = errorCodeOf(error)
        trace.add(name, 'failed with', code, what)
        // When every copy was garbled on its way the next ones will not be.
        if (!TRANSIENT.has(code) && !(code === 'ERR_CORRUPT' && this.#init.surroundings.weather().garbled > 0)) throw new Error(`${name}: ${what} at ${peer.id}`, { cause: error })
      } finally {
        patience[Symbol.dispose]()
      }
      if (timeline.elapsedMs >= endMs) return undefined
      await timeline.sleep(random.unit() < SLEEPING_SHARE ? random.unit() * 3 * LEASE_MS : random.exponential(200))
    }
  }

  #operation (change: Change): Operation {
    const operation = { id: `operation-${this.#init.name}-${this.#count}`, change }
    this.#init.journal.operations.set(operation.id, operation)
    return operation
  }

  #anyVersion (): { blob: string, version: number } {
    const { random, journal } = this.#init
    const blob = random.pick(journal.blobs)
    return { blob, version: random.below(journal.newest(blob).version + 1) }
  }

  /** Zeros are holes, and what others write, too, is stored once: both are common. */
  #bytes (count: number): Uint8Array {
    const { random } = this.#init
    const kind = random.unit()
    return kind < 0.1 ? new Uint8Array(count) : kind < 0.4 ? new Uint8Array(count).fill(1 + random.below(2)) : random.bytes(count)
  }
}
