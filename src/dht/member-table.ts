/**
 * The member list as data: rows by peer, merged so that the newest word wins, and when each was last heard of. A state
 * machine without I/O; `member-list.ts` moves it between peers.
 *
 * The newest word is the higher (incarnation, heartbeat). A member counts its own heartbeat up while it lives; one whose
 * heartbeat has not been seen to advance for `downAfterMs` is down. (Van Renesse, Minsky, Hayden, "A gossip-style failure
 * detection service", 1998.)
 */
import type { Beat, Exchange, ExchangeAnswer, MemberRow } from '../protocols/member-protocol.ts'
import { ROWS_MAX } from '../protocols/member-protocol.ts'
import type { PeerId } from '../protocols/transport.ts'
import { type KadId, kadIdOfPeer } from './kad-id.ts'

export interface TableEntry {
  readonly row: MemberRow
  readonly kadId: KadId
  /** The first 8 bytes of `kadId` in hex: rows are ordered by it, and exchanges name members by it. */
  readonly key: string
  /** When its heartbeat was last seen to advance, on the monotonic clock. -Infinity: not since it was said to be down. */
  readonly heardMs: number
}

/** Some thousands are expected; beyond this the list costs more than lookups, and a hostile peer fills memory. */
export const MEMBERS_MAX = 20_000

const KEY_BYTES = 8

export class MemberTable {
  readonly #downAfterMs: number
  readonly #byPeer = new Map<PeerId, TableEntry>()
  readonly #byKey = new Map<string, TableEntry>()
  #ordered: readonly TableEntry[] | undefined

  constructor (downAfterMs: number) {
    this.#downAfterMs = downAfterMs
  }

  get (peer: PeerId): TableEntry | undefined {
    return this.#byPeer.get(peer)
  }

  /** In the order of their keys. */
  entries (): readonly TableEntry[] {
    this.#ordered ??= [...this.#byPeer.values()].sort((a, b) => a.key < b.key ? -1 : 1)
    return this.#ordered
  }

  isUp (entry: TableEntry, nowMs: number): boolean {
    return nowMs - entry.heardMs <= this.#downAfterMs
  }

  rowOf (entry: TableEntry, nowMs: number): MemberRow {
    return { ...entry.row, down: !this.isUp(entry, nowMs) }
  }

  /** True when something but a heartbeat is new. */
  merge (row: MemberRow, nowMs: number): boolean {
    const known = this.#byPeer.get(row.id)
    if (known === undefined) {
      if (this.#byPeer.size >= MEMBERS_MAX) return false
      const kadId = kadIdOfPeer(row.id)
      this.#set({ row, kadId, key: kadId.toString('hex', 0, KEY_BYTES), heardMs: row.down ? -Infinity : nowMs })
      return true
    }
    if (row.incarnation < known.row.incarnation) return false
    if (row.incarnation === known.row.incarnation) {
      this.advance(known, row.heartbeat, nowMs)
      return false
    }
    this.#set({ ...known, row, heardMs: row.down ? known.heardMs : nowMs })
    return true
  }

  /** True when it is further than was known. */
  advance (entry: TableEntry, heartbeat: number, nowMs: number): boolean {
    if (heartbeat <= entry.row.heartbeat) return false
    this.#set({ ...entry, row: { ...entry.row, heartbeat }, heardMs: nowMs })
    return true
  }

  #set (entry: TableEntry): void {
    this.#byPeer.set(entry.row.id, entry)
    this.#byKey.set(entry.key, entry)
    this.#ordered = undefined
  }

  beatsIn ({ from, to }: Pick<Exchange, 'from' | 'to'>): Beat[] {
    return this.#entriesIn(from, to).map(({ key, row: { incarnation, heartbeat } }) => ({ key, incarnation, heartbeat }))
  }

  /** What the other side of an exchange lacks, and the keys that we lack. Takes over heartbeats that are further there. */
  compare (exchange: Omit<Exchange, 'complete'>, nowMs: number): Omit<ExchangeAnswer, 'complete'> & { advanced: PeerId[] } {
    const theirs = new Map(exchange.beats.map((beat) => [beat.key, beat]))
    const beats: Beat[] = []
    const rows: MemberRow[] = []
    const advanced: PeerId[] = []
    for (const entry of this.#entriesIn(exchange.from, exchange.to)) {
      const { key, row } = entry
      const their = theirs.get(key)
      if (their === undefined || their.incarnation < row.incarnation) rows.push(this.rowOf(entry, nowMs))
      else if (their.incarnation === row.incarnation) {
        if (their.heartbeat < row.heartbeat) beats.push({ key, incarnation: row.incarnation, heartbeat: row.heartbeat })
        else if (!exchange.pull && this.advance(entry, their.heartbeat, nowMs)) advanced.push(row.id)
      }
    }
    // Who is no member only learns: its word on others would be hearsay of hearsay.
    const want = exchange.pull ? [] : exchange.beats.filter(({ key, incarnation }) => (this.#byKey.get(key)?.row.incarnation ?? -1) < incarnation).map(({ key }) => key)
    return { beats, rows: rows.slice(0, ROWS_MAX), want: want.slice(0, ROWS_MAX), more: rows.length > ROWS_MAX, advanced }
  }

  /** Peers whose heartbeat is further than was known. */
  takeBeats (beats: readonly Beat[], nowMs: number): PeerId[] {
    const advanced: PeerId[] = []
    for (const { key, incarnation, heartbeat } of beats) {
      const entry = this.#byKey.get(key)
      if (entry?.row.incarnation === incarnation && this.advance(entry, heartbeat, nowMs)) advanced.push(entry.row.id)
    }
    return advanced
  }

  rowsOf (keys: readonly string[], nowMs: number): MemberRow[] {
    return keys.map((key) => this.#byKey.get(key)).filter((entry) => entry !== undefined).map((entry) => this.rowOf(entry, nowMs))
  }

  #entriesIn (from: string, to: string | null): readonly TableEntry[] {
    return this.entries().filter(({ key }) => key >= from && (to === null || key < to))
  }
}
