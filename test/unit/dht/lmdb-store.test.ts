import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { openLmdbStore } from '../../../src/dht/lmdb-store.ts'
import type { KeyValueStore } from '../../../src/protocols/seams.ts'

const value = (text: string): Uint8Array => Buffer.from(text)

describe('lmdb store', () => {
  let folder: string
  let store: KeyValueStore
  const keys = (options: Parameters<KeyValueStore['range']>[0]): string[] => [...store.range(options)].map(({ key }) => key)

  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'p2pvm-lmdb-'))
    store = await openLmdbStore(join(folder, 'deep', 'records.mdb'))
  })
  afterEach(async () => {
    await store.close()
    await rm(folder, { recursive: true })
  })

  it('keeps what was written over a restart', async () => {
    await store.write([{ key: 'a', value: value('1') }, { key: 'b', value: value('') }, { key: 'c', value: value('3') }])
    await store.write([{ key: 'c', value: null }, { key: 'never there', value: null }])
    await store.close()
    store = await openLmdbStore(join(folder, 'deep', 'records.mdb'))
    expect([store.get('a'), store.get('b'), store.get('c')]).toEqual([value('1'), value(''), undefined])
  })

  it('shows what was written to who was told so, also in ranges', async () => {
    for (let round = 0; round < 50; round++) {
      await store.write([{ key: 'a', value: value(`${round}`) }])
      expect(store.get('a')).toEqual(value(`${round}`))
      expect([...store.range({ start: 'a', end: 'b' })]).toEqual([{ key: 'a', value: value(`${round}`) }])
    }
  })

  it('takes in the start of a range and leaves out its end, in both directions', async () => {
    await store.write(['a', 'b', 'c', '\0'].map((key) => ({ key, value: value(key) })))
    expect(keys({ start: 'a', end: 'c' })).toEqual(['a', 'b'])
    expect(keys({ start: 'a', end: 'c', reverse: true })).toEqual(['b', 'a'])
    expect(keys({ start: 'a', end: 'c', reverse: true, limit: 1 })).toEqual(['b'])
    expect(keys({ start: 'bb', end: 'bc' })).toEqual([])
    expect(keys({ start: '\0', end: '~' })).toEqual(['\0', 'a', 'b', 'c'])
  })

  it('applies all of a write or nothing', async () => {
    await store.write([{ key: 'a', value: value('1') }])
    await expect(store.write([{ key: 'a', value: value('2') }, { key: 'b'.repeat(5000), value: value('2') }])).rejects.toMatchObject({ code: 'ERR_INTERNAL' })
    expect(store.get('a')).toEqual(value('1'))
  })
})
