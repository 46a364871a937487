/** Who is in the fabric: one address is enough to know everyone, silence is noticed, and a restart forgets nothing. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join, resolve } from 'node:path'
import { text } from 'node:stream/consumers'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Status } from '../../src/node/control-api.ts'
import { LiveFabric, sees, succeed } from '../harness/live-fabric.ts'

const PROGRAM = resolve(import.meta.dirname, '..', '..', 'bin', 'p2pvm')
const EXIT_CONFLICT = 11
const EXIT_NOT_ALLOWED = 12
/** "Within seconds". */
const KNOWS_ALL_MS = 10_000
/** DOWN_AFTER_MS, and a round of questions before and after. */
const NOTICES_MS = 25_000
const STOPS_MS = 5_000

describe('membership', () => {
  let live: LiveFabric

  beforeAll(async () => { live = await LiveFabric.start({ storage: 4, compute: 1 }) })
  afterAll(async () => { await live?.close() })

  const everyone = (): string[] => live.fabric.storage.map(({ peerId }) => peerId)

  it('a peer that is told one address knows all storage members within seconds', async () => {
    const late = live.peer('late', ['compute'], live.storage(2).addresses.slice(0, 1))
    await late.start()
    console.log(`knows everyone ${(await sees(late, everyone(), 'up', KNOWS_ALL_MS)).toFixed(0)} ms after it is ready`)
    await late.stop()
  })

  it('prints one line when it is ready, and stops cleanly within five seconds of SIGTERM', async () => {
    const control = join(live.folder, 'ready.sock')
    const daemon = spawn(PROGRAM, [
      'daemon', '--data', join(live.folder, 'ready'), '--control', control, '--role', 'storage',
      '--listen', '/ip4/127.0.0.1/tcp/0', '--bootstrap', live.storage(0).addresses[0]!
    ], { stdio: ['ignore', 'pipe', 'ignore'] })
    try {
      const printed = text(daemon.stdout)
      await once(daemon.stdout, 'data')
      const startedMs = performance.now()
      daemon.kill('SIGTERM')
      const [code] = await once(daemon, 'exit')
      expect(code).toBe(0)
      expect(performance.now() - startedMs).toBeLessThan(STOPS_MS)
      const lines = (await printed).split('\n')
      expect(lines).toHaveLength(2)
      expect(lines[1]).toBe('')
      const ready = JSON.parse(lines[0]!) as Record<string, unknown>
      expect(ready).toEqual({ peerId: expect.stringMatching(/^12D3Koo/), addresses: [expect.stringMatching(/^\/ip4\/127\.0\.0\.1\/tcp\/\d+/)], control })
    } finally {
      daemon.kill('SIGKILL')
    }
  })

  it('refuses a second daemon on the same data directory, and names the first', async () => {
    const first = live.storage(1)
    const second = spawn(PROGRAM, ['daemon', '--json', '--data', first.data, '--control', join(live.folder, 'second.sock'), '--listen', '/ip4/127.0.0.1/tcp/0'], { stdio: ['ignore', 'pipe', 'ignore'] })
    const [printed, [code]] = await Promise.all([text(second.stdout), once(second, 'exit')])
    expect(code).toBe(EXIT_CONFLICT)
    const { error } = JSON.parse(printed) as { error: { code: string, message: string } }
    expect(error.code).toBe('ERR_CONFLICT')
    expect(error.message).toContain(first.peerId)
    expect(error.message).toContain(String(first.pid))
    await live.whole()
  })

  it('notices a peer that was killed, and knows it again when it is back', async () => {
    const victim = live.storage(3)
    const { peerId } = victim
    await victim.kill('SIGKILL')
    const noticed = await Promise.all([live.storage(0), live.storage(1), live.compute(0)].map(async (peer) => await sees(peer, [peerId], 'down', NOTICES_MS)))
    console.log(`shown down after ${noticed.map((ms) => (ms / 1000).toFixed(1)).join(', ')} s`)
    await victim.restart()
    expect(victim.peerId).toBe(peerId)
    await live.whole()
  })

  it('remembers the fabric: a peer comes back while its bootstrap peer is gone', async () => {
    const bootstrap = live.storage(3)
    const returning = live.peer('returning', ['storage'], bootstrap.addresses.slice(0, 1))
    await returning.start()
    const { peerId } = returning
    await sees(returning, everyone(), 'up')
    await returning.kill('SIGTERM')
    await bootstrap.kill('SIGKILL')
    try {
      await returning.start()
      expect(returning.peerId).toBe(peerId)
      await sees(returning, everyone().filter((id) => id !== bootstrap.peerId), 'up', KNOWS_ALL_MS)
      await sees(live.compute(0), [peerId], 'up')
      await sees(returning, [bootstrap.peerId], 'down', NOTICES_MS)
    } finally {
      await bootstrap.restart()
    }
    await sees(returning, [bootstrap.peerId], 'up')
  })

  it('refuses a peer of another fabric', async () => {
    const foreign = live.peer('foreign', ['storage', 'versions'], [])
    await foreign.start()
    const fabrics = await Promise.all([foreign, live.storage(0)].map(async (peer) => (await succeed<Status>(peer, 'status')).fabric))
    await foreign.kill('SIGTERM')
    const intruder = spawn(PROGRAM, [
      'daemon', '--json', '--data', foreign.data, '--control', foreign.control, '--role', 'storage',
      '--listen', '/ip4/127.0.0.1/tcp/0', '--bootstrap', live.storage(0).addresses[0]!
    ], { stdio: ['ignore', 'pipe', 'ignore'] })
    try {
      const [printed, [code]] = await Promise.all([text(intruder.stdout), once(intruder, 'exit')])
      expect(code).toBe(EXIT_NOT_ALLOWED)
      for (const fabric of fabrics) expect(printed).toContain(fabric)
    } finally {
      intruder.kill('SIGKILL')
    }
  })
})
