/**
 * Writers of some blobs, and a version manager that dies at random writes to its disk, with storage peers that are away now and then
 * and clients that are cut off and start over. From a seed: P2PVM_TEST_SEED brings a run back.
 *
 * Checked: every request ends as exactly one version; every version reads as the writes in the order of their numbers say; what was once
 * published never changes and `recent` never goes back.
 */
import { expect, test } from 'vitest'
import { errorCodeOf } from '../../src/protocols/errors.ts'
import type { Version } from '../../src/versioning/blobs.ts'
import { FakeClock } from '../harness/fake-clock.ts'
import { MemoryFabric } from '../harness/memory-fabric.ts'
import type { WriteFate } from '../harness/memory-stores.ts'
import { Chance, testSeed } from '../harness/seed.ts'

const CHUNK = 4096
const ROUNDS = 12
const WRITERS = 4
const WRITES_EACH = 6
const BLOBS = 2
const GRAIN = 512
/** Simulated. A round takes some minutes; one that takes so long is stuck. */
const ROUND_MS_MAX = 3_600_000

interface Written {
  readonly blob: string
  readonly version: Version
  readonly parts: ReadonlyArray<{ offset: number, bytes: Uint8Array }>
}

class Round {
  readonly #chance: Chance
  readonly #clock = new FakeClock()
  readonly #fabric: MemoryFabric
  readonly #written: Written[] = []
  readonly #seen = new Map<string, Version>()
  readonly #newest = new Map<string, number>()
  crashes = 0

  constructor (chance: Chance) {
    this.#chance = chance
    this.#fabric = new MemoryFabric({ seed: chance.below(2 ** 31), clock: this.#clock })
  }

  async run (): Promise<void> {
    const first = this.#fabric.client('first')
    const blobs: string[] = []
    for (let count = 0; count < BLOBS; count++) blobs.push((await first.create({ chunkSize: CHUNK, fanOut: this.#chance.pick([2, 4, 64]) })).blob)
    this.#trouble()
    let open = WRITERS
    const writers = Array.from({ length: WRITERS }, async (_, writer) => {
      await this.#writer(writer, blobs).finally(() => { open -= 1 })
    })
    const all = Promise.all(writers)
    all.catch(() => {})
    while (open > 0) {
      await this.#clock.advance(100)
      if (this.#clock.monotonic() > ROUND_MS_MAX) throw new Error(`${open} writers are stuck`)
      this.#fabric.records.down = this.#chance.unit() < 0.1
      if (this.#fabric.store.dead && this.#chance.unit() < 0.3) await this.#restart()
      if (!this.#fabric.store.dead) for (const blob of blobs) await this.#look(blob)
    }
    await all
    this.#fabric.records.down = false
    await this.#restart()
    for (const blob of blobs) await this.#checkBlob(blob)
  }

  #trouble (): void {
    const fates: readonly WriteFate[] = [() => 'lost', () => 'kept, not answered']
    this.#fabric.store.fate = (at) => this.#chance.unit() < 0.05 ? this.#chance.pick(fates)(at) : 'kept'
  }

  async #restart (): Promise<void> {
    this.crashes += 1
    await this.#fabric.restart().recover()
    this.#trouble()
  }

  async #writer (writer: number, blobs: readonly string[]): Promise<void> {
    const chance = this.#chance.fork(`writer ${writer}`)
    for (let count = 0; count < WRITES_EACH; count++) {
      const blob = chance.pick(blobs)
      const fill = 1 + writer * WRITES_EACH + count
      const bytes = new Uint8Array(GRAIN * (1 + chance.below(40))).fill(chance.unit() < 0.1 ? 0 : fill)
      const append = chance.unit() < 0.3
      const parts = [{ offset: GRAIN * chance.below(chance.unit() < 0.2 ? 4000 : 200), bytes }]
      const requestId = `request-${writer}-${count}`
      const version = await this.#untilDone(chance, async (signal) => {
        // A client that was cut off begins again, with nothing but its request.
        const client = this.#fabric.client(`writer ${writer}`)
        return append ? await client.append(blob, bytes, { requestId, signal }) : await client.write(blob, parts, { requestId, signal })
      })
      this.#written.push({ blob, version, parts: append ? [{ offset: version.size - bytes.length, bytes }] : parts })
    }
  }

  async #untilDone (chance: Chance, attempt: (signal: AbortSignal) => Promise<Version>): Promise<Version> {
    for (;;) {
      const patience = this.#clock.deadline(chance.unit() < 0.3 ? 150 + chance.below(1000) : 30_000)
      try {
        return await attempt(patience.signal)
      } catch (error) {
        if (!['ERR_UNAVAILABLE', 'ERR_TIMEOUT', 'ERR_ABORTED'].includes(errorCodeOf(error))) throw error
        await this.#clock.sleep(10 + chance.below(300))
      } finally {
        patience[Symbol.dispose]()
      }
    }
  }

  /** What a reader sees at any moment. */
  async #look (blob: string): Promise<void> {
    const { version } = await this.#fabric.manager.recent({ op: 'recent', blob })
    expect(version.version).toBeGreaterThanOrEqual(this.#newest.get(blob) ?? 0)
    this.#newest.set(blob, version.version)
    this.#remember(version)
  }

  #remember (version: Version): void {
    const name = `${version.blob}@${version.version}`
    expect(version).toEqual(this.#seen.get(name) ?? version)
    this.#seen.set(name, version)
  }

  async #checkBlob (blob: string): Promise<void> {
    const reader = this.#fabric.client('reader')
    const written = this.#written.filter((one) => one.blob === blob).sort((a, b) => a.version.version - b.version.version)
    const log = await reader.log(blob)
    expect(log.map(({ version }) => version)).toEqual([0, ...written.map(({ version }) => version.version)])
    expect(log.slice(1)).toEqual(written.map(({ version }) => version))
    log.forEach((version) => { this.#remember(version) })
    let content = new Uint8Array(0)
    for (const { version, parts } of written) {
      const after = new Uint8Array(version.size)
      after.set(content)
      for (const { offset, bytes } of parts) after.set(bytes, offset)
      content = after
      expect(Buffer.compare(await reader.read(version, 0, version.size), content), `version ${version.version} of ${blob}`).toBe(0)
      expect(await reader.version(version)).toEqual(version)
    }
  }
}

test('nothing is lost, doubled, reordered or changed', async () => {
  const chance = new Chance(testSeed())
  let crashes = 0
  for (let number = 0; number < ROUNDS; number++) {
    const round = new Round(chance.fork(number))
    try {
      await round.run()
    } catch (error) {
      throw new Error(`seed ${chance.seed}, round ${number}`, { cause: error })
    }
    crashes += round.crashes
  }
  expect(crashes).toBeGreaterThan(ROUNDS * 2)
})
