/** The queues of writes: in order, together where they meet, all or none where they are joint. */
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { Operation } from '../../../src/versioning/version-store.ts'
import { WriteQueue } from '../../../src/versioning/write-queue.ts'
import { settle } from '../../harness/fake-clock.ts'

const operation = (key: string): Operation => ({ key, value: Uint8Array.of(1) })

/** A store whose writes end when the test says so, and queues over it. */
class HeldStore {
  /** Keys of each write, in the order in which they came. */
  readonly written: string[][] = []
  readonly failures: string[] = []
  readonly #ends: Array<PromiseWithResolvers<void>> = []

  queue (name: string): WriteQueue {
    return new WriteQueue(
      async (operations) => {
        const end = Promise.withResolvers<void>()
        this.written.push(operations.map(({ key }) => key))
        this.#ends.push(end)
        await end.promise
      },
      () => { this.failures.push(name) })
  }

  async end (at: number, error?: Error): Promise<void> {
    if (error === undefined) this.#ends[at]!.resolve()
    else this.#ends[at]!.reject(error)
    await settle()
  }

  get open (): number {
    return this.#ends.length
  }
}

/** What became of a promise by now. */
function watch (promise: Promise<void>): { state: string } {
  const watched = { state: 'waits' }
  promise.then(() => { watched.state = 'done' }, (error: unknown) => { watched.state = (error as Error).message })
  return watched
}

const jointly = async (queues: readonly WriteQueue[], key: string): Promise<void> => {
  await WriteQueue.writeJointly(queues.map((queue, at) => ({ queue, operations: [operation(`${key}${at}`)] })))
}

describe('a joint write', () => {
  test('is written at once, in one write, when nothing is in front of it', async () => {
    const store = new HeldStore()
    const joint = watch(jointly([store.queue('a'), store.queue('b'), store.queue('c')], 'j'))
    expect(store.written).toEqual([['j0', 'j1', 'j2']])
    await settle()
    expect(joint.state).toBe('waits')
    await store.end(0)
    expect(joint.state).toBe('done')
  })

  test('waits for its turn in every queue, and so does what comes behind it in any', async () => {
    const store = new HeldStore()
    const [a, b] = [store.queue('a'), store.queue('b')] as const
    void a.write([operation('a1')])
    void a.write([operation('a2')])
    const joint = watch(jointly([b, a], 'j'))
    const behind = watch(b.write([operation('b3')]))
    void a.write([operation('a3')])
    await settle()
    expect(store.written).toEqual([['a1']])
    expect(b.idle).toBe(false)
    await store.end(0)
    expect(store.written).toEqual([['a1'], ['a2']])
    await store.end(1)
    expect(store.written.slice(2)).toEqual([['j0', 'j1']])
    expect([joint.state, behind.state]).toEqual(['waits', 'waits'])
    await store.end(2)
    expect([joint.state, behind.state]).toEqual(['done', 'waits'])
    expect(store.written.slice(3).sort()).toEqual([['a3'], ['b3']])
    await store.end(3)
    await store.end(4)
    expect(behind.state).toBe('done')
    expect([a.idle, b.idle, store.failures]).toEqual([true, true, []])
  })

  test('crosses others without a deadlock: all are written, in the order asked in each queue', async () => {
    const step = fc.record({ queues: fc.uniqueArray(fc.nat(3), { minLength: 1, maxLength: 4 }), joint: fc.boolean(), ends: fc.nat(2) })
    await fc.assert(fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 20 }), async (steps) => {
      const store = new HeldStore()
      const queues = Array.from({ length: 4 }, (_, at) => store.queue(String(at)))
      const [asked, results, ended] = [queues.map((): string[] => []), [] as Array<{ state: string }>, new Set<number>()]
      const endSome = async (most: number): Promise<void> => {
        for (let count = 0; count < most; count++) {
          const next = Array.from({ length: store.open }, (_, at) => at).find((at) => !ended.has(at))
          if (next === undefined) return
          ended.add(next)
          await store.end(next)
        }
      }
      for (const [at, { queues: chosen, joint, ends }] of steps.entries()) {
        const parts = chosen.map((one) => ({ queue: queues[one]!, operations: [operation(`${one}/${at}`)] }))
        for (const one of chosen) asked[one]!.push(`${one}/${at}`)
        if (joint) results.push(watch(WriteQueue.writeJointly(parts)))
        else for (const { queue, operations } of parts) results.push(watch(queue.write(operations)))
        await endSome(ends)
      }
      await endSome(1000)
      expect(results.map(({ state }) => state)).toEqual(results.map(() => 'done'))
      const keys = store.written.flat()
      for (const [at, expected] of asked.entries()) expect(keys.filter((key) => key.startsWith(`${at}/`))).toEqual(expected)
      for (const [at, { queues: chosen, joint }] of steps.entries()) {
        const together = chosen.map((one) => `${one}/${at}`)
        if (joint) expect(store.written).toContainEqual(together)
      }
    }), { numRuns: 60 })
  })

  test('that fails ends all its queues, and whoever waits in them', async () => {
    const store = new HeldStore()
    const [a, b, c] = [store.queue('a'), store.queue('b'), store.queue('c')] as const
    const joint = jointly([a, b], 'j')
    const all = [watch(joint), watch(b.write([operation('b2')])), watch(jointly([b, c], 'k'))]
    // By the time that anybody is told, nothing more goes into them.
    const told = joint.catch(async () => await expect(a.write([operation('a2')])).rejects.toThrow('no room'))
    await store.end(0, new Error('no room'))
    await told
    expect(all.map(({ state }) => state)).toEqual(['no room', 'no room', 'no room'])
    expect(store.failures.sort()).toEqual(['a', 'b', 'c'])
    expect(store.written).toEqual([['j0', 'j1']])
    await expect(c.write([operation('c2')])).rejects.toThrow('no room')
  })

  test('is not written when one of its queues fails before its turn', async () => {
    const store = new HeldStore()
    const [a, b] = [store.queue('a'), store.queue('b')] as const
    void a.write([operation('a1')]).catch(() => {})
    const other = watch(b.write([operation('b1')]))
    const joint = watch(jointly([a, b], 'j'))
    await store.end(0, new Error('no room'))
    expect([joint.state, other.state, store.failures]).toEqual(['waits', 'waits', ['a']])
    await store.end(1)
    // What was asked of it before stays; the joint one is in its memory, and will never be on disk.
    expect([joint.state, other.state, store.failures]).toEqual(['no room', 'done', ['a', 'b']])
    expect(store.written).toEqual([['a1'], ['b1']])
  })

  test('into a queue that has failed fails in all', async () => {
    const store = new HeldStore()
    const [a, b] = [store.queue('a'), store.queue('b')] as const
    void a.write([operation('a1')]).catch(() => {})
    await store.end(0, new Error('no room'))
    for (const queues of [[a, b], [b, a]]) await expect(jointly(queues, 'j')).rejects.toThrow('no room')
    expect([store.failures, store.written]).toEqual([['a', 'b'], [['a1']]])
  })

  test('of nothing is done, and of the same queue twice is none', async () => {
    await WriteQueue.writeJointly([])
    const queue = new HeldStore().queue('a')
    await expect(jointly([queue, queue], 'j')).rejects.toThrow('wait for itself')
  })
})
