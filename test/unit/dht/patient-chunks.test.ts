import { expect, test } from 'vitest'
import type { ChunkOptions, Chunks } from '../../../src/dht/chunks.ts'
import { PatientChunks } from '../../../src/dht/patient-chunks.ts'
import { untilAborted } from '../../../src/protocols/abort.ts'
import { chunkIdOf } from '../../../src/protocols/cid.ts'
import { type ErrorCode, P2pvmError } from '../../../src/protocols/errors.ts'
import { FakeClock } from '../../harness/fake-clock.ts'

const bytes = new Uint8Array(Buffer.from('chunk'))
const id = chunkIdOf(bytes)

/** Chunks that end with this error until the clock says so; then all is well. */
function chunksThat (fail: ErrorCode, untilMs: number): { clock: FakeClock, chunks: PatientChunks, attempts: () => number } {
  const clock = new FakeClock()
  let attempts = 0
  const answer = async <T> (value: T): Promise<T> => {
    attempts += 1
    if (clock.monotonic() < untilMs) throw new P2pvmError(fail, 'not now')
    return value
  }
  const below: Chunks = {
    put: async () => await answer({ isNew: true, storedBytes: 5, replicas: 3, settled: Promise.resolve({ replicas: 3, wanted: 3, sentBytes: 15 }) }),
    get: async () => await answer(bytes),
    audit: async () => await answer([])
  }
  return { clock, chunks: new PatientChunks({ chunks: below, clock, random: { bytes: (count) => new Uint8Array(count), unit: () => 0.5 } }), attempts: () => attempts }
}

test('a fabric that is away for some seconds fails neither a put nor a get', async () => {
  const { clock, chunks, attempts } = chunksThat('ERR_UNAVAILABLE', 8_000)
  const all = Promise.all([chunks.put(id, bytes), chunks.get(id)])
  await clock.advance(10_000)
  expect(await all).toEqual([expect.objectContaining({ isNew: true }), bytes])
  expect(attempts()).toBeLessThan(40)
  expect(clock.pending).toBe(0)
})

test('one that stays away is ERR_UNAVAILABLE with what was wrong, a get within half a minute', async () => {
  const { clock, chunks } = chunksThat('ERR_UNAVAILABLE', Infinity)
  const get = expect(chunks.get(id)).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE', message: 'not now' })
  const put = expect(chunks.put(id, bytes)).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE', message: 'not now' })
  await clock.advance(30_000)
  await get
  await clock.advance(30_000)
  await put
})

test.each(['ERR_MISSING', 'ERR_CORRUPT', 'ERR_DISK_FULL'] as const)('%s is an answer: nobody is asked twice', async (code) => {
  const { chunks, attempts } = chunksThat(code, Infinity)
  await expect(chunks.get(id)).rejects.toMatchObject({ code })
  await expect(chunks.put(id, bytes)).rejects.toMatchObject({ code })
  expect(attempts()).toBe(2)
})

test('an audit asks once, and a caller may give up', async () => {
  const { clock, chunks, attempts } = chunksThat('ERR_UNAVAILABLE', Infinity)
  await expect(chunks.audit([id])).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
  expect(attempts()).toBe(1)
  const caller = new AbortController()
  const get = expect(chunks.get(id, { signal: caller.signal })).rejects.toMatchObject({ code: 'ERR_ABORTED' })
  await clock.advance(1_000)
  caller.abort()
  await get
})

test('a priority reaches those below, and their signal follows the caller\'s', async () => {
  const clock = new FakeClock()
  const seen: ChunkOptions[] = []
  const below = { get: async (_id: string, options: ChunkOptions) => {
    seen.push(options)
    return await untilAborted(new Promise<never>(() => {}), options.signal as AbortSignal)
  } } as unknown as Chunks
  const caller = new AbortController()
  const get = new PatientChunks({ chunks: below, clock, random: { bytes: (count) => new Uint8Array(count), unit: () => 0.5 } })
    .get(id, { priority: 'prefetch', signal: caller.signal })
  caller.abort()
  await expect(get).rejects.toMatchObject({ code: 'ERR_ABORTED' })
  expect(seen).toMatchObject([{ priority: 'prefetch' }])
})
