/** How a change reaches the workers: with workers that are driven by the test, and the real epoch. */
import type * as threads from 'node:worker_threads'
import { beforeEach, describe, expect, it, vi } from 'vitest'
import type { FileViewInit } from '../../../src/mirror/file-view.ts'
import { EpochPassenger } from '../../../src/mirror/fuse/epoch.ts'
import type { Handlers } from '../../../src/mirror/fuse/handlers.ts'
import { FuseServer } from '../../../src/mirror/fuse/server.ts'
import type { ToWorker, WorkerInit } from '../../../src/mirror/fuse/worker.ts'
import { nodeClock as clock } from '../../../src/node/world.ts'

interface DrivenWorker {
  readonly passenger: EpochPassenger
  readonly received: ToWorker[]
  /** Of the shared state at the time of each message. */
  readonly epochs: number[]
  tell (message: unknown): void
}

const workers = vi.hoisted((): DrivenWorker[] => [])

vi.mock('node:worker_threads', async (original) => {
  const real = await original<typeof threads>()
  class Worker {
    readonly #driven: DrivenWorker
    readonly #cells: Int32Array

    constructor (_url: URL, { workerData: { epoch, worker } }: { workerData: WorkerInit }) {
      const onMessages: Array<(message: unknown) => void> = []
      const passenger = new EpochPassenger(epoch, worker)
      this.#cells = new Int32Array(epoch)
      this.#driven = { passenger, received: [], epochs: [], tell: (message) => { for (const take of onMessages) take(message) } }
      this.on = (event, take) => { if (event === 'message') onMessages.push(take) }
      workers.push(this.#driven)
    }

    readonly on: (event: string, take: (message: unknown) => void) => void

    postMessage (message: ToWorker): void {
      this.#driven.received.push(message)
      this.#driven.epochs.push(this.#cells[0]!)
    }
  }
  return { ...real, Worker }
})

const view = { fh: 3 } as unknown as FileViewInit
let server: FuseServer
let written: number[]

beforeEach(() => {
  workers.length = 0
  server = new FuseServer({ deviceFd: -1, workers: 2 }, { clock, log: { debug () {}, info () {}, warn () {}, error () {} } })
  written = []
  server.start({ written: (fh: number) => { written.push(fh) } } as Handlers)
})

async function turn (): Promise<void> {
  await new Promise((resolve) => { setImmediate(resolve) })
}

describe('a change of a file', () => {
  it.each([
    ['published', async () => { await server.publish(view) }, { kind: 'view', view }],
    ['withdrawn', async () => { await server.withdraw(3) }, { kind: 'close', fh: 3 }]
  ] as const)('that is %s waits for each worker that has a request in hand', async (_, change, message) => {
    const [first, second] = workers as [DrivenWorker, DrivenWorker]
    first.passenger.enter()
    second.passenger.enter()
    let done = false
    const changing = change().then(() => { done = true })
    expect([first.received, second.received]).toEqual([[message], [message]])
    await turn()
    expect(done).toBe(false)
    expect(first.passenger.leave(), 'the main thread wants to hear of it').toBe(true)
    first.tell({ kind: 'passed' })
    await turn()
    expect(done).toBe(false)
    expect(second.passenger.leave()).toBe(true)
    second.tell({ kind: 'passed' })
    await changing
  })

  it('does not wait for workers that have none, and is there for whoever enters next', async () => {
    await server.publish(view)
    for (const { passenger, received, epochs } of workers) {
      expect(epochs, 'the message comes before the epoch').toEqual([1])
      expect(passenger.enter(), 'messages are to be drained').toBe(true)
      expect(received).toEqual([{ kind: 'view', view }])
    }
  })
})

it('a file that a worker has written much to is brought to the disk meanwhile', () => {
  workers[1]!.tell({ kind: 'written', fh: 3 })
  expect(written).toEqual([3])
})
