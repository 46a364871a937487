import { describe, expect, it } from 'vitest'
import { SharedDeadlines } from '../../../src/dht/shared-deadlines.ts'
import { FakeClock } from '../../harness/fake-clock.ts'

describe('shared deadlines', () => {
  const given: Array<[string, string]> = []
  const clock = new FakeClock()
  const note = (name: string) => (error: { code: string }): void => { given.push([name, error.code]) }

  it('come when they are due or a sixteenth later, those that begin together with one timer', async () => {
    const deadlines = new SharedDeadlines(clock, undefined)
    deadlines.wait(1600, note('first'))
    await clock.advance(100)
    deadlines.wait(1600, note('joined'))
    expect(clock.pending).toBe(1)
    await clock.advance(1)
    deadlines.wait(1600, note('later'))
    deadlines.wait(100, note('shorter'))
    expect(clock.pending).toBe(3)
    await clock.advance(107)
    expect(given).toEqual([['shorter', 'ERR_TIMEOUT']])
    await clock.advance(1700 - 208 - 1)
    expect(given).toHaveLength(1)
    await clock.advance(1)
    expect(given.slice(1)).toEqual([['first', 'ERR_TIMEOUT'], ['joined', 'ERR_TIMEOUT']])
    await clock.advance(101)
    expect(given.slice(3)).toEqual([['later', 'ERR_TIMEOUT']])
    expect(clock.pending).toBe(0)
  })

  it('leave no timer behind when nobody waits any more, and call nobody who does not', async () => {
    given.length = 0
    const deadlines = new SharedDeadlines(clock, undefined)
    const done = [deadlines.wait(1000, note('one')), deadlines.wait(1000, note('two'))]
    done[0]!()
    done[0]!()
    expect(clock.pending).toBe(1)
    done[1]!()
    expect(clock.pending).toBe(0)
    deadlines.wait(1000, note('three'))
    await clock.advance(2000)
    expect(given).toEqual([['three', 'ERR_TIMEOUT']])
  })

  it('end early with what ends them all, and at once after it', () => {
    given.length = 0
    const over = new AbortController()
    const deadlines = new SharedDeadlines(clock, over.signal)
    deadlines.wait(1000, note('waiting'))
    over.abort()
    expect(given).toEqual([['waiting', 'ERR_ABORTED']])
    deadlines.wait(1000, note('late'))
    expect(given.slice(1)).toEqual([['late', 'ERR_ABORTED']])
  })
})
