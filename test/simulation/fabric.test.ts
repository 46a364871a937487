/**
 * Whole fabrics, each from a seed of its own: P2PVM_SIMULATE_SEEDS of them, 60 unless told. All follow from the one that is printed,
 * and P2PVM_TEST_SEED brings them back. A seed that fails says with which command it alone is run again.
 */
import { expect, test } from 'vitest'
import { testSeed } from '../harness/seed.ts'
import { SeededRandom } from './seeded-random.ts'
import { simulate, type SimulationOutcome } from './simulation.ts'

const SEEDS = Number(process.env['P2PVM_SIMULATE_SEEDS'] ?? 60)
/** On a busy machine. One takes less than a second on an idle one. */
const SEED_MS_MAX = 10_000
/** Small runs find in a second what large ones find, and say it in fewer lines. */
const SMALL = { writers: 5, operations: 24, storagePeers: 5, clients: 3 }

test('what is acknowledged is there, once, in order, and the same for everybody', { timeout: SEEDS * SEED_MS_MAX }, async () => {
  const base = testSeed()
  console.log(`${SEEDS} simulated fabrics from seed ${base}`)
  const outcomes: SimulationOutcome[] = []
  for (let number = 0; number < SEEDS; number++) outcomes.push(await simulate({ ...SMALL, seed: `${base}-${number}` }))

  const cuts = new Map<string, number>()
  for (const { powerCuts } of outcomes) for (const [operation, count] of powerCuts) cuts.set(operation, (cuts.get(operation) ?? 0) + count)
  const of = (read: (outcome: SimulationOutcome) => number): number => outcomes.reduce((sum, outcome) => sum + read(outcome), 0)
  console.log(`${of(({ versions }) => versions)} versions, ${of(({ aborted }) => aborted)} of them aborted, ${of(({ groups }) => groups)} groups, ${of(({ deaths }) => deaths)} deaths, ${of(({ lies }) => lies)} lies, power cut at ` +
    [...cuts].sort().map(([operation, count]) => `${operation} ${count}`).join(', '))
  // Without faults all of this would be easy.
  expect(of(({ deaths }) => deaths)).toBeGreaterThan(SEEDS)
  if (SEEDS >= 20) expect(of(({ lies }) => lies)).toBeGreaterThan(SEEDS)
  if (SEEDS >= 20) expect(of(({ aborted }) => aborted)).toBeGreaterThan(0)
  if (SEEDS >= 20) expect(of(({ groups }) => groups)).toBeGreaterThan(SEEDS / 4)
  if (SEEDS >= 20) expect([...cuts.keys()]).toEqual(expect.arrayContaining(['datasync', 'syncDirectory', 'rename', 'write records', 'write versions']))
})

test('the same seed gives the same run, event by event', async () => {
  const seed = testSeed()
  const first = await simulate({ ...SMALL, seed })
  expect(await simulate({ ...SMALL, seed }), `seed ${seed}`).toEqual(first)
  const other = await simulate({ ...SMALL, seed: `${seed}-other` })
  expect(other.digest).not.toBe(first.digest)
})

test('chance is what the seed says, and even', () => {
  const draws = new SeededRandom('a seed')
  const shares = new Array<number>(8).fill(0)
  for (let draw = 0; draw < 80_000; draw++) shares[draws.below(8)]! += 1
  for (const share of shares) expect(Math.abs(share - 10_000)).toBeLessThan(500)
  expect([...new SeededRandom('a seed').bytes(8)]).toEqual([...new SeededRandom('a seed').bytes(8)])
  expect(new SeededRandom('a seed').fork('x').unit()).not.toBe(new SeededRandom('a seed').fork('y').unit())
})
