/** Which FUSE server runs when, with servers that are the test's. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Keeper, type ServerProcess } from '../../../src/mirror/fuse/keeper.ts'
import { FakeClock, settle } from '../../harness/fake-clock.ts'
import { KeptLog } from '../../harness/quiet.ts'

class FakeServer implements ServerProcess {
  readonly pid: number
  readonly successor: boolean
  readonly #loaded = Promise.withResolvers<string>()
  readonly #ready = Promise.withResolvers<{ resend: boolean }>()
  readonly #ended = Promise.withResolvers<boolean>()
  readonly loaded = this.#loaded.promise
  readonly ended = this.#ended.promise
  /** What its keeper has told it. */
  readonly told: string[] = []
  over = false

  constructor (pid: number, successor: boolean) {
    this.pid = pid
    this.successor = successor
    for (const promise of [this.loaded, this.#ready.promise]) promise.catch(() => {})
  }

  async go (): Promise<{ resend: boolean }> {
    this.told.push('go')
    return await this.#ready.promise
  }

  unmount (): void { this.told.push('unmount') }

  kill (): void {
    if (this.over) return
    this.told.push('kill')
    this.end(false)
  }

  end (inOrder: boolean): void {
    this.over = true
    this.#loaded.reject(new Error(`server ${this.pid} has ended`))
    this.#ready.reject(new Error(`server ${this.pid} has ended`))
    this.#ended.resolve(inOrder)
  }

  load (version = 'v1'): void { this.#loaded.resolve(version) }

  async serve (version = 'v1', resend = true): Promise<void> {
    this.load(version)
    await settle()
    this.#ready.resolve({ resend })
    await settle()
  }
}

let clock: FakeClock
let servers: FakeServer[]
let aborted: number
let keeper: Keeper
let outcome: Promise<unknown>
let ready: number

const running = (): number[] => servers.filter(({ over }) => !over).map(({ pid }) => pid)
const server = (index: number): FakeServer => servers[index]!

beforeEach(() => {
  clock = new FakeClock()
  servers = []
  aborted = 0
  ready = 0
  keeper = new Keeper({
    startServer: (successor) => {
      const started = new FakeServer(servers.length, successor)
      servers.push(started)
      return started
    },
    abort: () => { aborted++ },
    clock,
    log: new KeptLog()
  }, { crashesMax: 3 })
  outcome = keeper.run(async () => { ready++ }).then(() => 'in order', (error: unknown) => error)
})

afterEach(() => { expect(running(), 'servers left over').toEqual([]) })

describe('a keeper', () => {
  it('has another server take over when one dies, and ends with one that ends in order', async () => {
    await server(0).serve()
    expect([ready, server(0).successor]).toEqual([1, false])
    server(0).end(false)
    await settle()
    expect([server(1).successor, server(1).told]).toEqual([true, []]) // loading
    await server(1).serve('v2')
    expect(server(1).told).toEqual(['go'])
    expect(keeper.status()).toEqual({ server: 1, version: 'v2', restarts: 1 })
    server(1).end(true)
    expect(await outcome).toBe('in order')
    expect([ready, aborted]).toEqual([1, 0])
  })

  it('gives up when the first one cannot serve', async () => {
    server(0).end(false)
    expect(await outcome).toMatchObject({ message: 'server 0 has ended' })
    expect([ready, aborted, servers.length]).toEqual([0, 1, 1])
  })

  it('gives up when the kernel keeps no requests', async () => {
    await server(0).serve('v1', false)
    server(0).end(false)
    expect(await outcome).toMatchObject({ code: 'ERR_INTERNAL', message: expect.stringContaining('Linux 6.9') as string })
    expect([aborted, servers.length]).toEqual([1, 1])
  })

  it('gives up when they die too often, and not when they die now and then', async () => {
    await server(0).serve()
    for (let died = 0; died < 6; died++) {
      server(died).end(false)
      await settle()
      await server(died + 1).serve()
      await clock.advance(25_000)
    }
    for (let died = 6; servers.length === died + 1; died++) {
      server(died).end(false)
      await settle()
      await servers[died + 1]?.serve()
    }
    expect(await outcome).toMatchObject({ message: expect.stringContaining('died 4 times') as string })
    expect([servers.length, aborted]).toEqual([8, 1])
  })

  it.each(['load', 'serve'] as const)('kills one that does not %s in time, and has another one take over when it is gone', async (step) => {
    await server(0).serve()
    server(0).end(false)
    await settle()
    if (step === 'serve') server(1).load()
    await clock.advance(30_000)
    expect(server(1).told.at(-1)).toBe('kill')
    await server(2).serve()
    expect(keeper.status().server).toBe(2)
    server(2).end(true)
    expect(await outcome).toBe('in order')
  })

  it('unmounts when it is asked to, also while there is no server, and aborts when that takes too long', async () => {
    await server(0).serve()
    server(0).end(false)
    await settle()
    keeper.stop()
    await server(1).serve()
    expect(server(1).told.at(-1)).toBe('unmount')
    expect(aborted).toBe(0)
    await clock.advance(60_000)
    expect(await outcome).toBe('in order')
    expect([server(1).told.at(-1), aborted]).toEqual(['kill', 1])
  })
})

describe('an upgrade', () => {
  const upgrade = (): Promise<unknown> => keeper.upgrade().catch((error: unknown) => error)

  it('lets the new one load first, then kills the old one, and does not count as a death', async () => {
    await server(0).serve()
    for (let round = 0; round < 5; round++) {
      const upgraded = upgrade()
      await settle()
      expect(running()).toEqual([round, round + 1])
      expect(await upgrade()).toMatchObject({ code: 'ERR_CONFLICT' })
      server(round + 1).load(`v${round + 2}`)
      await settle()
      expect([server(round).told.at(-1), server(round + 1).told]).toEqual(['kill', ['go']])
      await server(round + 1).serve()
      expect(await upgraded).toEqual({ before: `v${round + 1}`, after: `v${round + 2}` })
    }
    server(5).end(true)
    expect(await outcome).toBe('in order')
  })

  it('leaves the old one alone when the new one does not load', async () => {
    await server(0).serve()
    const broken = upgrade()
    await settle()
    server(1).end(false)
    expect(await broken).toMatchObject({ message: expect.stringContaining('goes on') as string })
    const hung = upgrade()
    await clock.advance(30_000)
    expect(await hung).toMatchObject({ message: expect.stringContaining('goes on') as string })
    expect(running()).toEqual([0])
    expect(server(0).told).toEqual(['go'])
    server(0).end(true)
    expect(await outcome).toBe('in order')
  })

  it('that fails when it takes over says so, and the mount goes on with what starts next', async () => {
    await server(0).serve()
    const upgraded = upgrade()
    await settle()
    server(1).load()
    await settle()
    server(1).end(false)
    expect(await upgraded).toMatchObject({ message: expect.stringContaining('could not take over') as string })
    await settle()
    await server(2).serve()
    expect(keeper.status().server).toBe(2)
    server(2).end(true)
    expect(await outcome).toBe('in order')
  })

  it('is over when the mount ends first', async () => {
    await server(0).serve()
    const upgraded = upgrade()
    await settle()
    server(0).end(true)
    expect(await outcome).toBe('in order')
    expect(await upgraded).toBeInstanceOf(Error)
  })
})
