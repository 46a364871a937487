/**
 * Whether the version manager tells this client one history. Of each blob the newest version that was seen is remembered, with its hash,
 * also across restarts. Whatever is shown later must lie on the same chain of publication records: be linked to what was seen, or
 * what was seen to it. Where the links lead over records that are not at hand, they are fetched from storage peers, in one batch; when
 * those cannot be had, what was shown is taken, and nothing is concluded from it. What is seen first is believed.
 *
 * State it owns: what was seen (keys `seen/<blob>` of its store, written in the background: a crash may lose the last half second), and
 * headers that were found to belong to it.
 */
import { withDeadline } from '../protocols/abort.ts'
import { decodeCbor, encodeCbor } from '../protocols/codec.ts'
import { string, tuple, uint } from '../protocols/decode.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { Clock, KeyValueStore, Log } from '../protocols/seams.ts'
import type { BlobId, VersionId } from './blobs.ts'
import { LruCache } from './lru-cache.ts'
import type { Header } from './publication-codec.ts'
import type { PublicationRecords } from './publication-records.ts'
import { skipOf, wayDown } from './skip-chain.ts'
import { versionName } from './tree-names.ts'

export interface SeenVersionsComponents {
  readonly publications: PublicationRecords
  readonly clock: Clock
  readonly log: Log
  /** Without one, what was seen is forgotten with the process. */
  readonly store?: KeyValueStore | undefined
}

interface Seen {
  readonly version: number
  readonly hash: string
  /** The newest that the version manager itself has shown; storage peers have a record a moment before it shows. */
  readonly shown: number
  /** When `shown` was last changed, as `mark` counts. */
  readonly at: number
}

/** Some kilobyte each. */
const HEADERS_CACHED_MAX = 4096
/** Some 200 bytes each; others are in the store. */
const BLOBS_CACHED_MAX = 4096
/** Storage peers that are away must not hold up what can be had without them. */
const WAY_DEADLINE_MS = 5_000
/** One write for all that is seen meanwhile: most of it by those who write much. */
const SAVE_AFTER_MS = 500

const decodeSeen = tuple(uint(), string(64), uint())

type Options = { readonly signal?: AbortSignal | undefined }
/** By version. undefined: it could not be had. */
type Headers = ReadonlyMap<number, Header | undefined>

export class SeenVersions {
  readonly #components: SeenVersionsComponents
  readonly #headers = new LruCache<Header>(HEADERS_CACHED_MAX)
  readonly #seen = new LruCache<Seen>(BLOBS_CACHED_MAX)
  #unsaved = new Map<BlobId, Seen>()
  #saving: Promise<void> | undefined
  #marks = 0

  constructor (components: SeenVersionsComponents) {
    this.#components = components
  }

