/**
 * `Membership` as a list that every peer holds whole, so that placing and finding take no round trip. Once a second each
 * peer compares its list with a few others', chosen at random (`member/1`), and both learn what is newer; so a new member
 * is known everywhere after some log2(N) seconds, and a silent one is noticed by all a little after `downAfterMs`.
 *
 * Storage peers and the version manager's are members; a compute peer only learns. State it owns: the table, its own
 * heartbeat, which peers failed lately. Not for: finding without the list (`kad-membership.ts`).
 */
import { untilAborted } from '../protocols/abort.ts'
import { errorCodeOf } from '../protocols/errors.ts'
import { EXCHANGE_KEYS_MAX, exchangeMembers, type Exchange, type MemberRow, pushMembers, serveMembers } from '../protocols/member-protocol.ts'
import type { Clock, Log, Random } from '../protocols/seams.ts'
import type { PeerId, Transport } from '../protocols/transport.ts'
import { kadIdOfKey, nearest } from './kad-id.ts'
import { CLOSEST_COUNT, DOWN_AFTER_MS, type Member, type Membership, type Role } from './membership.ts'
import { MemberTable, type TableEntry } from './member-table.ts'
import { PeerHealth } from './peer-health.ts'

export interface MemberListComponents {
  readonly transport: Transport
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
  /** Keeps the list for the next start. Failures are logged: without it a start takes some seconds longer. */
  readonly save: (stored: StoredMembers) => Promise<void>
}

export interface StoredMembers {
  readonly rows: readonly MemberRow[]
  readonly complete: boolean
}

export interface MemberListInit {
  readonly roles: readonly Role[]
  readonly capacityBytes: number
  /** Where this peer listens, multiaddrs; asked at every exchange, since ports are known late. */
  readonly addresses: () => readonly string[]
  /** This peer made the fabric: a list with only itself is complete. */
  readonly founder: boolean
  readonly stored?: StoredMembers | undefined
  /** Peers to ask until members are known. */
  readonly bootstrap: readonly PeerId[]
  readonly downAfterMs?: number
}

const GOSSIP_EVERY_MS = 1_000
/** An incarnation is a time. Beyond this no wrong clock explains it, and its member could never outdo it. */
const INCARNATION_AHEAD_MS_MAX = 24 * 60 * 60 * 1000
/** Peers compared with in each round: with two, a rumour has reached 1,000 peers after some seven rounds. */
const GOSSIP_PEERS = 2
/** One round in so many also tries somebody who is down: both halves of a healed partition find each other. */
const RETRY_DOWN_ONE_IN = 5
/** A stopped peer costs one waiting request, not a late round. */
const EXCHANGE_DEADLINE_MS = 3_000
const EXCHANGES_AT_ONCE_MAX = 8
/** Messages of one comparison: 20,000 members are ten ranges, and new rows come 128 at a time. */
const MESSAGES_PER_EXCHANGE_MAX = 256
const SAVE_EVERY_MS = 2_000
const FIRST_KEY = '0'.repeat(16)

export class MemberList implements Membership {
  readonly self: PeerId
  readonly #components: MemberListComponents
  readonly #init: MemberListInit
  readonly #table: MemberTable
  readonly #health: PeerHealth
  readonly #isMember: boolean
  readonly #stop = new AbortController()
  readonly #exchanging = new Map<PeerId, Promise<void>>()
  #incarnation: number
  #heartbeat = 0
  #complete: boolean
  readonly #completed = Promise.withResolvers<void>()
  #unsaved = false
  #saving: Promise<void> = Promise.resolve()
  #savedMs = -Infinity
  #loop: Promise<void> | undefined

  constructor (components: MemberListComponents, init: MemberListInit) {
    const { transport, clock } = components
    this.self = transport.self
    this.#components = components
    this.#init = init
    this.#table = new MemberTable(init.downAfterMs ?? DOWN_AFTER_MS)
    this.#health = new PeerHealth(clock)
    this.#isMember = init.roles.includes('storage') || init.roles.includes('versions')
    this.#complete = init.founder || init.stored?.complete === true
    const before = init.stored?.rows.find(({ id }) => id === this.self)?.incarnation ?? 0
    this.#incarnation = Math.max(clock.now(), before + 1) // also when the clock was set back
    for (const row of init.stored?.rows ?? []) if (row.id !== this.self) this.#take(row)
    this.#unsaved = false
  }

