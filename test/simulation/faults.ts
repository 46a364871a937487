/** What goes wrong from outside: peers die, at once or at their next operation of some kind, and partitions come and go. */
import type { SeededRandom } from './seeded-random.ts'
import type { SimulatedNetwork } from './simulated-network.ts'
import type { SimulatedPeer } from './simulated-peer.ts'
import type { Surroundings } from './simulated-process.ts'

/** All that a storage peer does to its disk and stores. The version manager's flushes count more: all depends on them. */
const PERSISTENCE_POINTS = [
  'mkdir', 'readdir', 'stat', 'read', 'create', 'write', 'datasync', 'close', 'rename', 'unlink', 'syncDirectory', 'freeBytes',
  'write records', 'write records', 'write versions', 'write versions', 'write versions', 'write seen',
  'append records', 'append versions', 'settle records', 'settle versions'
]

export class Faults {
  readonly #peers: readonly SimulatedPeer[]
  readonly #random: SeededRandom
  readonly #surroundings: Surroundings
  readonly #network: SimulatedNetwork
  readonly #partitions = new Set<() => void>()
  #over = false

  constructor (peers: readonly SimulatedPeer[], random: SeededRandom, surroundings: Surroundings, network: SimulatedNetwork) {
    this.#peers = peers
    this.#random = random
    this.#surroundings = surroundings
    this.#network = network
  }

  start (): void {
    const { crashEveryMs, partitionEveryMs, rotEveryMs } = this.#surroundings.weather()
    if (crashEveryMs < Infinity) void this.#every(crashEveryMs, this.#random.fork('crashes'), (random) => { this.#crash(random) })
    if (partitionEveryMs < Infinity) void this.#every(partitionEveryMs, this.#random.fork('partitions'), (random) => { this.#part(random) })
    const rotting = this.#random.pick(this.#peers.filter(({ isStorage }) => isStorage))
    if (rotEveryMs < Infinity) void this.#every(rotEveryMs, this.#random.fork('rot'), (random) => { rotting.rotOne(random) })
  }

  /** For good. Who is down comes back at the time that was set. */
  stop (): void {
    this.#over = true
    for (const peer of this.#peers) peer.process?.power.crashAtNext(undefined)
    for (const heal of this.#partitions) heal()
  }

  /** Starts a peer, and whenever it dies starts it again after a while. */
  keepRunning (peer: SimulatedPeer): void {
    const random = this.#random.fork(`${peer.id}'s times down`)
    const start = (): void => { peer.start(() => { this.#surroundings.timeline.after(random.unit() * this.#surroundings.weather().downMsMax, start) }) }
    start()
  }

  async #every (meanMs: number, random: SeededRandom, happen: (random: SeededRandom) => void): Promise<void> {
    for (;;) {
      await this.#surroundings.timeline.sleep(random.exponential(meanMs))
      if (this.#over) return
      happen(random)
    }
  }

  #crash (random: SeededRandom): void {
    const point = random.pick(PERSISTENCE_POINTS)
    const peer = point.endsWith(' versions') ? this.#peers[0]! : random.pick(this.#peers)
    if (!peer.isStorage || random.unit() < 0.25) peer.die()
    else peer.process?.power.crashAtNext(point)
  }

  #part (random: SeededRandom): void {
    const { timeline, trace, weather } = this.#surroundings
    const share = random.unit()
    const peers = new Set(this.#peers.map(({ id }) => id).filter(() => random.unit() < share))
    const mend = this.#network.cutOff(peers)
    trace.add('cut off:', ...peers)
    const heal = (): void => {
      if (!this.#partitions.delete(heal)) return
      mend()
      trace.add('joined again:', ...peers)
    }
    this.#partitions.add(heal)
    timeline.after(random.unit() * weather().partitionMsMax, heal)
  }
}
