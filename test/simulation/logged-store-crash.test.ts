/**
 * The power is cut at every step of a store with a log in front of it, while it works, while the log turns over, and again while it starts:
 * after each start it has a beginning of what was asked of it, in that order, with all that was acknowledged, and keeps that.
 */
import { describe, expect, it } from 'vitest'
import { LoggedStore } from '../../src/dht/logged-store.ts'
import type { Operation } from '../../src/dht/write-ahead-log.ts'
import type { KeyValueStore } from '../../src/protocols/seams.ts'
import { FakeClock } from '../harness/fake-clock.ts'
import { Chance, testSeed } from '../harness/seed.ts'
import { Power, SimulatedDisk, type SimulatedDiskInit, SimulatedKeyValueStore } from './simulated-disk.ts'

const ROUNDS_PER_STEP = 10
const BURSTS = 16
/** With each write, with each few of them, never. */
const LOG_BYTES = [1, 1500, 5000, Infinity]
const KEYS = 6
/** More than a sector. */
const VALUE_BYTES_MAX = 700
/** The next ones while it starts, while it works, and while it starts again: that takes some seven steps. */
const LATER_CUTS = [8, 60, 8, Infinity, Infinity, Infinity]
const clock = new FakeClock()

/** What has been asked of the store: after any start it has the first few of it. */
interface History {
  asked: ReadonlyArray<readonly Operation[]>
  acknowledged: number
}

interface Medium {
  readonly disk: SimulatedDisk
  readonly store: SimulatedKeyValueStore
}

/** Of a process that is killed: what it has begun never comes to its end, and the disk goes on. */
class KillingPower extends Power {
  killAt: string | undefined

  override async step<T> (effect: () => T, operation = ''): Promise<T> {
    if (operation === this.killAt) return await new Promise<never>(() => {})
    return await super.step(effect, operation)
  }
}

async function open ({ disk, store }: Medium, chance: Chance): Promise<LoggedStore> {
  const random = { bytes: (count: number) => Uint8Array.from({ length: count }, () => chance.below(256)) }
  return await LoggedStore.open({ store: slow(store, chance), disk, path: '/records', random, turn: async () => {}, logBytes: chance.pick(LOG_BYTES) })
}

/** The log may go on for a while before the store even begins. */
function slow (store: KeyValueStore, chance: Chance): KeyValueStore {
  return {
    get: (key) => store.get(key),
    range: (options) => store.range(options),
    write: async (operations) => {
      for (let turns = chance.pick([0, 10, 60]); turns > 0; turns--) await Promise.resolve()
      await store.write(operations)
    },
    close: async () => { await store.close() }
  }
}

function operationsOf (chance: Chance): Operation[] {
  return Array.from({ length: 1 + chance.below(3) }, () => {
    const value = Buffer.alloc(chance.below(VALUE_BYTES_MAX), `${chance.unit()} `)
    return { key: `key ${chance.below(KEYS)}`, value: chance.unit() < 0.25 ? null : value }
  })
}

/** Writes, several at once; ends with the power, or when it has done enough. */
async function work (store: LoggedStore, history: History, chance: Chance): Promise<void> {
  for (let burst = 0; burst < BURSTS; burst++) {
    const writing = Array.from({ length: 1 + chance.below(3) }, async () => {
      const operations = operationsOf(chance)
      history.asked = [...history.asked, operations]
      const count = history.asked.length
      await store.write(operations)
      history.acknowledged = Math.max(history.acknowledged, count)
    })
    const together = Promise.allSettled(writing)
    // Now and then some come while others are on their way.
    if (chance.unit() < 0.6) await together
    else for (let turns = chance.below(20); turns > 0; turns--) await Promise.resolve()
  }
  await store.close()
}

function contentOf (store: LoggedStore): Map<string, string> {
  const content = new Map(Array.from(store.range({ start: '', end: '~' }), ({ key, value }) => [key, Buffer.from(value).toString()]))
  for (let index = 0; index < KEYS; index++) {
    const value = store.get(`key ${index}`)
    expect(value && Buffer.from(value).toString()).toBe(content.get(`key ${index}`))
  }
  return content
}

/** How many of the writes the content is the outcome of: the last that it can be. undefined: it is of none. */
function lengthOf (content: ReadonlyMap<string, string>, asked: History['asked']): number | undefined {
  const model = new Map<string, string>()
  const isContent = (): boolean => model.size === content.size && [...model].every(([key, value]) => content.get(key) === value)
  let length = isContent() ? 0 : undefined
  asked.forEach((operations, index) => {
    for (const { key, value } of operations) {
      if (value === null) model.delete(key)
      else model.set(key, Buffer.from(value).toString())
    }
    if (isContent()) length = index + 1
  })
  return length
}

