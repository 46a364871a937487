/** What every `ChunkStore` promises, whatever it lies on. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { ChunkStore } from '../../src/dht/chunk-store.ts'
import { chunkIdOf, type ChunkId } from '../../src/protocols/cid.ts'

export interface StoreUnderTest {
  /** Opens the store, or opens it again: the next life of the same process. */
  open (): Promise<ChunkStore>
  /** Turns over one byte of a stored file. */
  corrupt (path: string): Promise<void>
  /** Puts bytes where an unfinished put would have left them. */
  leaveBehind (bytes: Uint8Array): Promise<void>
  /** All files that the store keeps, anywhere. */
  files (): Promise<string[]>
  remove (): Promise<void>
}

function chunk (text: string): { id: ChunkId, bytes: Uint8Array } {
  const bytes = new Uint8Array(Buffer.from(text.padEnd(5000, '.')))
  return { id: chunkIdOf(bytes), bytes }
}

export function storeSuite (name: string, make: () => Promise<StoreUnderTest>): void {
  describe(name, () => {
    let under: StoreUnderTest
    let store: ChunkStore
    const one = chunk('one')
    const two = chunk('two')

    beforeEach(async () => {
      under = await make()
      store = await under.open()
    })
    afterEach(async () => { await under.remove() })

    it('gives back what was put', async () => {
      expect(await store.put(one.id, one.bytes)).toBe(true)
      expect(new Uint8Array(await store.get(one.id) ?? [])).toEqual(one.bytes)
    })

    it('says that a chunk is not here', async () => {
      expect(await store.get(one.id)).toBeUndefined()
      expect(await store.have([one.id])).toEqual([false])
    })

    it('stores a chunk once', async () => {
      await store.put(one.id, one.bytes)
      expect(await store.put(one.id, one.bytes)).toBe(false)
      expect(store.usage()).toMatchObject({ chunks: 1, bytes: one.bytes.length })
      expect(await under.files()).toEqual([store.pathOf(one.id)])
    })

    it('makes one of concurrent puts of a chunk', async () => {
      const results = await Promise.all(Array.from({ length: 5 }, async () => await store.put(one.id, one.bytes)))
      expect(results.filter((isNew) => isNew)).toHaveLength(1)
      expect(store.usage()).toMatchObject({ chunks: 1, bytes: one.bytes.length })
    })

    it('answers have in the order of the ids, also while one is being put', async () => {
      const putting = store.put(one.id, one.bytes)
      expect(await store.have([two.id, one.id, two.id])).toEqual([false, true, false])
      await putting
    })

    it('refuses bytes that do not match', async () => {
      await expect(store.put(one.id, two.bytes)).rejects.toMatchObject({ code: 'ERR_CORRUPT' })
      expect(await under.files()).toEqual([])
    })

    it('refuses what is not a chunk id, before it becomes a path', async () => {
      await expect(store.get('../../etc/passwd')).rejects.toMatchObject({ code: 'ERR_USAGE' })
      await expect(store.have(['bafkrei'])).rejects.toMatchObject({ code: 'ERR_USAGE' })
      expect(() => store.pathOf('x')).toThrow(expect.objectContaining({ code: 'ERR_USAGE' }))
    })

    it('never serves a copy that has rotted, and puts it in quarantine', async () => {
      await store.put(one.id, one.bytes)
      await under.corrupt(store.pathOf(one.id))
      await expect(store.get(one.id)).rejects.toMatchObject({ code: 'ERR_CORRUPT', fields: { cid: one.id } })
      expect(await store.get(one.id)).toBeUndefined()
      expect(await store.have([one.id])).toEqual([false])
      expect(store.usage()).toMatchObject({ chunks: 0, bytes: 0 })
      expect(await under.files()).toEqual([expect.stringMatching(/quarantine/)])
    })

    it('is healed by a put of good bytes', async () => {
      await store.put(one.id, one.bytes)
      await under.corrupt(store.pathOf(one.id))
      expect(await store.put(one.id, one.bytes)).toBe(true)
      expect(new Uint8Array(await store.get(one.id) ?? [])).toEqual(one.bytes)
      expect(store.usage()).toMatchObject({ chunks: 1, bytes: one.bytes.length })
    })

    it('deletes, also what is being put and what is not there', async () => {
      const putting = store.put(one.id, one.bytes)
      await store.delete(one.id)
      await putting
      await store.delete(two.id)
      expect(await store.get(one.id)).toBeUndefined()
      expect(store.usage()).toMatchObject({ chunks: 0, bytes: 0 })
    })

    it('has the same chunks and counts after it was opened again, and no leftovers', async () => {
      await store.put(one.id, one.bytes)
      await store.put(two.id, two.bytes)
      await under.leaveBehind(Buffer.from('half a chu'))
      const reopened = await under.open()
      expect(await reopened.have([one.id, two.id])).toEqual([true, true])
      expect(reopened.usage()).toMatchObject({ chunks: 2, bytes: one.bytes.length + two.bytes.length })
      expect(await under.files()).toEqual([store.pathOf(one.id), store.pathOf(two.id)].sort())
    })
  })
}
