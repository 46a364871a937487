/**
 * A working copy that no mount has open, driven by the daemon directly on its files: the same steps as `mounted-copy.ts`
 * with nobody to hold and nobody to tell. It is locked from a seal to the end of the commit, so that no mount opens it between.
 */
import { P2pvmError } from '../protocols/errors.ts'
import type { Random } from '../protocols/seams.ts'
import { Mutex } from './mutex.ts'
import { foldUnder } from './overlay.ts'
import type { Sealable, Sealed } from './sealable.ts'
import type { VersionRef } from './source.ts'
import { basedOn, baseOf, LockedCopy } from './working-copy.ts'

/** `working`: the folder of the working copies. */
export function unmountedSealable (working: string, name: string, random: Random): Sealable {
  return new UnmountedCopy(working, name, random)
}

class UnmountedCopy implements Sealable {
  readonly #working: string
  readonly #name: string
  readonly #random: Random
  readonly #operations = new Mutex()
  /** From a seal to the end of its commit. */
  #kept: LockedCopy | undefined

  constructor (working: string, name: string, random: Random) {
    this.#working = working
    this.#name = name
    this.#random = random
  }

  async seal (signal: AbortSignal): Promise<Sealed> {
    return await this.#alone(signal, 'keep', async (copy) => {
      await fold(copy)
      copy.cut(await copy.prepareCut())
      const { sealed } = copy
      if (sealed === undefined) throw new P2pvmError('ERR_INTERNAL', 'the cut left no sealed overlay')
      await sealed.sync()
      return { base: baseOf(copy.state), size: sealed.size, overlay: sealed.folder, freezeMs: 0 } // nobody was held
    })
  }

  async rebase (version: VersionRef, signal: AbortSignal): Promise<void> {
    await this.#alone(signal, 'close', async (copy) => {
      await copy.change({ ...basedOn(version), sealed: undefined })
      const { sealed } = copy
      copy.sealed = undefined
      if (sealed !== undefined) await copy.discard(sealed)
    })
  }

  async unseal (signal: AbortSignal): Promise<void> {
    await this.#alone(signal, 'close', fold)
  }

  async reassign (version: VersionRef, signal: AbortSignal): Promise<void> {
    await this.#alone(signal, 'close', async (copy) => {
      await copy.change(basedOn(version))
    })
  }

  async revert (signal: AbortSignal): Promise<void> {
    await this.#alone(signal, 'close', async (copy) => {
      for (const overlay of await copy.revert()) await copy.discard(overlay)
    })
  }

  async #alone<T> (signal: AbortSignal, then: 'keep' | 'close', work: (copy: LockedCopy) => Promise<T>): Promise<T> {
    return await this.#operations.run(async () => {
      signal.throwIfAborted()
      const copy = this.#kept ?? await LockedCopy.open(this.#working, this.#name, this.#random)
      this.#kept = undefined
      let keep = false
      try {
        const result = await work(copy)
        keep = then === 'keep'
        return result
      } finally {
        if (keep) this.#kept = copy
        else await copy.close()
      }
    })
  }
}

async function fold (copy: LockedCopy): Promise<void> {
  const { sealed } = copy
  if (sealed === undefined) return
  await foldUnder(copy.top, sealed, async () => {})
  await copy.change({ sealed: undefined })
  copy.sealed = undefined
  await copy.discard(sealed)
}
