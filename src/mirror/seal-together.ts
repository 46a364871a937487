/**
 * Several working copies of one mount, sealed at one moment: what one of them holds that another depends on is in both cuts, or in
 * neither (a database and its log on two disks). Each is flushed ahead on its own; then the kernel is made to hold the writers of all,
 * and when all are held the overlays are swapped. State it owns, for one such cut: who has come so far.
 */
import { withDeadline } from '../protocols/abort.ts'
import type { Clock } from '../protocols/seams.ts'
import { FOLD_DEADLINE_MS, type Sealable, type Sealed } from './sealable.ts'

/** A point that several reach together, or none. */
export class Rendezvous {
  readonly #all = Promise.withResolvers<void>()
  #missing: number

  constructor (parties: number) {
    this.#missing = parties
    this.#all.promise.catch(() => {}) // perhaps nobody has come yet
  }

  /** Resolves when all have come; rejects when one will not. */
  async arrive (): Promise<void> {
    this.#missing -= 1
    if (this.#missing === 0) this.#all.resolve()
    await this.#all.promise
  }

  /** Somebody will not come. */
  giveUp (error: unknown): void {
    this.#all.reject(error)
  }
}

/** What the members of one cut share. */
export class Together {
  /** What the kernel had is written, with nobody held. */
  readonly flushed: Rendezvous
  /** The writers of all are held. */
  readonly held: Rendezvous

  constructor (parties: number) {
    this.flushed = new Rendezvous(parties)
    this.held = new Rendezvous(parties)
  }

  giveUp (error: unknown): void {
    this.flushed.giveUp(error)
    this.held.giveUp(error)
  }
}

export interface GroupSealable extends Pick<Sealable, 'unseal'> {
  seal (signal: AbortSignal, together: Together): Promise<Sealed>
}

/** In their order. When one cannot be sealed none is, and its error is thrown. */
export async function sealTogether (copies: readonly GroupSealable[], clock: Clock, signal: AbortSignal): Promise<Sealed[]> {
  const together = new Together(copies.length)
  let failure: { readonly error: unknown } | undefined
  const sealed = await Promise.all(copies.map(async (copy) => {
    try {
      return await copy.seal(signal, together)
    } catch (error) {
      failure ??= { error } // of the others one only hears that it failed
      together.giveUp(error)
      return undefined
    }
  }))
  if (failure === undefined) return sealed as Sealed[]
  await foldBack(copies.filter((_, at) => sealed[at] !== undefined), clock)
  throw failure.error
}

/** After a failure, which is what is to be told: each as far as it goes. What cannot be folded now is when it is sealed again. */
export async function foldBack (copies: ReadonlyArray<Pick<Sealable, 'unseal'>>, clock: Clock): Promise<void> {
  await withDeadline(clock, FOLD_DEADLINE_MS, [], async (signal) => {
    await Promise.allSettled(copies.map(async (copy) => { await copy.unseal(signal) }))
  })
}
