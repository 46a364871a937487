/** Whether a version manager that tells two histories is found out, what that costs, and what is believed when it cannot be known. */
import { describe, expect, test } from 'vitest'
import { P2pvmError } from '../../../src/protocols/errors.ts'
import { type Header, sealPublication } from '../../../src/versioning/publication-codec.ts'
import { PublicationRecords } from '../../../src/versioning/publication-records.ts'
import { SeenVersions } from '../../../src/versioning/seen-versions.ts'
import { skipOf } from '../../../src/versioning/skip-chain.ts'
import { versionName } from '../../../src/versioning/tree-names.ts'
import { FakeClock } from '../../harness/fake-clock.ts'
import { MemoryFabric } from '../../harness/memory-fabric.ts'
import { MemoryKeyValueStore, MemoryRecords } from '../../harness/memory-stores.ts'
import { KeptLog } from '../../harness/quiet.ts'
import { fabricSigner } from '../../harness/signers.ts'

const blob = 'abcdefghijklmn23'
const twoHistories = { code: 'ERR_CORRUPT', message: expect.stringContaining(`two histories of ${blob}`) }

/** A history, and another one that has its beginning. */
class Chain {
  readonly headers: Header[] = []
  readonly values: Uint8Array[] = []
  readonly #name: string

  constructor (name: string, before: Chain | undefined, shared: number, length: number) {
    this.#name = name
    for (let version = 0; version < length; version++) {
      if (before !== undefined && version < shared) {
        this.headers.push(before.headers[version]!)
        this.values.push(before.values[version]!)
      } else {
        this.#add(version)
      }
    }
  }

  #add (version: number): void {
    const skip = skipOf(version)
    const { header, value } = sealPublication({
      version: {
        blob, version, size: 0, chunkSize: 4096, fanOut: 64, root: null, parent: version === 0 ? null : { blob, version: version - 1 },
        timeMs: 0, writer: '', message: this.#name, bytesChanged: 0, attempt: 1, exceptions: 0
      },
      sizeBefore: 0,
      extents: [],
      exceptions: []
    }, {
      previous: version === 0 ? null : this.headers[version - 1]!.version.hash,
      skip: skip === undefined ? null : this.headers[skip]!.version.hash
    }, fabricSigner)
    this.headers.push(header)
    this.values.push(value)
  }
}

const one = new Chain('one', undefined, 0, 40)
/** Another one from version 10 on. */
const two = new Chain('two', one, 10, 40)

class Client {
  readonly records = new MemoryRecords()
  readonly clock = new FakeClock()
  readonly store: MemoryKeyValueStore
  readonly log = new KeptLog()
  /** Names in each request to storage peers. */
  readonly asked: number[] = []
  readonly seen: SeenVersions

  constructor (chain = one, store = new MemoryKeyValueStore()) {
    this.store = store
    for (const [version, value] of chain.values.entries()) this.records.values.set(versionName(blob, version), value)
    const { records, clock, log } = this
    const counted = {
      put: async () => {},
      get: async (...[names, options]: Parameters<MemoryRecords['get']>) => {
        this.asked.push(names.length)
        return await records.get(names, options)
      }
    }
    this.seen = new SeenVersions({ publications: new PublicationRecords({ records: counted, fabricKey: fabricSigner.publicKey }), clock, log, store })
  }

  /** What is written down is there for the next one. */
  async restarted (chain = one): Promise<Client> {
    await this.seen.flush()
    return new Client(chain, this.store.crash())
  }
}

const at = (chain: Chain, version: number): Header => chain.headers[version]!

describe('two histories', () => {
  test.each([
    ['another version of the same number', 20, 20],
    ['a newer one', 20, 35],
    ['the next one', 20, 21],
    ['one that is skipped to from another branch', 20, 24],
    ['an older one', 35, 20]
  ])('%s is found out', async (_, first, then) => {
    for (const stored of [one, two]) {
      const { seen } = new Client(stored)
      await seen.check(at(one, first))
      await expect(seen.check(at(two, then))).rejects.toMatchObject(twoHistories)
      // And nothing is learned from it.
      if (stored === one) await seen.check(at(one, 39))
    }
  })

  test('are found out by a client that was started again', async () => {
    for (const then of [15, 20, 35]) {
      const before = new Client()
      await before.seen.check(at(one, 20))
      const { seen } = await before.restarted(two)
      await expect(seen.check(at(two, then))).rejects.toMatchObject(twoHistories)
    }
  })

  test('are found out without being told to write down what was seen', async () => {
    const before = new Client()
    await before.seen.check(at(one, 20))
    await before.clock.advance(1000)
    await expect(new Client(two, before.store.crash()).seen.check(at(two, 20))).rejects.toMatchObject(twoHistories)
  })

  test('one of them from storage peers are found out', async () => {
    const { seen } = new Client(two)
    await seen.check(at(one, 20))
    await expect(seen.get({ blob, version: 30 })).rejects.toMatchObject(twoHistories)
    await expect(seen.get({ blob, version: 15 })).rejects.toMatchObject(twoHistories)
  })

  test('in a list of all versions are found out', async () => {
    const { seen } = new Client()
    await seen.check(at(one, 20))
    const mark = seen.mark()
    await expect(seen.checkHistory(two.headers, mark)).rejects.toMatchObject(twoHistories)
    await expect(seen.checkHistory([...one.headers.slice(0, 15), ...two.headers.slice(15)], mark)).rejects.toMatchObject(twoHistories)
    await seen.checkHistory(one.headers, mark)
    const stranger = new Client().seen
    await expect(stranger.checkHistory([...one.headers.slice(0, 15), ...two.headers.slice(15)], stranger.mark())).rejects.toMatchObject(twoHistories)
  })

  test('with a beginning in common are one as far as that goes', async () => {
    const { seen } = new Client()
    await seen.check(at(one, 20))
    await seen.check(at(two, 9))
    expect((await seen.get({ blob, version: 5 })).version.message).toBe('one')
  })
})

