/** The member list once it is complete, lookups before that. Owns no state; both are told what requests have taught. */
import type { PeerId } from '../protocols/transport.ts'
import type { KadMembership } from './kad-membership.ts'
import type { MemberList } from './member-list.ts'
import type { Member, Membership } from './membership.ts'

export class SwitchingMembership implements Membership {
  readonly self: PeerId
  readonly #list: MemberList
  readonly #kad: KadMembership

  constructor (list: MemberList, kad: KadMembership) {
    this.self = list.self
    this.#list = list
    this.#kad = kad
  }

  /** What is known so far is worth showing, complete or not. */
  members (): readonly Member[] {
    return this.#list.members()
  }

  storageCount (): number {
    return this.#current().storageCount()
  }

  async closest (key: Uint8Array, options: { signal: AbortSignal }): Promise<readonly Member[]> {
    return await this.#current().closest(key, options)
  }

  usable (peer: PeerId): boolean {
    return this.#current().usable(peer)
  }

  report (peer: PeerId, outcome: 'answered' | 'failed'): void {
    this.#list.report(peer, outcome)
    this.#kad.report(peer, outcome)
  }

  #current (): Membership {
    return this.#list.complete ? this.#list : this.#kad
  }
}
