import { mkdtemp, readFile, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { openLmdbStore } from '../../../src/dht/lmdb-store.ts'
import { LoggedStore, type LoggedStoreInit } from '../../../src/dht/logged-store.ts'
import { nodeDisk } from '../../../src/dht/node-disk.ts'
import { openStore } from '../../../src/dht/open-store.ts'
import type { Disk, KeyValueStore } from '../../../src/protocols/seams.ts'
import { MemoryKeyValueStore } from '../../harness/memory-stores.ts'

const LOG_BYTES = 1000
const value = (text: string): Uint8Array => Buffer.from(text)
const textOf = (bytes: Uint8Array | undefined): string | undefined => bytes === undefined ? undefined : Buffer.from(bytes).toString()

let folder: string
let path: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'p2pvm-logged-'))
  path = join(folder, 'deep', 'records.mdb')
})
afterEach(async () => { await rm(folder, { recursive: true }) })

/** What a store shows must not depend on where it is: in the log alone, or in lmdb. */
describe.each([['all of it in the log', undefined], ['the log turning over with each write', 1]])('logged store over lmdb, %s', (_, logBytes) => {
  let store: KeyValueStore
  const keys = (options: Parameters<KeyValueStore['range']>[0]): string[] => [...store.range(options)].map(({ key }) => key)
  const all = { start: 'a', end: 'z' }
  const open = async (): Promise<KeyValueStore> => {
    if (logBytes === undefined) return await openStore(path)
    const init = { store: await openLmdbStore(path), disk: nodeDisk, path, random: { bytes: (count: number) => Buffer.alloc(count, 7) }, turn: async () => { await turn() }, logBytes }
    return await LoggedStore.open(init)
  }

  beforeEach(async () => { store = await open() })
  afterEach(async () => { await store.close() })

  it('keeps what was written over a restart', async () => {
    await store.write([{ key: 'a', value: value('1') }, { key: 'b', value: value('') }])
    for (let restart = 0; restart < 3; restart++) {
      await store.close()
      store = await open()
      expect(store.get('a')).toEqual(value('1'))
      expect(store.get('b')).toEqual(value(''))
      expect(store.get('c')).toBeUndefined()
      expect([...store.range(all)]).toEqual([{ key: 'a', value: value('1') }, { key: 'b', value: value('') }])
    }
  })

  it('keeps what was removed removed over a restart', async () => {
    for (let round = 0; round < 3; round++) {
      await store.write(['a', 'b', 'c'].map((key) => ({ key, value: value(`${round}`) })))
      await store.write([{ key: 'b', value: null }])
      await store.close()
      store = await open()
      expect(keys(all)).toEqual(['a', 'c'])
      expect(store.get('b')).toBeUndefined()
    }
  })

  it('closes when what was asked before is on disk', async () => {
    const first = store.write([{ key: 'a', value: value('1') }])
    await new Promise(setImmediate)
    const later = store.write([{ key: 'a', value: value('2') }, { key: 'b', value: value('2') }])
    await store.close()
    await Promise.all([first, later])
    store = await open()
    expect([store.get('a'), store.get('b')]).toEqual([value('2'), value('2')])
  })

  it('shows a write at once, also in ranges, before it is on disk', async () => {
    await store.write(['b', 'd', 'f'].map((key) => ({ key, value: value('old') })))
    const writing = store.write([{ key: 'a', value: value('new') }, { key: 'd', value: value('new') }, { key: 'f', value: null }, { key: 'e', value: value('new') }])
    const expected = [['a', 'new'], ['b', 'old'], ['d', 'new'], ['e', 'new']]
    const seen = (): unknown[][] => [...store.range(all)].map((entry) => [entry.key, textOf(entry.value)])
    expect(store.get('d')).toEqual(value('new'))
    expect(store.get('f')).toBeUndefined()
    expect(seen()).toEqual(expected)
    expect(keys({ ...all, reverse: true })).toEqual(['e', 'd', 'b', 'a'])
    expect(keys({ ...all, limit: 2 })).toEqual(['a', 'b'])
    await writing
    expect(seen()).toEqual(expected)
    expect(keys({ ...all, reverse: true })).toEqual(['e', 'd', 'b', 'a'])
  })

  it('shows the latest of several writes of a key under way', async () => {
    const writing = ['1', '2', '3'].map(async (text) => { await store.write([{ key: 'a', value: value(text) }]) })
    expect(store.get('a')).toEqual(value('3'))
    await writing[0]
    expect(store.get('a')).toEqual(value('3'))
    await Promise.all(writing)
    expect(store.get('a')).toEqual(value('3'))
  })

  it('shows a later write of a key also when an earlier one has just come to the disk', async () => {
    for (let round = 0; round < 100; round++) {
      const first = store.write([{ key: 'a', value: value(`${round} first`) }])
      await new Promise((resolve) => setImmediate(resolve))
      const second = store.write([{ key: 'a', value: value(`${round} second`) }])
      await first
      expect(store.get('a')).toEqual(value(`${round} second`))
      await second
    }
  })

  it('takes in the start of a range and leaves out its end, in both directions', async () => {
    await store.write(['a', 'b', 'c'].map((key) => ({ key, value: value(key) })))
    expect(keys({ start: 'a', end: 'c' })).toEqual(['a', 'b'])
    expect(keys({ start: 'a', end: 'c', reverse: true })).toEqual(['b', 'a'])
    expect(keys({ start: 'a', end: 'c', reverse: true, limit: 1 })).toEqual(['b'])
    expect(keys({ start: 'bb', end: 'bc' })).toEqual([])
  })

  it('orders keys by their bytes, wherever they are, and keeps its own mark to itself', async () => {
    const unordered = ['~', 'z', '{', 'a/10', 'a/2', 'a', 'A', '\x01', '\x7f', ' ', 'a0']
    for (const key of unordered) await store.write([{ key, value: value(key) }])
    const ordered = unordered.toSorted((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
    expect(keys({ start: '', end: '\x80' })).toEqual(ordered)
    expect(keys({ start: '\0', end: '\x80', reverse: true })).toEqual(ordered.toReversed())
    expect(keys({ start: 'a\0', end: 'a0\0' })).toEqual(['a/10', 'a/2', 'a0'])
  })

  it('refuses what is no key, and that alone', async () => {
    for (const key of ['', '\0', 'a\0', 'é', 'k'.repeat(1979)]) {
      const refused = store.write([{ key: 'a', value: value('1') }, { key, value: value('1') }])
      await expect(refused).rejects.toThrow('not a key')
    }
    expect(store.get('a')).toBeUndefined()
    await store.write([{ key: 'k'.repeat(1978), value: value('1') }])
    await store.close()
    store = await open()
    expect(keys(all)).toEqual(['k'.repeat(1978)])
  })

  it('gives out values that later writes do not change', async () => {
    await store.write([{ key: 'a', value: value('first') }])
    const first = store.get('a')
    const [ranged] = [...store.range(all)]
    for (let round = 0; round < 50; round++) await store.write([{ key: 'a', value: value(`later ${round}`) }])
    expect(first).toEqual(value('first'))
    expect(ranged?.value).toEqual(value('first'))
  })

  it('removes', async () => {
    await store.write([{ key: 'a', value: value('1') }])
    await store.write([{ key: 'a', value: null }, { key: 'never there', value: null }])
    expect(store.get('a')).toBeUndefined()
    expect(keys(all)).toEqual([])
  })
})

describe('logged store', () => {
  let beneath: MemoryKeyValueStore
  let store: LoggedStore
  /** What the disk says of a write. */
  let failure: Error | undefined
  let appends: Array<{ readonly file: string, readonly position: number }>

  const disk: Disk = {
    ...nodeDisk,
    openWriteThrough: async (name) => {
      const file = await nodeDisk.openWriteThrough(name)
      return {
        write: async (bytes, position) => {
          if (failure !== undefined) throw failure
          appends.push({ file: name.slice(-1), position })
          await file.write(bytes, position)
        },
        datasync: async () => { await file.datasync() },
        close: async () => { await file.close() }
      }
    }
  }
  const open = async (options: Partial<LoggedStoreInit> = {}): Promise<LoggedStore> => {
    const random = { bytes: (count: number) => Buffer.alloc(count, 7) }
    return await LoggedStore.open({ store: beneath, disk, path, random, turn: async () => { await turn() }, logBytes: LOG_BYTES, ...options })
  }
  /** As after a power cut. */
  const restart = async (): Promise<LoggedStore> => {
    const before = store
    beneath = beneath.crash()
    await before.close()
    return store = await open()
  }
  const put = async (key: string, text = key): Promise<void> => { await store.write([{ key, value: value(text) }]) }
  /** Writes of 100 bytes, one by one: about ten fill a file of the log. */
  const fill = async (count: number, from = 0): Promise<void> => {
    for (let index = from; index < from + count; index++) await put(`key ${index}`, `${index}`.padEnd(70))
  }
  const content = (): string[] => [...store.range({ start: '', end: '~' })].map(({ key }) => key)

  beforeEach(async () => {
    beneath = new MemoryKeyValueStore()
    failure = undefined
    appends = []
    await nodeDisk.mkdir(join(folder, 'deep'))
    store = await open()
  })
  afterEach(async () => { await store.close() })

  it('writes those of one turn, and those that come meanwhile, in one entry each', async () => {
    await Promise.all(['a', 'b', 'c'].map(async (key) => { await put(key) }))
    expect(appends).toHaveLength(1)
    const first = put('d')
    await expect.poll(() => appends.length).toBe(2)
    await Promise.all([first, put('e'), put('f')])
    expect(appends).toHaveLength(3)
    expect(beneath.writes, 'only the mark').toBe(1)
  })

  it('resolves when the entry is in the log, and shows it until then as well', async () => {
    const { promise: gate, resolve: release } = Promise.withResolvers<void>()
    const held: Disk = {
      ...disk,
      openWriteThrough: async (name) => {
        const file = await disk.openWriteThrough(name)
        return { ...file, write: async (bytes, position) => { await gate; await file.write(bytes, position) } }
      }
    }
    await store.close()
    store = await open({ disk: held })
    let resolved = false
    const writing = put('a').then(() => { resolved = true })
    for (let round = 0; round < 5; round++) await turn()
    expect([resolved, appends.length, textOf(store.get('a'))]).toEqual([false, 0, 'a'])
    release()
    await writing
    expect(appends).toHaveLength(1)
  })

  it('turns over when there is enough in the log: the store takes it at once, in one write, without what came and went', async () => {
    const taken = vi.spyOn(beneath, 'write')
    await put('gone')
    await store.write([{ key: 'gone', value: null }])
    await fill(10)
    expect(beneath.writes).toBe(1)
    await fill(1, 10)
    await expect.poll(() => beneath.writes).toBe(2)
    expect(textOf(beneath.get('key 9'))).toBe('9'.padEnd(70))
    expect([beneath.get('gone'), beneath.get('key 10')]).toEqual([undefined, undefined])
    expect(appends.map(({ file }) => file).join('')).toMatch(/^0+1$/)
    await fill(19, 11)
    expect(appends.map(({ file }) => file).join('')).toMatch(/^0+1+0+1*$/)
    expect(taken.mock.calls.map(([operations]) => operations.length)).toEqual([12, 12])
    for (const index of [0, 1]) expect((await stat(`${path}.log-${index}`)).size).toBeLessThan(LOG_BYTES + 110)
    expect(content()).toHaveLength(30)
    expect(await restart().then(content)).toHaveLength(30)
  })

  it('takes writes while the store takes what the other file holds, until it is full, and loses nothing in a crash meanwhile', async () => {
    const release = beneath.hold()
    await fill(20)
    const waiting = fill(10, 20)
    for (let round = 0; round < 20; round++) await turn()
    expect(appends.length).toBeLessThan(30)
    expect(content().length).toBeGreaterThan(20)
    release()
    await waiting
    expect(content()).toHaveLength(30)

    const releaseAgain = beneath.hold()
    await fill(10, 30)
    const restarting = restart()
    releaseAgain()
    await restarting
    expect(content()).toHaveLength(40)
  })

  it('refuses writes when both files are full and the store cannot take them, and goes on when it can', async () => {
    await fill(5)
    beneath.fate = () => 'disk full'
    await expect(fill(40, 5)).rejects.toMatchObject({ code: 'ERR_DISK_FULL' })
    const kept = appends.length
    expect(kept).toBeGreaterThan(15)
    expect(kept).toBeLessThan(25)
    const more = await Promise.allSettled(['a', 'b'].map(async (key) => { await put(key) }))
    for (const outcome of more) expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'ERR_DISK_FULL' } })
    expect(content()).toHaveLength(kept)

    await store.close()
    store = await open()
    expect(content()).toHaveLength(kept)
    await expect(put('a')).rejects.toMatchObject({ code: 'ERR_DISK_FULL' })
    expect(content()).toHaveLength(kept)
    beneath.fate = () => 'kept'
    await fill(20, 100)
    expect(content()).toHaveLength(kept + 20)
    expect(await restart().then(content)).toHaveLength(kept + 20)
  })

  it('goes on without a restart, too, when the store can take it again', async () => {
    beneath.fate = () => 'disk full'
    await expect(fill(40)).rejects.toMatchObject({ code: 'ERR_DISK_FULL' })
    const kept = content().length
    beneath.fate = () => 'kept'
    await fill(20, 100)
    expect(content()).toHaveLength(kept + 20)
    expect(await restart().then(content)).toHaveLength(kept + 20)
  })

  it('loses nothing when the store can take one file of the log and then no more', async () => {
    beneath.fate = () => 'disk full'
    await expect(fill(40)).rejects.toMatchObject({ code: 'ERR_DISK_FULL' })
    const kept = content()
    const once = beneath.writes + 1
    beneath.fate = (at) => at === once ? 'kept' : 'disk full'
    await put('one more')
    await restart()
    expect(content().sort()).toEqual([...kept, 'one more'].sort())
  })

  it('is full when the log is: what is refused is not there, and the next write is', async () => {
    await put('a')
    failure = Object.assign(new Error('no space left'), { code: 'ENOSPC' })
    await expect(Promise.all([put('b'), put('c')])).rejects.toMatchObject({ code: 'ERR_DISK_FULL' })
    expect(content()).toEqual(['a'])
    failure = undefined
    await put('d')
    expect(content()).toEqual(['a', 'd'])
    expect(await restart().then(content)).toEqual(['a', 'd'])
  })

  it('takes nothing more after an I/O error, until a restart', async () => {
    await put('a')
    failure = Object.assign(new Error('i/o error'), { code: 'EIO' })
    const broken = { code: 'ERR_INTERNAL', message: 'the log of the record store failed: i/o error' }
    await expect(put('b')).rejects.toMatchObject(broken)
    failure = undefined
    await expect(put('c')).rejects.toMatchObject(broken)
    expect(content()).toEqual(['a'])
    await store.close()
    store = await open()
    expect(content()).toEqual(['a'])
    await put('d')
    expect(content()).toEqual(['a', 'd'])
  })

  it('closes after a write that failed, once, with what the store has not taken kept for the next start', async () => {
    await fill(5)
    failure = Object.assign(new Error('i/o error'), { code: 'EIO' })
    const failing = expect(put('b')).rejects.toMatchObject({ code: 'ERR_INTERNAL' })
    await Promise.all([store.close(), store.close()])
    await failing
    expect(beneath.get('key 0')).toBeUndefined()
    failure = undefined
    store = await open()
    expect(content()).toHaveLength(5)
  })

  it('refuses what comes after close', async () => {
    const before = put('a')
    const closing = store.close()
    await expect(put('b')).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
    await Promise.all([before, closing])
    await expect(put('c')).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
    await expect(store.write([])).rejects.toMatchObject({ code: 'ERR_UNAVAILABLE' })
    store = await open()
    expect(content()).toEqual(['a'])
  })

  it('does not start without a file of its log, nor with a mark that is none', async () => {
    await put('a')
    await store.close()
    const kept = await readFile(`${path}.log-1`)
    await rm(`${path}.log-1`)
    await expect(open()).rejects.toMatchObject({ code: 'ERR_CORRUPT', message: expect.stringContaining('log-1 is gone') as string })
    await nodeDisk.create(`${path}.log-1`).then(async (file) => { await file.write(kept, 0); await file.close() })
    expect(await open().then(async (one) => { await one.close(); return textOf(one.get('a')) })).toBe('a')
    await beneath.write([{ key: '\0', value: Buffer.alloc(8) }])
    await expect(open()).rejects.toMatchObject({ code: 'ERR_CORRUPT' })
  })

  it('goes on with its log after a start, and lets the store take no more of it than once', async () => {
    await fill(5)
    await store.close()
    const writes = beneath.writes
    store = await open()
    await fill(5, 5)
    expect([beneath.writes, appends.at(-1)?.file]).toEqual([writes, '0'])
    await store.close()
    store = await open()
    await fill(2, 10)
    await expect.poll(() => beneath.get('key 0')).toBeDefined()
    expect(beneath.writes).toBe(writes + 1)
    expect(appends.at(-1)).toEqual({ file: '1', position: expect.any(Number) as number })
    expect(await restart().then(content)).toHaveLength(12)
  })

  it('has a seed of its own for its log', async () => {
    await put('a')
    const seeded = await readFile(`${path}.log-0`)
    await store.close()
    path = join(folder, 'other')
    beneath = new MemoryKeyValueStore()
    store = await open({ random: { bytes: (count) => Buffer.alloc(count, 8) } })
    await put('a')
    expect(await readFile(`${path}.log-0`)).not.toEqual(seeded)
    await store.close()
    // It is the store that remembers it.
    store = await open({ random: { bytes: () => { throw new Error('not again') } } })
    expect(content()).toEqual(['a'])
  })
})