describe('a rollback', () => {
  test('is found out, also by a client that was started again', async () => {
    const before = new Client()
    await before.seen.check(at(one, 20))
    await expect(before.seen.checkLatest(at(one, 19), before.seen.mark())).rejects.toMatchObject(twoHistories)
    const { seen } = await before.restarted()
    await expect(seen.checkLatest(at(one, 19), seen.mark())).rejects.toMatchObject({ code: 'ERR_CORRUPT', message: expect.stringContaining('version 20 was seen, and now the latest is 19') })
    await expect(seen.checkHistory(one.headers.slice(0, 20), seen.mark())).rejects.toMatchObject(twoHistories)
    await seen.checkLatest(at(one, 20), seen.mark())
    await seen.checkLatest(at(one, 21), seen.mark())
  })

  test('is not what an answer shows that was asked for before something newer was seen', async () => {
    const { seen } = new Client()
    await seen.check(at(one, 20))
    const mark = seen.mark()
    await seen.check(at(one, 21))
    await seen.checkLatest(at(one, 20), mark)
    await expect(seen.checkLatest(at(one, 20), seen.mark())).rejects.toMatchObject(twoHistories)
  })

  test('is not what shows when storage peers have a record a moment before the version manager calls it published', async () => {
    const { seen } = new Client()
    await seen.check(at(one, 20))
    await seen.get({ blob, version: 21 })
    await seen.checkLatest(at(one, 20), seen.mark())
  })

  test('of the version manager\'s disk is found out by who has written', async () => {
    const fabric = new MemoryFabric()
    const client = fabric.client()
    const { blob } = await client.create({ chunkSize: 4096 })
    const old = fabric.store.crash()
    fabric.restart()
    await client.write(blob, [{ offset: 0, bytes: new Uint8Array([1]) }])
    fabric.store = old
    fabric.restart()
    await expect(client.recent(blob)).rejects.toMatchObject({ code: 'ERR_CORRUPT', message: expect.stringContaining(`two histories of ${blob}`) })
    await expect(client.log(blob)).rejects.toMatchObject({ code: 'ERR_CORRUPT' })
    // The name of the record is taken: what it assigns anew can never be published.
    await expect(client.write(blob, [{ offset: 0, bytes: new Uint8Array([2]) }])).rejects.toBeInstanceOf(P2pvmError)
  })
})

describe('what it costs', () => {
  test('nothing when nothing new is seen, or what is linked to the newest that was seen', async () => {
    const { seen, asked } = new Client()
    for (const version of [8, 8, 9, 10, 11, 12, 11]) await seen.check(at(one, version))
    await seen.checkLatest(at(one, 12), seen.mark())
    expect(asked).toEqual([])
    await seen.check(at(one, 24)) // by way of 16, 15 and 14
    expect(asked).toEqual([3])
    await seen.check(at(one, 16))
    await seen.get({ blob, version: 24 })
    expect(asked).toEqual([3])
    const skipping = new Client()
    for (const version of [16, 24, 28]) await skipping.seen.check(at(one, version))
    expect(skipping.asked).toEqual([])
  })

  test('a list of all versions needs no storage peer', async () => {
    const { seen, asked } = new Client()
    await seen.check(at(one, 3))
    await seen.checkHistory(one.headers, seen.mark())
    expect(asked).toEqual([])
  })

  test('of 10,000 versions the first is proven by some dozens of records, in one batch that is asked for together with it', async () => {
    const long = new Chain('long', undefined, 0, 10_001)
    const { seen, asked } = new Client(long)
    await seen.check(at(long, 10_000))
    expect((await seen.get({ blob, version: 1 })).version.version).toBe(1)
    expect(asked.length).toBe(2)
    expect(Math.min(...asked)).toBe(1)
    expect(Math.max(...asked)).toBeLessThan(100)
    const forked = new Client(new Chain('forked', long, 1, 10_001))
    await forked.seen.check(at(long, 10_000))
    await expect(forked.seen.get({ blob, version: 1 })).rejects.toMatchObject(twoHistories)
  })
})

test('what cannot be fetched proves nothing: it is gone on with, and not learned from', async () => {
  const { seen, records, log } = new Client()
  await seen.check(at(one, 8))
  records.down = true
  await seen.check(at(two, 30))
  await seen.check(at(one, 39))
  expect(log.lines.map(({ level }) => level)).toEqual(['warn', 'warn'])
  records.down = false
  await expect(seen.check(at(two, 30))).rejects.toMatchObject(twoHistories)
  await seen.check(at(one, 39))
  await expect(seen.check(at(two, 39))).rejects.toMatchObject(twoHistories)
})

test('of two that are shown at once, and do not belong together, one is found out', async () => {
  const { seen } = new Client()
  await seen.check(at(one, 8))
  const nine = at(new Chain('nine', one, 9, 10), 9)
  const both = await Promise.allSettled([seen.check(at(one, 9)), seen.check(nine)])
  expect(both.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected'])
})
