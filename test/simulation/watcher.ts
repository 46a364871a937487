/**
 * Looks at what the version manager says is the latest, on its own machine: as soon as it is up, when it must know of everything
 * that its last life has shown to anybody, and now and then. It may say that it cannot tell yet, while storage peers are away.
 */
import { untilAborted } from '../../src/protocols/abort.ts'
import { errorCodeOf } from '../../src/protocols/errors.ts'
import type { Journal } from './journal.ts'
import type { SeededRandom } from './seeded-random.ts'
import type { Running, SimulatedPeer } from './simulated-peer.ts'
import type { Surroundings } from './simulated-process.ts'

const LOOK_EVERY_MS = 1_000

export class Watcher {
  readonly #versionManager: SimulatedPeer
  readonly #journal: Journal
  readonly #random: SeededRandom
  readonly #surroundings: Surroundings

  constructor (versionManager: SimulatedPeer, journal: Journal, random: SeededRandom, surroundings: Surroundings) {
    this.#versionManager = versionManager
    this.#journal = journal
    this.#random = random
    this.#surroundings = surroundings
  }

  /** Ends only by throwing. */
  async run (): Promise<never> {
    for (;;) {
      const running = await this.#versionManager.whenUp()
      const over = running.process.death
      await untilAborted(this.#lookWhileUp(running), over).catch((error: unknown) => { if (!over.aborted) throw error })
    }
  }

  /** One that has died answers itself for ever: looking at it ends with it. */
  async #lookWhileUp ({ blobs, process }: Running): Promise<void> {
    while (process.isAlive) {
      for (const blob of this.#journal.blobs) {
        const floor = this.#journal.newest(blob).version
        const latest = await blobs.recent(blob).catch((error: unknown) => {
          if (errorCodeOf(error) !== 'ERR_UNAVAILABLE') throw error
        })
        if (latest === undefined) continue
        this.#journal.checkNotOlder(latest, floor)
        this.#journal.saw(latest)
      }
      await this.#surroundings.timeline.sleep(this.#random.exponential(LOOK_EVERY_MS))
    }
  }
}
