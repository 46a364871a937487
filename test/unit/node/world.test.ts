import { describe, expect, it } from 'vitest'
import { createCounters, createLog, nodeClock } from '../../../src/node/world.ts'
import { P2pvmError } from '../../../src/protocols/errors.ts'

function aborted (signal: AbortSignal): Promise<unknown> {
  return new Promise((resolve) => { signal.addEventListener('abort', () => { resolve(signal.reason) }, { once: true }) })
}

/** The clock's own timers do not keep the process alive; while a test waits, something must. */
async function alive<T> (promise: Promise<T>): Promise<T> {
  const timer = setInterval(() => {}, 1000)
  try {
    return await promise
  } finally {
    clearInterval(timer)
  }
}

describe('clock', () => {
  it('ends a deadline with ERR_TIMEOUT', async () => {
    const deadline = nodeClock.deadline(1)
    expect(await alive(aborted(deadline.signal))).toMatchObject({ code: 'ERR_TIMEOUT' })
  })

  it('ends a deadline with the signal that it follows, keeping its reason', async () => {
    const caller = new AbortController()
    const deadline = nodeClock.deadline(60_000, undefined, caller.signal)
    const reason = aborted(deadline.signal)
    caller.abort('given up')
    expect(await reason).toBe('given up')
    expect(nodeClock.deadline(60_000, caller.signal).signal.aborted).toBe(true)
  })

  it('does not end a deadline that was disposed of', () => {
    const caller = new AbortController()
    const deadline = nodeClock.deadline(60_000, caller.signal)
    deadline[Symbol.dispose]()
    caller.abort()
    expect(deadline.signal.aborted).toBe(false)
  })

  it('takes deadlines that are longer than a timer can be', async () => {
    const deadline = nodeClock.deadline(2 ** 40)
    await alive(nodeClock.sleep(5))
    expect(deadline.signal.aborted).toBe(false)
    deadline[Symbol.dispose]()
  })

  it('sleeps, and is woken by a signal', async () => {
    const start = nodeClock.monotonic()
    await alive(nodeClock.sleep(5))
    expect(nodeClock.monotonic() - start).toBeGreaterThanOrEqual(4)
    const caller = new AbortController()
    const sleep = nodeClock.sleep(60_000, caller.signal)
    caller.abort(new Error('woken'))
    await expect(sleep).rejects.toThrow('woken')
    await expect(nodeClock.sleep(60_000, AbortSignal.abort(new Error('before')))).rejects.toThrow('before')
  })
})

describe('log', () => {
  function lines (work: (log: ReturnType<typeof createLog>) => void, level: 'debug' | 'warn' = 'debug'): string[] {
    const written: string[] = []
    work(createLog({ level, stream: { write: (line) => written.push(line) } }))
    return written
  }

  it('writes one readable line per event', () => {
    expect(lines((log) => { log.warn('chunk is bad', { peer: '12D3', count: 3, gone: undefined, path: 'a b', list: [1, 'x'] }) })).toEqual([
      expect.stringMatching(/^\d{4}-\d\d-\d\dT[\d:.]+Z warn {2}chunk is bad peer=12D3 count=3 path="a b" list=\[1,"x"\]\n$/)
    ])
  })

  it('says nothing below its level', () => {
    expect(lines((log) => {
      log.debug('no')
      log.info('no')
      log.error('yes')
    }, 'warn')).toHaveLength(1)
  })

  it('lets nobody forge a line', () => {
    const [line = ''] = lines((log) => { log.info('a\nb', { text: 'c\n2025 error d', error: new P2pvmError('ERR_MISSING', 'x\ny') }) })
    expect(line.trimEnd()).not.toContain('\n')
    expect(line).toContain('error="ERR_MISSING: x\\ny"')
  })
})

describe('counters', () => {
  it('sum over the labels that match', () => {
    const counters = createCounters()
    counters.add('chunk_corrupt_total', 1, { peer: 'a', kind: 'get' })
    counters.add('chunk_corrupt_total', 2, { peer: 'b', kind: 'get' })
    counters.add('chunk_corrupt_total')
    expect(counters.value('chunk_corrupt_total')).toBe(4)
    expect(counters.value('chunk_corrupt_total', { peer: 'b' })).toBe(2)
    expect(counters.value('chunk_corrupt_total', { kind: 'get' })).toBe(3)
    expect(counters.value('never_total')).toBe(0)
    expect(counters.totals()).toEqual({ chunk_corrupt_total: 4 })
  })

  it('render as Prometheus text', () => {
    const counters = createCounters()
    counters.add('b_total', 1.5, { reason: 'a "quote"\n\\', peer: 'x' })
    counters.add('a_total')
    counters.add('b_total', 1)
    expect(counters.render()).toBe('# TYPE a_total counter\na_total 1\n# TYPE b_total counter\nb_total 1\nb_total{peer="x",reason="a \\"quote\\"\\n\\\\"} 1.5\n')
  })
})
