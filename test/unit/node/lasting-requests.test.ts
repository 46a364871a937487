/** A commit whose caller is killed goes on, and whoever asks again under its id is told what became of it. */
import { expect, it } from 'vitest'
import { LastingRequests } from '../../../src/node/lasting-requests.ts'
import { FakeClock, settle } from '../../harness/fake-clock.ts'

const never = new AbortController().signal

it('is done once for all who ask under one id, at the same time and later, failures too', async () => {
  const requests = new LastingRequests(new FakeClock())
  let done = 0
  const work = async (): Promise<number> => ++done
  expect(await Promise.all([requests.run('a', never, work), requests.run('a', never, work)])).toEqual([1, 1])
  expect(await requests.run('a', never, work)).toBe(1)
  expect(await requests.run('b', never, work)).toBe(2)
  expect([await requests.run(undefined, never, work), await requests.run(undefined, never, work)]).toEqual([3, 4])
  const fail = async (): Promise<never> => { throw new Error(`failed ${++done}`) }
  await expect(requests.run('c', never, fail)).rejects.toThrow('failed 5')
  await expect(requests.run('c', never, fail)).rejects.toThrow('failed 5')
})

it('goes on without its caller for a while: whoever comes back in time has its outcome, else it is given up', async () => {
  const clock = new FakeClock()
  const requests = new LastingRequests(clock)
  let given: AbortSignal | undefined
  let finish: (value: string) => void = () => {}
  const work = async (signal: AbortSignal): Promise<string> => {
    given = signal
    return await new Promise((resolve, reject) => {
      finish = resolve
      signal.addEventListener('abort', () => { reject(signal.reason as Error) })
    })
  }
  const killed = new AbortController()
  const first = requests.run('a', killed.signal, work)
  killed.abort()
  await expect(first).rejects.toMatchObject({ code: 'ERR_ABORTED' })
  await clock.advance(10_000)
  const second = requests.run('a', never, work)
  await clock.advance(60_000)
  expect(given?.aborted).toBe(false)
  finish('done')
  expect(await second).toBe('done')

  const gone = new AbortController()
  const third = requests.run('b', gone.signal, work)
  gone.abort()
  await expect(third).rejects.toMatchObject({ code: 'ERR_ABORTED' })
  await clock.advance(14_000)
  expect(given?.aborted).toBe(false)
  await clock.advance(1_000)
  expect(given?.aborted).toBe(true)
  await settle()
})

it('keeps the last outcomes only', async () => {
  const requests = new LastingRequests(new FakeClock())
  let done = 0
  for (let id = 0; id < 300; id++) await requests.run(String(id), never, async () => ++done)
  expect(await requests.run('299', never, async () => ++done)).toBe(300)
  expect(await requests.run('0', never, async () => ++done)).toBe(301)
})
