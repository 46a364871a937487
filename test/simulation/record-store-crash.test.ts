/** The power is cut at every write of a record store: what was acknowledged is there, and no record is half there. */
import { describe, expect, it } from 'vitest'
import { RecordStore } from '../../src/dht/record-store.ts'
import { FakeClock } from '../harness/fake-clock.ts'
import { testSeed } from '../harness/seed.ts'
import { Power, SimulatedKeyValueStore } from './simulated-disk.ts'

const ROUNDS_PER_STEP = 10
const clock = new FakeClock()
const record = (index: number): { name: string, value: Uint8Array } => ({ name: `node/blob/1/0/${index}`, value: new Uint8Array(Buffer.from(`value of ${index}`)) })

describe('record store, power cut at every operation', () => {
  const seed = testSeed()

  it(`keeps what it acknowledged (seed ${seed})`, async () => {
    let finished = false
    let lost = 0
    for (let step = 1; !finished; step++) {
      finished = true
      for (let round = 0; round < ROUNDS_PER_STEP; round++) {
        const power = new Power(`${seed}/${step}/${round}`).crashAfter(step)
        const disk = new SimulatedKeyValueStore(power)
        const store = new RecordStore({ store: disk, clock })
        const acknowledged = new Set<number>()
        // Writers of overlapping and of the same batches: the second must not answer before the first one's write is on disk.
        await Promise.allSettled([0, 1, 2, 3, 4, 5, 6, 7, 7, 3, 0].map(async (writer) => {
          const batch = [writer, writer + 1, writer + 2]
          await store.put(batch.map(record))
          for (const index of batch) acknowledged.add(index)
        }))

        const after = new RecordStore({ store: disk.recover(new Power('after')), clock })
        for (let index = 0; index < 10; index++) {
          const { name, value } = record(index)
          const found = after.get(name)
          if (found !== undefined || acknowledged.has(index)) expect(found, `${seed}/${step}/${round}: ${name}`).toEqual(value)
          else lost += 1
        }
        finished &&= !power.isOff
      }
    }
    expect(lost, 'the power cut takes what was not acknowledged').toBeGreaterThan(0)
  })
})
