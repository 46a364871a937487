/**
 * A whole fabric in one process, from one seed: production classes over a simulated network, clock and disks, with writers, with
 * faults, and then with checks against a model. The same seed gives the same run, event by event.
 */
import { FinalChecks } from './final-checks.ts'
import { Faults } from './faults.ts'
import { Journal } from './journal.ts'
import { SeededRandom } from './seeded-random.ts'
import { Timeline } from './simulated-clock.ts'
import { SimulatedNetwork } from './simulated-network.ts'
import { type FabricPlan, SimulatedPeer } from './simulated-peer.ts'
import type { Surroundings } from './simulated-process.ts'
import { Trace } from './trace.ts'
import { CALM, weatherOf } from './weather.ts'
import { Watcher } from './watcher.ts'
import { Writer } from './writer.ts'

export interface SimulationInit {
  readonly seed: string
  readonly writers: number
  /** Of all writers together. */
  readonly operations: number
  readonly storagePeers: number
  readonly clients: number
  readonly print?: ((line: string) => void) | undefined
}

export const SIMULATION_DEFAULTS = { writers: 16, operations: 500, storagePeers: 5, clients: 3 }

export interface SimulationOutcome {
  /** Of the trace. */
  readonly digest: string
  readonly events: number
  readonly elapsedMs: number
  readonly versions: number
  readonly aborted: number
  /** That show; those that were refused or given up are not counted. */
  readonly groups: number
  readonly deaths: number
  readonly lies: number
  readonly powerCuts: ReadonlyMap<string, number>
}

/** Of runs, in which one storage peer, not the version manager's, lies. */
const LIAR_SHARE = 0.5
/** After so long the faults cease, whatever is left to be done. */
const FAULTS_MS_MAX = 20 * 60_000
/** Everybody who is not done then is stuck. */
const RUN_MS_MAX = FAULTS_MS_MAX + 20 * 60_000
const CHECKS_MS_MAX = 30 * 60_000

/** Throws what went wrong, with the command that makes it go wrong again. */
export async function simulate (init: SimulationInit): Promise<SimulationOutcome> {
  try {
    return await new Simulation(init).run()
  } catch (error) {
    throw new Error(`seed ${init.seed}: ${(error as Error).message}\n  again: ${commandOf(init)}`, { cause: error })
  }
}

export function commandOf ({ seed, writers, operations, storagePeers, clients }: SimulationInit): string {
  return `npm run simulate -- --seed ${seed} --writers ${writers} --operations ${operations} --storage-peers ${storagePeers} --clients ${clients}`
}

class Simulation {
  readonly #init: SimulationInit
  readonly #random: SeededRandom
  readonly #timeline = new Timeline()
  readonly #trace: Trace
  readonly #surroundings: Surroundings
  readonly #peers: readonly SimulatedPeer[]
  readonly #faults: Faults
  readonly #journal: Journal
  #weather = CALM

  constructor (init: SimulationInit) {
    this.#init = init
    this.#random = new SeededRandom(init.seed)
    this.#trace = new Trace(this.#timeline, init.print)
    this.#surroundings = { timeline: this.#timeline, trace: this.#trace, weather: () => this.#weather, powerCuts: new Map() }
    const network = new SimulatedNetwork(this.#random.fork('network'), this.#surroundings)
    const storagePeers = Array.from({ length: init.storagePeers }, (_, at) => `storage-${at}`)
    const clients = Array.from({ length: init.clients }, (_, at) => `client-${at}`)
    const liars = this.#random.fork('liar')
    // Of two copies of a record one is good.
    const liar = liars.unit() < LIAR_SHARE && storagePeers.length > 1 ? liars.pick(storagePeers.slice(1)) : undefined
    const plan: FabricPlan = { storagePeers, replication: { replicas: 3, acknowledgements: 2 }, liar }
    this.#peers = [...storagePeers, ...clients].map((id) => new SimulatedPeer(id, plan, this.#random.fork(id), this.#surroundings, network))
    this.#faults = new Faults(this.#peers, this.#random.fork('faults'), this.#surroundings, network)
    this.#journal = new Journal(this.#peers.slice(0, init.storagePeers), Math.min(2, init.storagePeers))
  }

  async run (): Promise<SimulationOutcome> {
    for (const peer of this.#peers) this.#faults.keepRunning(peer)
    await this.#timeline.runUntilDone(this.#write(), RUN_MS_MAX)
    const { versions, aborted, groups } = await this.#timeline.runUntilDone(this.#check(), CHECKS_MS_MAX)
    return {
      digest: this.#trace.digest(),
      events: this.#trace.lines,
      elapsedMs: this.#timeline.elapsedMs,
      versions,
      aborted,
      groups,
      deaths: this.#peers.reduce((sum, { lives }) => sum + lives - 1, 0),
      lies: this.#peers.reduce((sum, { lies }) => sum + lies, 0),
      powerCuts: this.#surroundings.powerCuts
    }
  }

  async #write (): Promise<void> {
    for (const peer of this.#peers) await peer.whenUp()
    this.#weather = weatherOf(this.#random.fork('weather'))
    this.#trace.add('weather', JSON.stringify(this.#weather))
    this.#faults.start()
    this.#timeline.after(FAULTS_MS_MAX, () => { this.#clearUp() })
    const watcher = new Watcher(this.#peers[0]!, this.#journal, this.#random.fork('watcher'), this.#surroundings)
    await Promise.race([this.#writeAll(), watcher.run()])
  }

  async #writeAll (): Promise<void> {
    let left = this.#init.operations
    await Promise.all(Array.from({ length: this.#init.writers }, async (_, at) => {
      const name = `writer-${at}`
      const writer = new Writer({
        name,
        peers: this.#peers,
        random: this.#random.fork(name),
        surroundings: this.#surroundings,
        journal: this.#journal,
        take: () => left-- > 0
      })
      await writer.run()
    }))
  }

  async #check (): Promise<{ versions: number, aborted: number, groups: number }> {
    this.#clearUp()
    for (const peer of this.#peers) peer.die()
    const checks = new FinalChecks({
      journal: this.#journal, peers: this.#peers, random: this.#random.fork('checks')
    })
    return await checks.run()
  }

  #clearUp (): void {
    this.#weather = CALM
    this.#faults.stop()
  }
}