  /** From storage peers alone, together with what it takes to check it. ERR_NOT_FOUND, ERR_CORRUPT, else as Records.get. */
  async get (id: VersionId, options: Options = {}): Promise<Header> {
    const known = this.#known(id)
    if (known !== undefined) return known
    const seen = this.#newest(id.blob)
    const way = seen === undefined ? [] : wayDown(Math.max(seen.version, id.version), Math.min(seen.version, id.version))
    const fetching = this.#fetch(id.blob, way.slice(0, -1).filter((version) => version !== id.version), options)
    const [{ header }, fetched] = await Promise.all([this.#components.publications.get(id, options), fetching])
    await this.#check(header, fetched, options)
    return header
  }

  /** Now: for `checkLatest`, of what is asked after it. */
  mark (): number {
    return this.#marks
  }

  /** What the version manager showed. ERR_CORRUPT when it does not belong to what was seen before. */
  async check (header: Header, options: Options = {}): Promise<void> {
    await this.#checkShown(header, new Map(), options)
  }

  /** What the version manager, asked after the mark, said is the latest. ERR_CORRUPT also when it had shown a later one before. */
  async checkLatest (header: Header, mark: number, options: Options = {}): Promise<void> {
    this.#checkNotOlder(header, mark)
    await this.check(header, options)
  }

  /** All versions of a blob, as the version manager, asked after the mark, listed them. ERR_CORRUPT. */
  async checkHistory (headers: readonly Header[], mark: number, options: Options = {}): Promise<void> {
    const last = headers.at(-1)
    if (last === undefined) return
    for (const [at, header] of headers.entries()) {
      if (at > 0 && header.links.previous !== headers[at - 1]!.version.hash) throw twoHistories(header.version, at - 1)
    }
    this.#checkNotOlder(last, mark)
    await this.#checkShown(last, new Map(headers.map((header) => [header.version.version, header])), options)
  }

  /** What was seen is on disk. */
  async flush (): Promise<void> {
    const saved = [...this.#unsaved]
    this.#unsaved = new Map()
    if (saved.length === 0) return
    await this.#components.store?.write(saved.map(([blob, { version, hash, shown }]) => ({ key: keyOf(blob), value: encodeCbor([version, hash, shown]) })))
  }

  async #checkShown (header: Header, fetched: Headers, options: Options): Promise<void> {
    await this.#check(header, fetched, options)
    const { blob, version } = header.version
    const seen = this.#newest(blob)
    if (seen !== undefined && seen.shown < version && version <= seen.version) this.#see(blob, { ...seen, shown: version, at: ++this.#marks })
  }

  async #check (header: Header, fetched: Headers, options: Options): Promise<void> {
    const { blob, version, hash } = header.version
    for (;;) {
      const known = this.#known(header.version)?.version.hash ?? hash
      if (known !== hash) throw twoHistories(header.version, version)
      const seen = this.#newest(blob)
      if (this.#known(header.version) !== undefined || seen?.version === version) {
        if (seen?.version === version && seen.hash !== hash) throw twoHistories(header.version, version)
        this.#headers.set(versionName(blob, version), header, 1)
        return
      }
      const proven = seen === undefined ? [] : await this.#prove(header, seen, fetched, options)
      if (proven === undefined) return
      const now = this.#newest(blob)
      // What was seen meanwhile may be on another branch.
      if (now?.version !== seen?.version || now?.hash !== seen?.hash) continue
      for (const one of [...proven, header]) this.#headers.set(versionName(blob, one.version.version), one, 1)
      if (seen === undefined || version > seen.version) this.#see(blob, { version, hash, shown: seen?.shown ?? 0, at: seen?.at ?? this.#marks })
      return
    }
  }

  /** The headers between the two, when they link the newer one to the older. undefined: they cannot be had. ERR_CORRUPT. */
  async #prove (header: Header, seen: Seen, fetched: Headers, options: Options): Promise<Header[] | undefined> {
    const { version } = header
    const [top, bottom] = version.version > seen.version ? [version, seen] : [seen, version]
    const way = wayDown(top.version, bottom.version)
    const atHand = new Map<number, Header | undefined>([...fetched, [version.version, header]])
    const missing = way.slice(0, -1).filter((one) => !atHand.has(one))
    for (const [one, found] of await this.#fetch(version.blob, missing, options)) atHand.set(one, found)
    const headers: Header[] = []
    let expected: string | null = top.hash
    for (const [at, one] of way.slice(0, -1).entries()) {
      const found = atHand.get(one)
      if (found === undefined) return undefined
      if (found.version.hash !== expected) throw twoHistories(version, seen.version)
      expected = skipOf(one) === way[at + 1] ? found.links.skip : found.links.previous
      headers.push(found)
    }
    if (expected !== bottom.hash) throw twoHistories(version, seen.version)
    return headers
  }

  /** None but those that are known when some storage peer does not answer. */
  async #fetch (blob: BlobId, versions: readonly number[], { signal }: Options): Promise<Headers> {
    const { publications, clock, log } = this.#components
    const headers = new Map<number, Header | undefined>()
    const missing: number[] = []
    for (const version of versions) {
      const known = this.#known({ blob, version })
      if (known === undefined) missing.push(version)
      headers.set(version, known)
    }
    if (missing.length === 0) return headers
    try {
      const found = await withDeadline(clock, WAY_DEADLINE_MS, [signal], async (signal) => await publications.headers(blob, missing, { signal }))
      for (const [at, header] of found.entries()) headers.set(missing[at]!, header)
    } catch (error) {
      if (signal?.aborted === true) throw error
      log.warn('cannot check yet whether a version belongs to the history that was seen', { blob, error })
    }
    return headers
  }

  #checkNotOlder ({ version: { blob, version } }: Header, mark: number): void {
    const seen = this.#newest(blob)
    if (seen === undefined || seen.at > mark || version >= seen.shown) return
    throw new P2pvmError('ERR_CORRUPT',
      `the version manager shows two histories of ${blob}: version ${seen.shown} was seen, and now the latest is ${version}`, { blob, version, seen: seen.shown })
  }

  #known ({ blob, version }: VersionId): Header | undefined {
    return this.#headers.get(versionName(blob, version))
  }

  #newest (blob: BlobId): Seen | undefined {
    const seen = this.#seen.get(blob) ?? this.#unsaved.get(blob) ?? this.#stored(blob)
    if (seen !== undefined) this.#seen.set(blob, seen, 1)
    return seen
  }

  #stored (blob: BlobId): Seen | undefined {
    const value = this.#components.store?.get(keyOf(blob))
    if (value === undefined) return undefined
    const [version, hash, shown] = decodeSeen(decodeCbor(value), 'a seen version')
    return { version, hash, shown, at: 0 }
  }

  #see (blob: BlobId, seen: Seen): void {
    this.#seen.set(blob, seen, 1)
    if (this.#components.store === undefined) return
    this.#unsaved.set(blob, seen)
    this.#saving ??= this.#save().finally(() => { this.#saving = undefined })
  }

  async #save (): Promise<void> {
    while (this.#unsaved.size > 0) {
      await this.#components.clock.sleep(SAVE_AFTER_MS)
      await this.flush().catch((error: unknown) => { this.#components.log.warn('cannot write down which versions were seen', { error }) })
    }
  }
}

function keyOf (blob: BlobId): string {
  return `seen/${blob}`
}

function twoHistories ({ blob, version }: VersionId, seen: number): P2pvmError {
  const what = version === seen ? `version ${version} is not what it was` : `version ${version} and version ${seen}, which was seen, do not belong together`
  return new P2pvmError('ERR_CORRUPT', `the version manager shows two histories of ${blob}: ${what}`, { blob, version, seen })
}
