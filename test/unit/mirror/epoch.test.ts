import { Worker } from 'node:worker_threads'
import { describe, expect, it, vi } from 'vitest'
import { EpochClock, EpochPassenger, makeEpochBuffer } from '../../../src/mirror/fuse/epoch.ts'
import { CLOSED, CURRENT, STOP, USES, VIOLATIONS } from '../../harness/epoch-worker.ts'

describe('the epoch', () => {
  it('lets nothing be closed that a worker may be using', async () => {
    const workers = 2
    const rounds = 3000
    const epoch = makeEpochBuffer(workers)
    const clock = new EpochClock(epoch, workers)
    const buffer = new SharedArrayBuffer((CLOSED + rounds + 1) * 4)
    const cells = new Int32Array(buffer)
    const threads = Array.from({ length: workers }, (_, worker) => {
      const thread = new Worker(new URL('../../harness/epoch-worker.ts', import.meta.url), { workerData: { epoch, cells: buffer, worker } })
      thread.on('message', () => { clock.onPassed() })
      return thread
    })
    const ended = Promise.all(threads.map(async (thread) => { await new Promise((resolve) => thread.on('exit', resolve)) }))
    await expect.poll(() => Atomics.load(cells, USES), { timeout: 15_000 }).toBeGreaterThan(0)
    for (let round = 0; round < rounds; round++) {
      Atomics.store(cells, CURRENT, round + 1)
      await clock.quiesce()
      Atomics.store(cells, CLOSED + round, 1)
    }
    Atomics.store(cells, STOP, 1)
    await ended
    expect(cells[USES]).toBeGreaterThan(100)
    expect(cells[VIOLATIONS]).toBe(0)
  })

  it('does not wait for idle workers, and waits for each that is not', async () => {
    const epoch = makeEpochBuffer(2)
    const clock = new EpochClock(epoch, 2)
    const [first, second] = [new EpochPassenger(epoch, 0), new EpochPassenger(epoch, 1)]
    await clock.quiesce()
    expect(first.enter()).toBe(true) // an epoch has begun since it was made
    expect(second.enter()).toBe(true)
    let passed = false
    const quiet = clock.quiesce().then(() => { passed = true })
    expect(first.leave()).toBe(true)
    clock.onPassed()
    await Promise.resolve()
    expect(passed).toBe(false)
    expect(first.enter()).toBe(true) // in the new epoch: need not be waited for
    expect(second.leave()).toBe(true)
    clock.onPassed()
    await quiet
    expect(first.leave()).toBe(false)
    expect(first.enter()).toBe(false)
  })

  it('is seen by a worker that was between looking at it and saying so', async () => {
    const epoch = makeEpochBuffer(1)
    const clock = new EpochClock(epoch, 1)
    const passenger = new EpochPassenger(epoch, 0)
    expect(passenger.enter()).toBe(false)
    passenger.leave()
    const { store } = Atomics
    const quiesced = vi.fn()
    const spy = vi.spyOn(Atomics, 'store').mockImplementationOnce((...stored: Parameters<typeof store>) => {
      spy.mockRestore()
      void clock.quiesce().then(quiesced) // finds the worker idle still
      return store(...stored)
    })
    expect(passenger.enter()).toBe(true)
    await Promise.resolve()
    expect(quiesced).toHaveBeenCalled()
  })
})