/** What is there after a start goes on as if nothing else had ever been asked. */
function check (content: ReadonlyMap<string, string>, history: History): string | undefined {
  const length = lengthOf(content, history.asked)
  if (length === undefined) return 'something else than a beginning of what was asked'
  if (length < history.acknowledged) return `${history.acknowledged} of ${history.asked.length} were acknowledged, there are ${length}`
  history.asked = history.asked.slice(0, length)
  history.acknowledged = length
  return undefined
}

/** One store's lives, each with a power of its own; the first one is cut at `step`. */
async function crashAt (seed: string, step: number, forgets?: SimulatedDiskInit['forgets']): Promise<{ finished: boolean, broken: string | undefined }> {
  const chance = new Chance(seed)
  const history: History = { asked: [], acknowledged: 0 }
  const first = new Power(`${seed}/0`).crashAfter(step)
  let power = first
  let medium: Medium = { disk: new SimulatedDisk({ power, clock, forgets }), store: new SimulatedKeyValueStore(power) }
  for (const [life, cutWithin] of LATER_CUTS.entries()) {
    let broken: string | undefined
    try {
      const store = await open(medium, chance)
      broken = check(contentOf(store), history)
      // The last ones only look: a start changes nothing.
      if (broken === undefined && life < LATER_CUTS.length - 2) await work(store, history, chance)
    } catch (error) {
      if (!power.isOff) broken = `it did not start: ${(error as Error).message}`
    }
    if (broken !== undefined) return { finished: false, broken: `life ${life}: ${broken}` }
    const { disk, store } = medium
    power = new Power(chance.fork(`power ${life}`))
    if (cutWithin < Infinity) power.crashAfter(1 + chance.below(cutWithin))
    medium = { disk: disk.recover({ power, clock, forgets }), store: store.recover(power) }
  }
  return { finished: !first.isOff, broken: undefined }
}

async function crashEverywhere (seed: string, forgets?: SimulatedDiskInit['forgets']): Promise<{ steps: number, broken: string[] }> {
  const broken: string[] = []
  for (let step = 1; ; step++) {
    let finished = true
    for (let round = 0; round < ROUNDS_PER_STEP; round++) {
      const one = await crashAt(`${seed}/${step}/${round}`, step, forgets)
      finished &&= one.finished
      if (one.broken !== undefined) broken.push(`step ${step}, round ${round}: ${one.broken}`)
    }
    // Nobody waits for all that a forgotten sync breaks.
    if (finished || broken.length > 100 || (forgets !== undefined && broken.length > 0)) return { steps: step, broken }
  }
}

describe('logged store, power cut at every operation', () => {
  const seed = testSeed()

  it(`keeps what it acknowledged, in order (seed ${seed})`, { timeout: 60_000 }, async () => {
    const { steps, broken } = await crashEverywhere(seed)
    expect(broken).toEqual([])
    expect(steps).toBeGreaterThan(40)
  })

  it('keeps what a killed process did not sync and a later one has shown', async () => {
    for (let round = 0; round < 20; round++) {
      // kill -9 between the write and its sync, then a restart, then a power cut: the restart must sync what it finds.
      const power = new KillingPower(`${seed}/${round}`)
      const medium: Medium = { disk: new SimulatedDisk({ power, clock }), store: new SimulatedKeyValueStore(power) }
      const killed = await open(medium, new Chance(`${seed}/${round}/first`))
      power.killAt = 'write'
      void killed.write([{ key: 'key', value: Buffer.alloc(VALUE_BYTES_MAX, `${round} `) }])
      for (let turns = 0; turns < 50; turns++) await Promise.resolve()
      power.killAt = undefined
      const shown = await open(medium, new Chance(`${seed}/${round}/second`)).then((store) => store.get('key'))
      expect(shown).toHaveLength(VALUE_BYTES_MAX)

      const after = new Power(`${seed}/${round}/after`)
      const recovered = await open({ disk: medium.disk.recover({ power: after, clock }), store: medium.store.recover(after) }, new Chance('third'))
      expect(recovered.get('key')).toEqual(shown)
    }
  })

  it.each(['datasync', 'syncDirectory'] as const)('would not, if %s were forgotten', async (forgets) => {
    const { broken } = await crashEverywhere(seed, forgets)
    expect(broken.length).toBeGreaterThan(0)
  })
})
