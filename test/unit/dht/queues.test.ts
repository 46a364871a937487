/** The small pieces that bound and share work: semaphore, admission, single flight, batcher, latency. */
import { describe, expect, it } from 'vitest'
import { Admission } from '../../../src/dht/admission.ts'
import { PeerBatcher } from '../../../src/dht/peer-batcher.ts'
import { OVERDUE_MAX, PeerLatency } from '../../../src/dht/peer-latency.ts'
import { mapAtMost, Semaphore } from '../../../src/dht/semaphore.ts'
import { SingleFlight } from '../../../src/dht/single-flight.ts'
import { settle } from '../../harness/fake-clock.ts'


describe('semaphore', () => {
  it('lets in so many at once, the others in order', async () => {
    const semaphore = new Semaphore({ permits: 2 })
    const log: string[] = []
    const gates = Array.from({ length: 4 }, () => Promise.withResolvers<void>())
    const runs = gates.map(async ({ promise }, index) => await semaphore.run(async () => {
      log.push(`in ${index}`)
      await promise
    }))
    await settle()
    expect(log).toEqual(['in 0', 'in 1'])
    gates[1]?.resolve()
    await settle()
    expect(log).toEqual(['in 0', 'in 1', 'in 2'])
    for (const { resolve } of gates) resolve()
    await Promise.all(runs)
    expect(log).toHaveLength(4)
  })

  it('refuses when too many wait, and forgets those who give up', async () => {
    const semaphore = new Semaphore({ permits: 1, queueMax: 1 })
    const gate = Promise.withResolvers<void>()
    const first = semaphore.run(async () => { await gate.promise })
    const caller = new AbortController()
    const waiting = semaphore.run(async () => {}, caller.signal)
    await expect(semaphore.run(async () => {})).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
    caller.abort(new Error('given up'))
    await expect(waiting).rejects.toThrow('given up')
    const next = semaphore.run(async () => 'next')
    gate.resolve()
    await first
    expect(await next).toBe('next')
  })

  it('gives its permit back after a failure', async () => {
    const semaphore = new Semaphore({ permits: 1 })
    await expect(semaphore.run(async () => { throw new Error('no') })).rejects.toThrow('no')
    expect(await semaphore.run(async () => 'yes')).toBe('yes')
  })
})

describe('mapAtMost', () => {
  it('keeps the order and begins nothing after a failure', async () => {
    expect(await mapAtMost(2, [1, 2, 3], async (one) => one * 2)).toEqual([2, 4, 6])
    const begun: number[] = []
    await expect(mapAtMost(2, [1, 2, 3, 4, 5], async (one) => {
      begun.push(one)
      await settle()
      if (one === 1) throw new Error('no')
      await settle()
    })).rejects.toThrow('no')
    await settle()
    expect(begun).toEqual([1, 2])
  })
})

describe('admission', () => {
  const limits = { demand: 30, commit: 20, prefetch: 10 }

  it('goes by priority, leaves room for what is above, and admits one of any size', async () => {
    const admission = new Admission(limits)
    const log: string[] = []
    const ask = async (name: string, bytes: number, priority: keyof typeof limits): Promise<() => void> => {
      const release = await admission.acquire(bytes, priority)
      log.push(name)
      return release
    }
    const first = await ask('huge commit', 100, 'commit')
    const prefetch = ask('prefetch', 5, 'prefetch')
    const commit = ask('commit', 20, 'commit')
    const demand = ask('demand', 5, 'demand')
    await settle()
    expect(log).toEqual(['huge commit'])
    first()
    await settle()
    expect(log).toEqual(['huge commit', 'demand'])
    ;(await demand)()
    await settle()
    expect(log).toEqual(['huge commit', 'demand', 'commit'])
    const reserved = await ask('demand again', 10, 'demand')
    expect(admission.bytesHeld).toBe(30)
    reserved()
    ;(await commit)()
    ;(await prefetch)()
    expect(admission.bytesHeld).toBe(0)
  })

  it('withdraws who gives up', async () => {
    const admission = new Admission(limits)
    const release = await admission.acquire(20, 'commit')
    const caller = new AbortController()
    const large = admission.acquire(30, 'demand', caller.signal)
    const small = admission.acquire(5, 'demand')
    await settle()
    caller.abort()
    await expect(large).rejects.toMatchObject({ code: 'ERR_ABORTED' })
    ;(await small)()
    release()
    expect(admission.bytesHeld).toBe(0)
    await expect(admission.acquire(1, 'demand', AbortSignal.abort())).rejects.toMatchObject({ code: 'ERR_ABORTED' })
  })
})

