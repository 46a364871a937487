import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { openStore } from '../../../src/dht/open-store.ts'
import type { KeyValueStore } from '../../../src/protocols/seams.ts'

const value = (text: string): Uint8Array => Buffer.from(text)

describe('lmdb store', () => {
  let folder: string
  let store: KeyValueStore
  const keys = (options: Parameters<KeyValueStore['range']>[0]): string[] => [...store.range(options)].map(({ key }) => key)
  const all = { start: 'a', end: 'z' }

  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'p2pvm-lmdb-'))
    store = await openStore(join(folder, 'deep', 'records.lmdb'))
  })
  afterEach(async () => {
    await store.close()
    await rm(folder, { recursive: true })
  })

  it('keeps what was written over a restart', async () => {
    await store.write([{ key: 'a', value: value('1') }, { key: 'b', value: value('') }])
    await store.close()
    store = await openStore(join(folder, 'deep', 'records.lmdb'))
    expect(store.get('a')).toEqual(value('1'))
    expect(store.get('b')).toEqual(value(''))
    expect(store.get('c')).toBeUndefined()
  })

  it('closes when what was asked before is on disk', async () => {
    const first = store.write([{ key: 'a', value: value('1') }])
    await new Promise(setImmediate)
    const later = store.write([{ key: 'a', value: value('2') }, { key: 'b', value: value('2') }])
    await store.close()
    await Promise.all([first, later])
    store = await openStore(join(folder, 'deep', 'records.lmdb'))
    expect([store.get('a'), store.get('b')]).toEqual([value('2'), value('2')])
  })

  it('shows a write at once, also in ranges, before it is on disk', async () => {
    await store.write(['b', 'd', 'f'].map((key) => ({ key, value: value('old') })))
    const writing = store.write([{ key: 'a', value: value('new') }, { key: 'd', value: value('new') }, { key: 'f', value: null }, { key: 'e', value: value('new') }])
    const expected = [['a', 'new'], ['b', 'old'], ['d', 'new'], ['e', 'new']]
    const seen = (): string[][] => [...store.range(all)].map((entry) => [entry.key, Buffer.from(entry.value).toString()])
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

  it('orders keys by their bytes', async () => {
    const unordered = ['é', 'z', '{', 'a/10', 'a/2', 'a', 'A', '\u{1f600}', '\uffee']
    await store.write(unordered.map((key) => ({ key, value: value(key) })))
    const ordered = unordered.toSorted((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
    expect(keys({ start: '\0', end: '\u{10ffff}' })).toEqual(ordered)
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
