/**
 * Many small questions to one peer become few requests: what is asked in one turn of the event loop, or while earlier
 * requests to that peer are under way, travels together. State it owns: per peer, what waits and how many requests run.
 * Not for: deadlines and failures, which are `send`'s.
 */
import assert from 'node:assert/strict'
import type { PeerId } from '../protocols/transport.ts'

export interface PeerBatcherInit<Item, Result> {
  /** One request; its results in the order of the items. */
  readonly send: (peer: PeerId, items: Item[]) => Promise<Result[]>
  readonly itemsMax: number
  /** Requests to one peer at a time. */
  readonly atOnce: number
  /** With `bytesOf`: a batch is closed before it exceeds this; one item always fits. */
  readonly bytesMax?: number
  readonly bytesOf?: (item: Item) => number
}

interface Question<Item, Result> {
  readonly item: Item
  readonly answer: PromiseWithResolvers<Result>
}

interface Line<Item, Result> {
  waiting: Array<Question<Item, Result>>
  running: number
}

export class PeerBatcher<Item, Result> {
  readonly #init: PeerBatcherInit<Item, Result>
  readonly #lines = new Map<PeerId, Line<Item, Result>>()

  constructor (init: PeerBatcherInit<Item, Result>) {
    this.#init = init
  }

  /** Ends when its batch does. Who gives up does not wait for it: the batch goes on for the others. */
  ask (peer: PeerId, item: Item): Promise<Result> {
    let line = this.#lines.get(peer)
    if (line === undefined) this.#lines.set(peer, line = { waiting: [], running: 0 })
    const answer = Promise.withResolvers<Result>()
    line.waiting.push({ item, answer })
    // The first one waits for the rest of this turn's; later ones find it scheduled, or a request under way that will look again.
    if (line.waiting.length === 1) queueMicrotask(() => { this.#sendNext(peer, line) })
    return answer.promise
  }

  #sendNext (peer: PeerId, line: Line<Item, Result>): void {
    while (line.waiting.length > 0 && line.running < this.#init.atOnce) void this.#send(peer, line, this.#take(line))
    if (line.waiting.length === 0 && line.running === 0 && this.#lines.get(peer) === line) this.#lines.delete(peer)
  }

  async #send (peer: PeerId, line: Line<Item, Result>, batch: Array<Question<Item, Result>>): Promise<void> {
    line.running += 1
    try {
      const results = await this.#init.send(peer, batch.map(({ item }) => item))
      assert.equal(results.length, batch.length, 'one result per item')
      batch.forEach(({ answer }, index) => { answer.resolve(results[index] as Result) })
    } catch (error) {
      // Those who wait behind it too: a peer that hangs must cost them one deadline, not one per batch.
      for (const { answer } of [...batch, ...line.waiting.splice(0)]) answer.reject(error)
    } finally {
      line.running -= 1
      this.#sendNext(peer, line)
    }
  }

  #take (line: Line<Item, Result>): Array<Question<Item, Result>> {
    const { itemsMax, bytesMax = Infinity, bytesOf = () => 0 } = this.#init
    let count = 0
    for (let bytes = 0; count < Math.min(line.waiting.length, itemsMax); count++) {
      bytes += bytesOf((line.waiting[count] as Question<Item, Result>).item)
      if (count > 0 && bytes > bytesMax) break
    }
    return line.waiting.splice(0, count)
  }
}
