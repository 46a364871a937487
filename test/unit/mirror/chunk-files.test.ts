import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, unlinkSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { chunkPath } from '../../../src/dht/chunk-path.ts'
import { USE_GRANULARITY_MS } from '../../../src/dht/chunk-store.ts'
import { ChunkFiles } from '../../../src/mirror/chunk-files.ts'
import { FileView, SLOT_UNKNOWN } from '../../../src/mirror/file-view.ts'
import { LEAF_CHUNKS } from '../../../src/mirror/leaf-store.ts'
import type { VersionRef } from '../../../src/mirror/source.ts'
import { VersionTable } from '../../../src/mirror/version-table.ts'
import { VersionTables } from '../../../src/mirror/version-tables.ts'
import { nodeClock as clock } from '../../../src/node/world.ts'
import { type ChunkId, chunkIdOf } from '../../../src/protocols/cid.ts'
import { P2pvmError } from '../../../src/protocols/errors.ts'
import { FakeClock } from '../../harness/fake-clock.ts'

const CHUNK = 4096
const COUNT = 150
const quiet = { debug () {}, info () {}, warn () {}, error () {} }

describe('chunk files', () => {
  let folder: string
  let image: Buffer
  let ids: Array<ChunkId | null>
  let questions: Array<[number, number]>
  let fetches: ChunkId[][]
  let fetch: (chunks: readonly ChunkId[]) => Promise<unknown>
  /** Of those fetched, what the daemon says it has verified as it wrote it. */
  let verified: ChunkId[]
  let quiesced: number
  const signal = new AbortController().signal
  const ref: VersionRef = { blob: 'abcdefghijklmnop', version: 1, size: COUNT * CHUNK, chunkSize: CHUNK }

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'p2pvm-chunks-'))
    image = randomBytes(COUNT * CHUNK)
    image.fill(0, 5 * CHUNK, 6 * CHUNK)
    image.copy(image, 20 * CHUNK, 19 * CHUNK, 20 * CHUNK) // one chunk in two places
    ids = Array.from({ length: COUNT }, (_, index) => index === 5 ? null : chunkIdOf(image.subarray(index * CHUNK, (index + 1) * CHUNK)))
    questions = []
    fetches = []
    verified = []
    quiesced = 0
    fetch = async (chunks) => { for (const id of chunks) put(id) }
  })

  afterEach(() => { rmSync(folder, { recursive: true }) })

  const put = (id: ChunkId, bytes = chunkOf(id)): void => {
    const path = chunkPath(folder, id)
    mkdirSync(dirname(path), { recursive: true })
    writeFileSync(path, bytes)
  }

  const chunkOf = (id: ChunkId): Buffer => image.subarray(ids.indexOf(id) * CHUNK, (ids.indexOf(id) + 1) * CHUNK)

  const source = {
    chunkIds: async (_version: VersionRef, first: number, count: number) => {
      questions.push([first, count])
      return ids.slice(first, first + count)
    },
    fetch: async (chunks: readonly ChunkId[]) => {
      fetches.push([...chunks])
      await fetch(chunks)
      return verified
    }
  }

  const makeFiles = (openMax = 1000, missDeadlineMs = 5000): ChunkFiles =>
    new ChunkFiles({ source, clock, log: quiet, quiesce: async () => { quiesced++ }, signal }, { folder, openMax, missDeadlineMs })

  const makeTable = (): VersionTable => new VersionTable(1, ref, { source, clock, folder: join(folder, 'leaves') })

  const read = (table: VersionTable, from: number, to: number): Buffer | undefined => {
    const bytes = Buffer.alloc(to - from, 0xee)
    return new FileView({ fh: 1, size: ref.size, base: table.view, routeWrites: true }).readInto(bytes, 0, from, to) ? bytes : undefined
  }

  const range = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, index) => from + index)

  it('are opened, checked and read from then on; those of one miss are one fetch', async () => {
    const files = makeFiles()
    const table = makeTable()
    expect(read(table, 0, 3 * CHUNK)).toBeUndefined()
    await files.ensure(table, [0, 1, 2], signal)
    expect(read(table, 100, 3 * CHUNK - 100)?.equals(image.subarray(100, 3 * CHUNK - 100))).toBe(true)
    expect(fetches).toEqual([[ids[0], ids[1], ids[2]]])
    expect(questions).toEqual([[0, LEAF_CHUNKS]])
    await files.ensure(table, [19, 20], signal)
    expect(fetches[1]).toEqual([ids[19]])
    expect(read(table, 19 * CHUNK, 21 * CHUNK)?.equals(image.subarray(19 * CHUNK, 21 * CHUNK))).toBe(true)
    expect(read(table, 5 * CHUNK, 6 * CHUNK)?.every((byte) => byte === 0)).toBe(true) // a hole, known with its leaf
  })

  it('are fetched once for all who miss them at the same time', async () => {
    const files = makeFiles()
    const table = makeTable()
    await Promise.all(range(0, 20).map(async () => { await files.ensure(table, [7, 8], signal) }))
    expect(fetches).toEqual([[ids[7], ids[8]]])
    expect(questions).toHaveLength(1)
  })

  it('of many that are missed at once are there a mebibyte at a time, the first before the last', async () => {
    const chunkSize = 256 * 1024
    const table = new VersionTable(2, { ...ref, size: COUNT * chunkSize, chunkSize }, { source, clock, folder: join(folder, 'leaves') })
    const last = Promise.withResolvers<void>()
    fetch = async (chunks) => {
      if (chunks.includes(ids[15]!)) await last.promise
      for (const id of chunks) put(id)
    }
    const files = makeFiles()
    const indices = range(6, 16)
    const ensured = files.ensure(table, indices, signal)
    await files.ensure(table, indices.slice(0, 8), signal)
    expect(fetches).toEqual([ids.slice(6, 10), ids.slice(10, 14), ids.slice(14, 16)])
    expect(indices.map((index) => table.slots[index] !== SLOT_UNKNOWN)).toEqual(indices.map((index) => index < 14))
    last.resolve()
    await ensured
    expect(indices.some((index) => table.slots[index] === SLOT_UNKNOWN)).toBe(false)
    expect(files.counters.fetched).toBe(10)
  })

  it('that the daemon has verified as it wrote them are not read for it, and others are', async () => {
    const files = makeFiles()
    const table = makeTable()
    fetch = async (chunks) => { for (const id of chunks) put(id, Buffer.alloc(CHUNK, 7)) } // so that it shows who looked
    verified = [ids[0]!]
    await files.ensure(table, [0], signal)
    expect(read(table, 0, CHUNK)?.every((byte) => byte === 7)).toBe(true)
    await expect(files.ensure(table, [1], signal)).rejects.toMatchObject({ code: 'ERR_CORRUPT' })
    // What was there when the mount came is its own to look at, whatever the daemon has said before.
    const later = makeFiles()
    fetch = async (chunks) => { for (const id of chunks) put(id) }
    await later.ensure(makeTable(), [0], signal)
    expect(later.counters).toMatchObject({ corrupt: 1, opened: 1 })
  })

  it('that do not match their name are dropped and fetched again, and given up in the end', async () => {
    const files = makeFiles()
    const table = makeTable()
    put(ids[0] ?? '', Buffer.alloc(CHUNK, 1))
    await files.ensure(table, [0], signal)
    expect(read(table, 0, CHUNK)?.equals(image.subarray(0, CHUNK))).toBe(true)
    expect(files.counters).toMatchObject({ corrupt: 1, fetched: 1 })
    fetch = async (chunks) => { for (const id of chunks) put(id, Buffer.alloc(CHUNK, 2)) }
    await expect(files.ensure(table, [1], signal)).rejects.toMatchObject({ code: 'ERR_CORRUPT' })
    expect(read(table, CHUNK, 2 * CHUNK)).toBeUndefined()
  })

  it('are bounded: the least recently used go, after a quiesce, and come back when they are needed', async () => {
    const files = makeFiles(100)
    const table = makeTable()
    for (const index of range(0, COUNT)) {
      await files.ensure(table, [index], signal)
      expect(read(table, 0, CHUNK)).toBeDefined() // the one that is used all the time stays
    }
    expect(quiesced).toBeGreaterThan(0)
    expect(files.counters.opened - files.counters.closed).toBeLessThanOrEqual(100)
    const unknown = range(0, COUNT).filter((index) => table.slots[index] === SLOT_UNKNOWN)
    expect(unknown.length).toBeGreaterThan(0)
    await files.ensure(table, unknown.slice(0, 10), signal)
    for (const index of unknown.slice(0, 10)) expect(read(table, index * CHUNK, (index + 1) * CHUNK)?.equals(image.subarray(index * CHUNK, (index + 1) * CHUNK))).toBe(true)
  })

  it('that are evicted before they can be opened are asked for again, however often', async () => {
    const files = makeFiles()
    const table = makeTable()
    let evictions = 10
    fetch = async (chunks) => {
      for (const id of chunks) put(id)
      if (evictions-- > 0) for (const id of chunks) unlinkSync(chunkPath(folder, id))
    }
    await files.ensure(table, [0], signal)
    expect(read(table, 0, CHUNK)?.equals(image.subarray(0, CHUNK))).toBe(true)
    expect(fetches).toHaveLength(11)
    evictions = Infinity
    await expect(makeFiles(1000, 200).ensure(makeTable(), [2], signal)).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
  })

  it('that are evicted while they are open are read on; closed, they are a miss', async () => {
    const files = makeFiles(20)
    const table = makeTable()
    await files.ensure(table, [0], signal)
    unlinkSync(chunkPath(folder, ids[0] ?? ''))
    expect(read(table, 0, CHUNK)?.equals(image.subarray(0, CHUNK))).toBe(true)
    expect(fetches).toHaveLength(1)
    for (let first = 10; table.slots[0] !== SLOT_UNKNOWN; first += 10) await files.ensure(table, range(first, first + 10), signal)
    const before = fetches.length
    await files.ensure(table, [0], signal)
    expect(fetches.slice(before)).toEqual([[ids[0]]])
    expect(read(table, 0, CHUNK)?.equals(image.subarray(0, CHUNK))).toBe(true)
  })

  describe('say by their time that they are used', () => {
    const longAgo = new Date(Date.now() - 2 * USE_GRANULARITY_MS)
    const pathOf = (index: number): string => chunkPath(folder, ids[index] ?? '')
    const putLongAgo = (index: number): void => {
      put(ids[index] ?? '')
      utimesSync(pathOf(index), longAgo, longAgo)
    }
    const isNoted = (index: number): boolean => statSync(pathOf(index)).mtimeMs > Date.now() - USE_GRANULARITY_MS / 2

    it('when they are opened, but not when that is known already', async () => {
      putLongAgo(0)
      put(ids[1] ?? '')
      const justNow = new Date(Date.now() - USE_GRANULARITY_MS / 4)
      utimesSync(pathOf(1), justNow, justNow)
      const { mtimeMs } = statSync(pathOf(1))
      await makeFiles().ensure(makeTable(), [0, 1], signal)
      expect(isNoted(0)).toBe(true)
      expect(statSync(pathOf(1)).mtimeMs).toBe(mtimeMs)
    })

    it('while workers read them; those that were evicted, and that nobody reads, are closed', async () => {
      const fakeClock = new FakeClock(Date.now())
      const ending = new AbortController()
      const files = new ChunkFiles({ source, clock: fakeClock, log: quiet, quiesce: async () => { quiesced++ }, signal: ending.signal }, { folder, openMax: 1000, missDeadlineMs: 5000 })
      const table = makeTable()
      const [used, idle, evicted, evictedAndUsed] = [0, 1, 2, 3]
      for (const index of range(0, 4)) put(ids[index] ?? '')
      await files.ensure(table, range(0, 4), signal)
      for (const index of range(0, 4)) utimesSync(pathOf(index), longAgo, longAgo)
      for (const index of [evicted, evictedAndUsed]) unlinkSync(pathOf(index))
      const noting = files.keepNotingUses()
      read(table, used * CHUNK, (used + 1) * CHUNK)
      read(table, evictedAndUsed * CHUNK, (evictedAndUsed + 1) * CHUNK)
      await fakeClock.advance(USE_GRANULARITY_MS + 1)
      expect([isNoted(used), isNoted(idle)]).toEqual([true, false])
      expect(range(0, 4).filter((index) => table.slots[index] === SLOT_UNKNOWN)).toEqual([evicted])
      expect(files.counters.closed).toBe(1)
      expect(quiesced).toBe(1)

      utimesSync(pathOf(used), longAgo, longAgo)
      await fakeClock.advance(USE_GRANULARITY_MS + 1)
      expect(isNoted(used)).toBe(false) // not read since
      expect(files.counters.closed).toBe(2)
      expect(existsSync(pathOf(evictedAndUsed))).toBe(false)
      ending.abort()
      await noting
    })
  })

  it('wait for a daemon that comes back, until the deadline', async () => {
    const files = makeFiles(1000, 5000)
    const table = makeTable()
    let failures = 2
    fetch = async (chunks) => {
      if (failures-- > 0) throw new P2pvmError('ERR_UNAVAILABLE', 'gone')
      for (const id of chunks) put(id)
    }
    await files.ensure(table, [0], signal)
    expect(fetches).toHaveLength(3)
    failures = Infinity
    await expect(makeFiles(1000, 100).ensure(table, [1], signal)).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
    fetch = async () => { throw new P2pvmError('ERR_MISSING', 'nobody has it') }
    await expect(files.ensure(table, [1], signal)).rejects.toMatchObject({ code: 'ERR_MISSING' })
  })

  it('are closed when no table uses them any more', async () => {
    const files = makeFiles()
    const tables = new VersionTables({ source, clock, folder: join(folder, 'leaves') }, files)
    const table = tables.acquire(ref)
    expect(tables.acquire(ref)).toBe(table)
    await files.ensure(table, range(0, 10), signal)
    await tables.release(table)
    await tables.release(table)
    expect(tables.acquire(ref)).toBe(table) // kept for a while
    await tables.close()
    expect(files.counters.closed).toBe(files.counters.opened)
    expect(files.counters.opened).toBe(9) // one is a hole
  })

  it('have ids that are kept on disk, and asked again where the slot was torn', async () => {
    const files = makeFiles()
    const first = makeTable()
    await files.ensure(first, [0, 70, 149], signal)
    expect(questions).toEqual([[0, 64], [64, 64], [128, 22]])
    questions = []
    first.close()
    const second = makeTable()
    await files.ensure(second, [1, 71, 148], signal)
    expect(questions).toEqual([])
    second.close()
    const path = join(folder, 'leaves', 'abcdefghijklmnop@1')
    const bytes = readFileSync(path)
    bytes.writeUInt8(bytes.readUInt8(40) ^ 1, 40)
    writeFileSync(path, bytes.subarray(0, statSync(path).size - 1))
    const third = makeTable()
    await files.ensure(third, [2, 72, 147], signal)
    expect(questions).toEqual([[0, 64], [128, 22]])
    third.close()
  })

  it('have ids that another version can be asked for in bulk', async () => {
    const first = makeTable()
    await first.idOf(0, signal)
    await first.idOf(149, signal)
    questions = []
    const next = new VersionTable(2, { ...ref, version: 2 }, { source, clock, folder: join(folder, 'leaves') })
    await next.learnLike(first, [70], signal)
    expect(questions).toEqual([[0, COUNT]])
    await expect(next.idOf(71, AbortSignal.abort())).resolves.toBe(ids[71])
  })
})
