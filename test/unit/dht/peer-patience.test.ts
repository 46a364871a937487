import { expect, test } from 'vitest'
import { PeerPatience } from '../../../src/dht/peer-patience.ts'
import { abortErrorOf, untilAborted } from '../../../src/protocols/abort.ts'
import { FakeClock } from '../../harness/fake-clock.ts'

const SILENCE_MS = 5_000
const hangs = async (signal: AbortSignal): Promise<never> => await untilAborted(new Promise<never>(() => {}), signal)

/** What it ended with, and when; undefined while it has not. */
function outcomeOf (clock: FakeClock, work: Promise<unknown>): () => { error: unknown, atMs: number } | undefined {
  let outcome: { error: unknown, atMs: number } | undefined
  work.catch((error: unknown) => { outcome = { error, atMs: clock.monotonic() } })
  return () => outcome
}

test('a peer from which nothing comes is given up after the silence', async () => {
  const clock = new FakeClock()
  const outcome = outcomeOf(clock, new PeerPatience(clock).during('peer', SILENCE_MS, undefined, hangs))
  await clock.advance(SILENCE_MS - 1)
  expect(outcome()).toBeUndefined()
  await clock.advance(1)
  expect(outcome()).toMatchObject({ error: { code: 'ERR_TIMEOUT' }, atMs: SILENCE_MS })
  expect(clock.pending).toBe(0)
})

test('one that answers others is waited for, until it falls silent', async () => {
  const clock = new FakeClock()
  const patience = new PeerPatience(clock)
  const outcome = outcomeOf(clock, patience.during('peer', SILENCE_MS, undefined, hangs))
  for (let answers = 0; answers < 5; answers++) {
    await clock.advance(SILENCE_MS - 1000)
    patience.answered('peer')
    patience.answered('another')
  }
  await clock.advance(SILENCE_MS - 1)
  expect(outcome()).toBeUndefined()
  patience.answered('another')
  await clock.advance(1)
  expect(outcome()).toMatchObject({ error: { code: 'ERR_TIMEOUT' } })
})

test('an answer from long ago gives no less time', async () => {
  const clock = new FakeClock()
  const patience = new PeerPatience(clock)
  patience.answered('peer')
  await clock.advance(60_000)
  const outcome = outcomeOf(clock, patience.during('peer', SILENCE_MS, undefined, hangs))
  await clock.advance(SILENCE_MS - 1)
  expect(outcome()).toBeUndefined()
})

test('the caller can give up, before and meanwhile, and an answer leaves nothing behind', async () => {
  const clock = new FakeClock()
  const patience = new PeerPatience(clock)
  const caller = new AbortController()
  const running = patience.during('peer', SILENCE_MS, caller.signal, hangs)
  caller.abort()
  await expect(running).rejects.toMatchObject({ code: 'ERR_ABORTED' })
  await expect(patience.during('peer', SILENCE_MS, caller.signal, async (signal) => { throw abortErrorOf(signal) })).rejects.toMatchObject({ code: 'ERR_ABORTED' })
  expect(await patience.during('peer', SILENCE_MS, undefined, async () => 'answer')).toBe('answer')
  await clock.advance(0)
  expect(clock.pending).toBe(0)
})