describe('single flight', () => {
  it('does the work once for all who wait, and again for who comes later', async () => {
    const flights = new SingleFlight<number>()
    let works = 0
    const work = async (): Promise<number> => {
      await settle()
      return ++works
    }
    expect(await Promise.all([flights.run('a', work), flights.run('a', work), flights.run('b', work)])).toEqual([1, 1, 2])
    expect(await flights.run('a', work)).toBe(3)
  })

  it('aborts when the last one gives up; who comes then starts anew', async () => {
    const flights = new SingleFlight<string>()
    const signals: AbortSignal[] = []
    const work = async (signal: AbortSignal): Promise<string> => {
      signals.push(signal)
      return await new Promise<string>(() => {})
    }
    const caller = new AbortController()
    const given = flights.run('a', work, caller.signal)
    caller.abort()
    await expect(given).rejects.toMatchObject({ code: 'ERR_ABORTED' })
    expect(signals[0]?.aborted).toBe(true)
    expect(await flights.run('a', async () => 'anew')).toBe('anew')
  })

  it('passes a failure to all', async () => {
    const flights = new SingleFlight<string>()
    const outcomes = await Promise.allSettled([0, 1].map(async () => await flights.run('a', async () => { throw new Error('no') })))
    expect(outcomes.map(({ status }) => status)).toEqual(['rejected', 'rejected'])
  })
})

describe('peer batcher', () => {
  function make (itemsMax = 10, bytesMax = Infinity): { batcher: PeerBatcher<number, string>, batches: Array<[string, number[]]>, release: () => void } {
    const batches: Array<[string, number[]]> = []
    const gate = Promise.withResolvers<void>()
    const batcher = new PeerBatcher<number, string>({
      itemsMax, bytesMax, bytesOf: (item) => item, atOnce: 1,
      send: async (peer, items) => {
        batches.push([peer, items])
        await gate.promise
        if (items.includes(13)) throw new Error('unlucky')
        return items.map((item) => `${peer} ${item}`)
      }
    })
    return { batcher, batches, release: gate.resolve }
  }

  it('joins what is asked in one turn, and what comes while a request is under way', async () => {
    const { batcher, batches, release } = make()
    const asked = [1, 2].map(async (item) => await batcher.ask('a', item))
    asked.push(batcher.ask('b', 3))
    await settle()
    asked.push(batcher.ask('a', 4), batcher.ask('a', 5))
    await settle()
    expect(batches).toEqual([['a', [1, 2]], ['b', [3]]])
    release()
    expect(await Promise.all(asked)).toEqual(['a 1', 'a 2', 'b 3', 'a 4', 'a 5'])
    expect(batches[2]).toEqual(['a', [4, 5]])
  })

  it('bounds a batch by items and bytes, and sends what is larger alone', async () => {
    const { batcher, batches, release } = make(3, 10)
    release()
    await Promise.all([1, 1, 1, 1, 6, 50, 2].map(async (item) => await batcher.ask('a', item)))
    expect(batches.map(([, items]) => items)).toEqual([[1, 1, 1], [1, 6], [50], [2]])
  })

  it('fails those who wait behind a request that failed, too', async () => {
    const { batcher, release } = make(1)
    const asked = [13, 1].map(async (item) => await batcher.ask('a', item))
    const outcomes = Promise.allSettled(asked)
    release()
    expect((await outcomes).map(({ status }) => status)).toEqual(['rejected', 'rejected'])
    expect(await batcher.ask('a', 2)).toBe('a 2')
  })
})

describe('peer latency', () => {
  it('hedges at once the usual time has passed, between bounds', () => {
    const latency = new PeerLatency()
    expect(latency.hedgeAfterMs('a')).toBe(500)
    for (let times = 0; times < 50; times++) latency.answered('a', 1)
    expect(latency.hedgeAfterMs('a')).toBe(50)
    for (let times = 0; times < 50; times++) latency.answered('a', 200)
    expect(latency.hedgeAfterMs('a')).toBeGreaterThan(195)
    expect(latency.hedgeAfterMs('a')).toBeLessThan(300)
    for (let times = 0; times < 50; times++) latency.answered('a', 60_000)
    expect(latency.hedgeAfterMs('a')).toBe(2000)
  })

  it('waits longer for one that varies', () => {
    const [steady, restless] = [new PeerLatency(), new PeerLatency()]
    for (let times = 0; times < 100; times++) {
      steady.answered('a', 150)
      restless.answered('a', times % 2 === 0 ? 50 : 250)
    }
    expect(restless.hedgeAfterMs('a')).toBeGreaterThan(steady.hedgeAfterMs('a') + 100)
  })

  it('takes a peer for hung after so many lost races in a row', () => {
    const latency = new PeerLatency()
    const lose = (times: number): boolean[] => Array.from({ length: times }, () => latency.overdue('a'))
    expect(lose(OVERDUE_MAX - 1)).not.toContain(true)
    latency.answered('a', 10)
    expect(lose(OVERDUE_MAX)).toEqual([false, false, true])
    expect(latency.overdue('a')).toBe(false)
  })
})