  /** True when it has been compared with somebody whose list was complete (or this peer made the fabric). */
  get complete (): boolean {
    return this.#complete
  }

  /** Answers others. */
  serve (): void {
    serveMembers(this.#components.transport, {
      describe: () => this.describeSelf(),
      exchange: (exchange) => {
        this.#beat(0)
        const { advanced, ...answer } = this.#table.compare(exchange, this.#nowMs())
        this.#heardOf(advanced)
        return { ...answer, complete: this.#complete }
      },
      push: (rows) => { for (const row of rows) this.#take(row) }
    })
  }

  /** Gossips until `stop`. */
  start (): void {
    this.#loop = this.#gossip()
  }

  /** Resolves when the list is complete. */
  async whenComplete (signal: AbortSignal): Promise<void> {
    if (!this.#complete) await untilAborted(this.#completed.promise, signal)
  }

  /** Ends what is under way, and saves. */
  async stop (): Promise<void> {
    this.#stop.abort()
    await this.#loop
    await Promise.all(this.#exchanging.values())
    this.#savedMs = -Infinity
    this.#saveWhenDue()
    await this.#saving
  }

  members (): readonly Member[] {
    return this.#table.entries().map((entry) => this.#memberOf(entry)).sort((a, b) => a.id < b.id ? -1 : 1)
  }

  storageCount (): number {
    return Math.max(1, this.#storage().length)
  }

  async closest (key: Uint8Array): Promise<readonly Member[]> {
    const storage = this.#storage()
    return (storage.length <= CLOSEST_COUNT ? storage : nearest(kadIdOfKey(key), storage, CLOSEST_COUNT)).map((entry) => this.#memberOf(entry))
  }

  usable (peer: PeerId): boolean {
    if (peer === this.self) return true
    const entry = this.#table.get(peer)
    return (entry === undefined || this.#table.isUp(entry, this.#nowMs())) && !this.#health.isFailing(peer)
  }

  report (peer: PeerId, outcome: 'answered' | 'failed'): void {
    this.#health.report(peer, outcome)
  }

  #storage (): TableEntry[] {
    return this.#table.entries().filter(({ row }) => row.roles.includes('storage'))
  }

  #memberOf (entry: TableEntry): Member {
    const { id, addresses, roles, capacityBytes } = entry.row
    return { id, addresses, roles, capacityBytes, state: id === this.self || this.#table.isUp(entry, this.#nowMs()) ? 'up' : 'down' }
  }

  async #gossip (): Promise<void> {
    const { clock, random } = this.#components
    for (let round = 0; !this.#stop.signal.aborted; round++) {
      this.#beat(1)
      for (const peer of this.#partners(round)) this.#exchangeWith(peer)
      this.#saveWhenDue()
      // Spread by a fifth, so that peers that started together do not stay in step.
      await clock.sleep(GOSSIP_EVERY_MS * (0.9 + random.unit() / 5), this.#stop.signal).catch(() => {})
    }
  }

  #partners (round: number): PeerId[] {
    const others = this.#table.entries().filter(({ row }) => row.id !== this.self)
    const up = others.filter((entry) => this.#table.isUp(entry, this.#nowMs())).map(({ row }) => row.id)
    const partners = new Set(this.#sample(up, GOSSIP_PEERS))
    if (round % RETRY_DOWN_ONE_IN === 0) for (const peer of this.#sample(others.map(({ row }) => row.id).filter((id) => !up.includes(id)), 1)) partners.add(peer)
    if (!this.#complete || up.length === 0) for (const peer of this.#init.bootstrap) partners.add(peer)
    partners.delete(this.self)
    return [...partners]
  }

  #sample (peers: PeerId[], count: number): PeerId[] {
    const chosen: PeerId[] = []
    const left = [...peers]
    while (chosen.length < count && left.length > 0) {
      chosen.push(...left.splice(Math.floor(this.#components.random.unit() * left.length), 1))
    }
    return chosen
  }

  #exchangeWith (peer: PeerId): void {
    if (this.#exchanging.has(peer) || this.#exchanging.size >= EXCHANGES_AT_ONCE_MAX) return
    const exchange = this.#compareWith(peer).then(() => { this.#health.report(peer, 'answered') }, (error: unknown) => {
      if (this.#stop.signal.aborted) return
      this.#health.report(peer, 'failed')
      this.#components.log.debug('no member list from a peer', { peer, code: errorCodeOf(error), error })
    }).finally(() => { this.#exchanging.delete(peer) })
    this.#exchanging.set(peer, exchange)
  }

  async #compareWith (peer: PeerId): Promise<void> {
    const { transport } = this.#components
    const options = { deadlineMs: EXCHANGE_DEADLINE_MS, signal: this.#stop.signal }
    let from: string | null = FIRST_KEY
    let complete = true
    for (let messages = 0; from !== null && messages < MESSAGES_PER_EXCHANGE_MAX; messages++) {
      const to: string | null = this.#table.entries().filter(({ key }) => key >= (from ?? '')).at(EXCHANGE_KEYS_MAX)?.key ?? null
      const exchange: Exchange = { from, to, beats: this.#table.beatsIn({ from, to }), complete: this.#complete, pull: !this.#isMember }
      const answer = await exchangeMembers(transport, peer, exchange, options)
      this.#heardOf(this.#table.takeBeats(answer.beats, this.#nowMs()))
      for (const row of answer.rows) this.#take(row)
      if (answer.want.length > 0) await pushMembers(transport, peer, this.#table.rowsOf(answer.want, this.#nowMs()), options)
      complete &&= answer.complete
      if (!answer.more) from = to
    }
    if (from === null && complete && !this.#complete) {
      this.#complete = true
      this.#completed.resolve()
      this.#unsaved = true
    }
  }

  #take (row: MemberRow): void {
    const { clock, log } = this.#components
    if (row.incarnation > clock.now() + INCARNATION_AHEAD_MS_MAX) {
      // Nobody could ever say anything newer about it.
      log.warn('a row of a member from the far future is not taken: a clock is wrong, or somebody lies', { peer: row.id, incarnation: row.incarnation })
      return
    }
    if (row.id === this.self) {
      this.#outdo(row)
      return
    }
    if (!this.#table.merge(row, this.#nowMs())) return
    this.#unsaved = true
    if (!row.down) this.#heardOf([row.id])
    void this.#components.transport.learnAddresses(row.id, row.addresses).catch((error: unknown) => {
      log.warn('a member has addresses that cannot be used', { peer: row.id, error })
    })
  }

  /** What others say of us that is newer than what we know, of a life that we do not remember or out of thin air: ours must be the newer word. */
  #outdo ({ incarnation, heartbeat }: Pick<MemberRow, 'incarnation' | 'heartbeat'>): void {
    const isNewer = incarnation > this.#incarnation || (incarnation === this.#incarnation && heartbeat > this.#heartbeat)
    if (isNewer && this.#isMember) this.#incarnation = incarnation + 1
  }

  /**
   * They live, as others have heard. That may be some seconds old: a pause after a failure runs out first, but the next one
   * is short again.
   */
  #heardOf (peers: readonly PeerId[]): void {
    for (const peer of peers) if (!this.#health.isFailing(peer)) this.#health.report(peer, 'answered')
  }

  #beat (by: 0 | 1): void {
    if (!this.#isMember) return
    const said = this.#table.get(this.self)
    if (said !== undefined) this.#outdo(said.row)
    this.#heartbeat += by
    this.#table.merge(this.describeSelf(), this.#nowMs())
  }

  describeSelf (): MemberRow {
    const { roles, capacityBytes, addresses } = this.#init
    return {
      id: this.self,
      addresses: addresses(),
      roles,
      capacityBytes: roles.includes('storage') ? capacityBytes : 0,
      incarnation: this.#incarnation,
      heartbeat: this.#heartbeat,
      down: false
    }
  }

  #saveWhenDue (): void {
    const nowMs = this.#nowMs()
    if (!this.#unsaved || nowMs - this.#savedMs < SAVE_EVERY_MS) return
    this.#unsaved = false
    this.#savedMs = nowMs
    const rows = this.#table.entries().map((entry) => this.#table.rowOf(entry, nowMs))
    this.#saving = this.#saving.then(async () => await this.#components.save({ rows, complete: this.#complete })).catch((error: unknown) => {
      this.#components.log.warn('cannot keep the member list for the next start', { error })
    })
  }

  #nowMs (): number {
    return this.#components.clock.monotonic()
  }
}
