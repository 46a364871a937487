import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { P2pvmError } from '../../../src/protocols/errors.ts'
import { alignToChunks, decodeSparse, encodeSparse } from '../../../src/node/sparse-stream.ts'
import type { SparseItem } from '../../../src/versioning/image-import.ts'

const CHUNK = 4096

async function * iterate<T> (items: Iterable<T>): AsyncGenerator<T> { yield * items }

async function collect<T> (items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = []
  for await (const item of items) all.push(item)
  return all
}

async function encoded (items: Iterable<SparseItem>): Promise<Buffer> {
  return Buffer.concat(await collect(encodeSparse(iterate(items))))
}

/** The bytes cut at the given places: as a socket might deliver them. */
function * cut (bytes: Uint8Array, sizes: readonly number[]): Generator<Uint8Array> {
  let at = 0
  for (const size of sizes) {
    if (at >= bytes.length) return
    yield bytes.subarray(at, at + size)
    at += size
  }
  yield bytes.subarray(at)
}

function image (items: readonly SparseItem[]): Buffer {
  const end = items.at(-1)
  if (end === undefined || !('size' in end)) throw new Error('no size')
  const bytes = Buffer.alloc(end.size)
  for (const item of items) if ('bytes' in item) bytes.set(item.bytes, item.offset)
  return bytes
}

/** Pieces with gaps between them, some of zeros, in ascending order, and a size. */
const sparse = fc.array(fc.record({
  gap: fc.nat({ max: 3 * CHUNK }),
  bytes: fc.oneof(fc.uint8Array({ minLength: 1, maxLength: 2 * CHUNK }), fc.nat({ max: CHUNK }).map((size) => new Uint8Array(size + 1)))
}), { maxLength: 12 }).chain((pieces) => fc.nat({ max: 2 * CHUNK }).map((tail): SparseItem[] => {
  let at = 0
  const items: SparseItem[] = pieces.map(({ gap, bytes }) => {
    const offset = at + gap
    at = offset + bytes.length
    return { offset, bytes }
  })
  return [...items, { size: at + tail }]
}))

describe('sparse stream', () => {
  test('what is encoded comes back, however the bytes are cut', async () => {
    await fc.assert(fc.asyncProperty(sparse, fc.array(fc.integer({ min: 1, max: 9000 }), { maxLength: 40 }), async (items, sizes) => {
      const back = await collect(decodeSparse(iterate(cut(await encoded(items), sizes))))
      expect(image(back).equals(image(items))).toBe(true)
    }))
  })

  test('aligned pieces are whole chunks that are not zeros, and hold the same image', async () => {
    await fc.assert(fc.asyncProperty(sparse, async (items) => {
      const aligned = await collect(alignToChunks(iterate(items), CHUNK))
      const size = image(items).length
      let next = 0
      for (const item of aligned.slice(0, -1)) {
        if (!('bytes' in item)) throw new Error('a size before the end')
        expect(item.offset % CHUNK).toBe(0)
        expect(item.offset).toBeGreaterThanOrEqual(next)
        expect(item.bytes.length).toBe(Math.min(CHUNK, size - item.offset))
        expect(item.bytes.some((byte) => byte !== 0)).toBe(true)
        next = item.offset + CHUNK
      }
      expect(image(aligned).equals(image(items))).toBe(true)
    }))
  })

  test('anything else is refused as a protocol error, and nothing hangs or crashes', async () => {
    await fc.assert(fc.asyncProperty(sparse, fc.nat(), fc.nat({ max: 255 }), async (items, where, value) => {
      const bytes = await encoded(items)
      bytes[where % bytes.length] = value
      await collect(decodeSparse(iterate([bytes]))).catch((error: unknown) => { expect((error as P2pvmError).code).toMatch(/^ERR_/) })
    }))
    await fc.assert(fc.asyncProperty(fc.uint8Array({ maxLength: 64 }), async (bytes) => {
      await expect(collect(decodeSparse(iterate([bytes])))).rejects.toMatchObject({ code: 'ERR_PROTOCOL' })
    }), { examples: [[new Uint8Array(0)], [new Uint8Array(12)]] })
  })

  test('every prefix of a stream is cut short', async () => {
    const bytes = await encoded([{ offset: 5, bytes: Buffer.from('abc') }, { size: 9 }])
    for (let length = 0; length < bytes.length; length++) {
      await expect(collect(decodeSparse(iterate([bytes.subarray(0, length)])))).rejects.toMatchObject({ code: 'ERR_PROTOCOL' })
    }
    await expect(collect(decodeSparse(iterate([Buffer.concat([bytes, Buffer.from('x')])])))).rejects.toMatchObject({ code: 'ERR_PROTOCOL' })
  })

  test.each<[string, SparseItem[]]>([
    ['overlapping', [{ offset: 0, bytes: new Uint8Array(4) }, { offset: 3, bytes: new Uint8Array(4) }, { size: 9 }]],
    ['descending', [{ offset: 8, bytes: new Uint8Array(4) }, { offset: 0, bytes: new Uint8Array(4) }, { size: 12 }]],
    ['beyond the size', [{ offset: 8, bytes: new Uint8Array(4) }, { size: 11 }]],
    ['beyond all bounds', [{ offset: Number.MAX_SAFE_INTEGER, bytes: new Uint8Array(4) }]]
  ])('pieces that are %s fail at the receiver too', async (_, items) => {
    await expect(collect(decodeSparse(encodeSparse(iterate(items))))).rejects.toMatchObject({ code: 'ERR_PROTOCOL' })
  })

  test('a failure of the source arrives with its code and fields', async () => {
    async function * failing (): AsyncGenerator<SparseItem> {
      yield { offset: 0, bytes: Buffer.from('abc') }
      throw new P2pvmError('ERR_SOURCE_CHANGED', 'it shrank', { path: 'disk.raw' })
    }
    await expect(collect(decodeSparse(encodeSparse(failing())))).rejects.toMatchObject({
      code: 'ERR_SOURCE_CHANGED', message: 'it shrank', fields: { path: 'disk.raw' }
    })
  })

  test('a piece of more than 4 MiB is sent as several', async () => {
    const bytes = Buffer.alloc(9 * 2 ** 20, 7)
    const items = await collect(decodeSparse(encodeSparse(iterate<SparseItem>([{ offset: 3, bytes }, { size: bytes.length + 3 }]))))
    expect(items.length).toBe(4)
    expect(image(items).subarray(3).equals(bytes)).toBe(true)
  })
})
