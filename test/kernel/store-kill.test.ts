/** A process that writes to its store is killed again and again: what it was told is on disk is there, and no write is there in part. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { openStore } from '../../src/dht/open-store.ts'
import { LineProcess } from '../harness/line-process.ts'
import { Chance, testSeed } from '../harness/seed.ts'
import { checkEntries } from './numbered-entries.ts'

const KILLS = 10
/** From its first word on: the log turns over some times, or not once. */
const LIFE_MS_MAX = 300
const DEADLINE_MS = 20_000
/** Nobody looks at the store between these: the next process finds it as the last one left it. */
const UNSEEN_SHARE = 0.5

const chance = new Chance(testSeed())

describe(`a store whose process is killed ${KILLS} times (P2PVM_TEST_SEED=${chance.seed})`, () => {
  let folder: string
  beforeEach(async () => { folder = await mkdtemp(join(tmpdir(), 'p2pvm-kill-')) })
  afterEach(async () => { await rm(folder, { recursive: true }) })

  it('has all that was acknowledged, and each write whole or not at all', { timeout: KILLS * DEADLINE_MS }, async () => {
    const acknowledged = new Set<number>()
    let next = 0
    for (let kill = 0; kill < KILLS; kill++) {
      const child = new LineProcess(process.execPath, [join(import.meta.dirname, 'write-entries.ts'), folder, String(next)])
      try {
        await child.line((line) => line === 'begins', DEADLINE_MS)
        await delay(chance.unit() * LIFE_MS_MAX)
      } finally {
        await child.kill()
      }
      for (const line of child.lines.slice(1)) acknowledged.add(Number(line))
      // What was on its way may be there, too: numbers are never used again, but for those whose writes would be the same.
      next = Math.max(next, ...acknowledged) + 1
      if (kill < KILLS - 1 && chance.unit() < UNSEEN_SHARE) continue
      const store = await openStore(join(folder, 'records.mdb'))
      try {
        const { numbers, wrong } = checkEntries((start, end) => store.range({ start, end }))
        expect(wrong).toEqual([])
        expect([...acknowledged].filter((number) => !numbers.has(number)), `after kill ${kill}`).toEqual([])
        expect(numbers.size, 'none is there without those before it').toBe(([...numbers].at(-1) ?? -1) + 1)
      } finally {
        await store.close()
      }
    }
    console.log(`${acknowledged.size} writes acknowledged`)
    expect(acknowledged.size).toBeGreaterThan(100)
  })
})
