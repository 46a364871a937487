/**
 * A client of a real daemon that writes, appends and reads what chance says, one operation after the other, as a program with the
 * library would, and keeps in a journal what it did and what it was told. A write that fails without an answer is looked for in the
 * log, by its message; one that is not there either may still come, and is in doubt.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { VersionRow } from '../../src/node/control-api.ts'
import type { ControlClient } from '../../src/node/control-client.ts'
import { errorCodeOf } from '../../src/protocols/errors.ts'
import type { Change } from '../simulation/journal.ts'
import { bytesOf } from './random-image.ts'
import type { Chance } from './seed.ts'

/** An operation that makes a version. Its id is in the version's message. */
export interface Operation {
  readonly id: string
  readonly blob: string
  readonly change: Change
  /** Acknowledged as this. */
  version?: number
  /** The answer was that it will never be. */
  refused?: boolean
}

export interface Read {
  readonly blob: string
  readonly version: number
  readonly offset: number
  readonly bytes: Uint8Array
}

/** What all writers of a fabric did. */
export class WritersJournal {
  readonly operations = new Map<string, Operation>()
  readonly reads: Read[] = []
  /** What each writer is doing just now. */
  readonly underWay = new Map<string, string>()
  /** Failures without an answer, counted by what was said. */
  readonly failures = new Map<string, number>()
  readonly #newest = new Map<string, number>()

  /** The newest version that anybody has seen; whoever asks from now on must not see an older one. */
  newest (blob: string): number {
    return this.#newest.get(blob) ?? 0
  }

  saw (blob: string, version: number): void {
    this.#newest.set(blob, Math.max(version, this.newest(blob)))
  }

  failed (what: string, error: unknown): void {
    const said = `${what}: ${errorCodeOf(error)} ${(error as Error).message.replaceAll(IDS, '…')}`
    this.failures.set(said, (this.failures.get(said) ?? 0) + 1)
  }

  /** Counts of what is under way, by kind. */
  summary (): string {
    const counts = new Map<string, number>()
    for (const what of this.underWay.values()) counts.set(what, (counts.get(what) ?? 0) + 1)
    return [...counts].sort().map(([what, count]) => `${count} × ${what}`).join(', ') || 'nothing'
  }
}

const KINDS = ['write', 'write', 'write', 'append', 'read'] as const
export const CHUNK = 4096
const PARTS_MAX = 3
const PART_CHUNKS = 4
const BLOB_CHUNKS = PARTS_MAX * PART_CHUNKS
const APPEND_BYTES_MAX = 1000
/** Of one request. The daemon's own deadlines are shorter, but for a version that others in front of it hold up. */
const REQUEST_MS_MAX = 100_000
/** Of an operation that may be asked for again: the fabric is gone for good when nothing answers for so long. */
const PATIENCE_MS = 120_000
const PAUSE_MS = 200
/** Of blobs, chunks and peers, and numbers: what is left says what kind of failure it was. */
const IDS = /[a-z2-7]{16}|[a-zA-Z0-9]{40,}|[0-9]+/g
/** Not an answer: what was asked for may have happened. */
const IN_DOUBT: ReadonlySet<string> = new Set(['ERR_UNAVAILABLE', 'ERR_TIMEOUT', 'ERR_ABORTED'])

export class LiveWriter {
  readonly name: string
  readonly #client: ControlClient
  readonly #chance: Chance
  readonly #journal: WritersJournal
  #count = 0

  constructor (name: string, client: ControlClient, chance: Chance, journal: WritersJournal) {
    this.name = name
    this.#client = client
    this.#chance = chance
    this.#journal = journal
  }

  /** One operation. Throws for an answer that nobody may be given. */
  async step (blob: string): Promise<void> {
    const kind = this.#chance.pick(KINDS)
    if (kind === 'read') await this.#whileUnderWay('read', async () => { await this.#read(blob) })
    else await this.#change(blob, kind === 'write' ? this.#someWrite() : this.#someAppend(), REQUEST_MS_MAX)
  }

  /** A write that is given up somewhere on its way. */
  async desert (blob: string, withinMs: number): Promise<void> {
    await this.#change(blob, this.#someWrite(), this.#chance.below(withinMs))
  }

  /** A write that nothing comes after: when it is acknowledged, whatever was assigned before it is published, or aborted. */
  async finish (blob: string): Promise<void> {
    const { id } = await this.#change(blob, this.#someWrite(), REQUEST_MS_MAX)
    if (this.#journal.operations.get(id)?.version === undefined) throw new Error(`${id}, the last write to ${blob}, was not acknowledged`)
  }

  /** A clone of any version that was seen. */
  async clone (blob: string): Promise<string> {
    const version = this.#chance.below(this.#journal.newest(blob) + 1)
    return await this.#whileUnderWay('clone', async () =>
      (await this.#untilAnswered(async (signal) => await this.#client.clone({ ref: `${blob}@${version}` }, { signal }))).blob)
  }

  async #change (blob: string, change: Change, deadlineMs: number): Promise<Operation> {
    const operation: Operation = { id: `${this.name}-${this.#count++}`, blob, change }
    this.#journal.operations.set(operation.id, operation)
    await this.#whileUnderWay(change.kind, async () => {
      try {
        operation.version = await this.#ask(operation, AbortSignal.timeout(deadlineMs))
      } catch (error) {
        const code = errorCodeOf(error)
        // Nobody expects a base here: its writer was taken for dead, and nothing of it may ever show.
        if (code === 'ERR_CONFLICT') operation.refused = true
        if (code !== 'ERR_CONFLICT' && !IN_DOUBT.has(code)) throw new Error(`${operation.id} on ${blob}`, { cause: error })
        this.#journal.failed(change.kind, error)
        const version = operation.refused === true ? undefined : await this.#find(operation)
        if (version !== undefined) operation.version = version
      }
    })
    if (operation.version !== undefined) this.#journal.saw(blob, operation.version)
    return operation
  }

  async #ask ({ id, blob, change }: Operation, signal: AbortSignal): Promise<number> {
    const request = { ref: blob, message: id }
    const { version } = change.kind === 'append'
      ? await this.#client.appendBlob(request, change.bytes, { signal })
      : await this.#client.writeBlob(request, change.parts, { signal })
    return version
  }

  async #find ({ blob, id }: Operation): Promise<number | undefined> {
    const log: VersionRow[] = await this.#untilAnswered(async (signal) => await this.#client.versions(blob, { signal }))
    return log.find(({ message }) => message === id)?.version
  }

  async #read (blob: string): Promise<void> {
    const newest = this.#journal.newest(blob)
    const latest = await this.#untilAnswered(async (signal) => await this.#client.recent(blob, { signal }))
    if (latest.version < newest) throw new Error(`the latest version of ${blob} was ${newest}, and is ${latest.version} now`)
    this.#journal.saw(blob, latest.version)
    const version = this.#chance.below(latest.version + 1)
    const offset = this.#chance.below(BLOB_CHUNKS * CHUNK)
    const size = 1 + this.#chance.below(PART_CHUNKS * CHUNK)
    const bytes = await this.#untilAnswered(async (signal) => await this.#client.readBytes(`${blob}@${version}`, { offset, size }, { signal }))
    this.#journal.reads.push({ blob, version, offset, bytes })
  }

  /** What may be asked for again, as often as it takes. */
  async #untilAnswered<T> (ask: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const patience = AbortSignal.timeout(PATIENCE_MS)
    for (;;) {
      try {
        return await ask(AbortSignal.any([patience, AbortSignal.timeout(REQUEST_MS_MAX)]))
      } catch (error) {
        if (patience.aborted || !IN_DOUBT.has(errorCodeOf(error))) throw error
        this.#journal.failed('a question', error)
        await delay(PAUSE_MS)
      }
    }
  }

  async #whileUnderWay<T> (what: string, work: () => Promise<T>): Promise<T> {
    this.#journal.underWay.set(this.name, what)
    try {
      return await work()
    } finally {
      this.#journal.underWay.delete(this.name)
    }
  }

  /** Ascending parts that do not overlap, at any offset. */
  #someWrite (): Change {
    const count = 1 + this.#chance.below(PARTS_MAX)
    const parts = Array.from({ length: count }, (_, at) => {
      const offset = this.#chance.below(PART_CHUNKS * CHUNK)
      const size = 1 + this.#chance.below(Math.min(2 * CHUNK, PART_CHUNKS * CHUNK - offset))
      return { offset: at * PART_CHUNKS * CHUNK + offset, bytes: this.#bytes(at, size) }
    })
    return { kind: 'write', parts }
  }

  #someAppend (): Change {
    return { kind: 'append', bytes: this.#bytes(0, 1 + this.#chance.below(APPEND_BYTES_MAX)) }
  }

  /** Of nobody else, so that a byte of the wrong writer shows. */
  #bytes (part: number, size: number): Buffer {
    return bytesOf({ key: `${this.#chance.seed} ${this.#count} ${part}`, offset: 0, size })
  }
}
