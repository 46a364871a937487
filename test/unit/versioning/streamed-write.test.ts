/** WRITE, APPEND and READ of any length: bytes in streams, against the same bytes in memory. */
import fc from 'fast-check'
import { describe, expect, test, vi } from 'vitest'
import { P2pvmError } from '../../../src/protocols/errors.ts'
import type { BlobClient } from '../../../src/versioning/blob-client.ts'
import type { Part, Version } from '../../../src/versioning/blobs.ts'
import { exportVersion, readVersion } from '../../../src/versioning/image-export.ts'
import type { SparseItem } from '../../../src/versioning/image-import.ts'
import { MemoryFabric } from '../../harness/memory-fabric.ts'

const CHUNK = 4096
const MIB = 1024 * 1024
const TIB = 2 ** 40

async function * stream<T> (items: Iterable<T>): AsyncGenerator<T> {
  yield * items
}

/** Not zeros, and different from chunk to chunk. */
function bytesFrom (seed: number, size: number): Uint8Array {
  return Uint8Array.from({ length: size }, (_, at) => (seed * 31 + at * 7 + Math.floor(at / CHUNK)) % 255 + 1)
}

function cut (bytes: Uint8Array, ...sizes: number[]): Uint8Array[] {
  const pieces: Uint8Array[] = []
  let at = 0
  for (let turn = 0; at < bytes.length; turn += 1) {
    const size = sizes[turn % sizes.length]!
    pieces.push(bytes.subarray(at, at + size))
    at += size
  }
  return pieces
}

async function blobOf (client: BlobClient, content?: Uint8Array, chunkSize = CHUNK): Promise<string> {
  const { blob } = await client.create({ chunkSize, fanOut: 2 })
  if (content !== undefined) await client.write(blob, [{ offset: 0, bytes: content }])
  return blob
}

async function contentOf (client: BlobClient, version: Version): Promise<Uint8Array> {
  return await client.read(version, 0, version.size)
}

async function itemsOf (items: AsyncIterable<SparseItem>): Promise<SparseItem[]> {
  const all: SparseItem[] = []
  for await (const item of items) all.push(item)
  return all
}

describe('a write from a stream', () => {
  const gap = fc.nat(3 * CHUNK)
  const extent = fc.record({ gap, size: fc.nat(4 * CHUNK), zeros: fc.boolean() })

  test('is the same as one from memory, however it is cut', async () => {
    await fc.assert(fc.asyncProperty(
      fc.nat(5 * CHUNK), fc.array(extent, { maxLength: 5 }), fc.array(fc.integer({ min: 1, max: 2 * CHUNK }), { minLength: 1, maxLength: 3 }),
      async (sizeBefore, extents, sizes) => {
        const client = new MemoryFabric().client()
        const content = bytesFrom(9, sizeBefore)
        let end = 0
        const parts: Part[] = []
        for (const [at, { gap, size, zeros }] of extents.entries()) {
          parts.push({ offset: end + gap, bytes: zeros ? new Uint8Array(size) : bytesFrom(at, size) })
          end += gap + size
        }
        const pieces = parts.flatMap(({ offset, bytes }) => {
          let at = offset
          return cut(bytes, ...sizes).map((piece) => ({ offset: (at += piece.length) - piece.length, bytes: piece }))
        })
        const fromMemory = await client.write(await blobOf(client, content), parts)
        const fromStream = await client.write(await blobOf(client, content), stream(pieces))
        expect(fromStream).toMatchObject({ version: fromMemory.version, size: fromMemory.size, bytesChanged: fromMemory.bytesChanged })
        const [a, b] = [await contentOf(client, fromMemory), await contentOf(client, fromStream)]
        expect(Buffer.compare(a, b)).toBe(0)
      }), { numRuns: 60 })
  })

  test('puts chunks as they come, and holds few of them', async () => {
    const fabric = new MemoryFabric()
    const client = fabric.client()
    const blob = await blobOf(client, undefined, MIB)
    let sent = 0
    let stored = 0
    let aheadMax = 0
    const put = fabric.chunks.put.bind(fabric.chunks)
    fabric.chunks.put = async (...given) => {
      const outcome = await put(...given)
      stored += 1
      return outcome
    }
    async function * parts (): AsyncGenerator<Part> {
      for (let at = 0; at < 64; at += 1) {
        aheadMax = Math.max(aheadMax, sent - stored)
        sent += 1
        yield { offset: at * MIB, bytes: new Uint8Array(MIB).fill(at + 1) }
      }
    }
    const asked = vi.spyOn(fabric.manager.service, 'assign')
    expect(await client.write(blob, parts())).toMatchObject({ size: 64 * MIB, bytesChanged: 64 * MIB, version: 1 })
    expect(asked).toHaveBeenCalledTimes(1)
    // 8 MiB on their way, one that waits for room, one that is asked for.
    expect(aheadMax).toBeLessThanOrEqual(10)
  })

  test('that breaks off, or whose chunks cannot be stored, is not assigned a version', async () => {
    const fabric = new MemoryFabric()
    const client = fabric.client()
    const blob = await blobOf(client)
    async function * broken (): AsyncGenerator<Part> {
      yield { offset: 0, bytes: bytesFrom(1, 3 * CHUNK) }
      throw new P2pvmError('ERR_SOURCE_CHANGED', 'it grew')
    }
    await expect(client.write(blob, broken())).rejects.toMatchObject({ code: 'ERR_SOURCE_CHANGED' })
    vi.spyOn(fabric.chunks, 'put').mockRejectedValueOnce(new P2pvmError('ERR_DISK_FULL', 'full'))
    await expect(client.write(blob, stream([{ offset: 0, bytes: bytesFrom(1, 3 * CHUNK) }]))).rejects.toMatchObject({ code: 'ERR_DISK_FULL' })
    expect(await client.recent(blob)).toMatchObject({ version: 0 })
    expect(await client.append(blob, new Uint8Array([1]))).toMatchObject({ version: 1 })
  })

  test.each<[string, Part[]]>([
    ['overlap', [{ offset: 0, bytes: new Uint8Array(10) }, { offset: 9, bytes: new Uint8Array(1) }]],
    ['go back', [{ offset: CHUNK, bytes: new Uint8Array(1) }, { offset: 0, bytes: new Uint8Array(1) }]],
    ['are nowhere', [{ offset: -1, bytes: new Uint8Array(1) }]],
    ['are between bytes', [{ offset: 0.5, bytes: new Uint8Array(1) }]],
    ['are past what a blob can hold', [{ offset: Number.MAX_SAFE_INTEGER - 10, bytes: new Uint8Array(1) }]],
    ['are more bytes in part of chunks than are kept', Array.from({ length: 17 }, (_, at) => ({ offset: at * 8 * MIB + 1, bytes: new Uint8Array(4 * MIB - 2) }))],
    ['are more extents than are kept', Array.from({ length: 65_537 }, (_, at) => ({ offset: at * 2, bytes: new Uint8Array(1) }))]
  ])('of parts that %s is refused', async (_, parts) => {
    const client = new MemoryFabric().client()
    const blob = await blobOf(client, undefined, 4 * MIB)
    await expect(client.write(blob, stream(parts))).rejects.toMatchObject({ code: 'ERR_USAGE' })
    expect(await client.recent(blob)).toMatchObject({ version: 0 })
  })
})

describe('an append from a stream', () => {
  test.each([
    ['the same place in a chunk', CHUNK],
    ['another place in a chunk', 100]
  ])('while another writer moves the end to %s goes behind it', async (_, moved) => {
    // Before the number is asked for, and between the last look and the number.
    for (const when of ['recent', 'assign'] as const) {
      const fabric = new MemoryFabric()
      const client = fabric.client()
      const before = bytesFrom(1, CHUNK + 10)
      const blob = await blobOf(client, before)
      const other = bytesFrom(2, moved)
      // Zeros in it, so that a hole moves too.
      const own = Buffer.concat([bytesFrom(3, 2 * CHUNK), new Uint8Array(2 * CHUNK), bytesFrom(4, 2 * CHUNK + 5)])
      const original = fabric.manager.service[when].bind(fabric.manager.service) as (...given: unknown[]) => Promise<never>
      let turn = 0
      vi.spyOn(fabric.manager.service, when).mockImplementation(async (...given: unknown[]) => {
        turn += 1
        // The second look of this append, or its number; the other writer's own come after.
        if (turn === (when === 'recent' ? 2 : 1)) await fabric.client('other').append(blob, other)
        return await original(...given)
      })
      const appended = await client.append(blob, stream(cut(own, 1000, 5000)))
      expect(appended).toMatchObject({ version: 3, size: before.length + moved + own.length, bytesChanged: own.length })
      expect(Buffer.compare(await contentOf(client, appended), Buffer.concat([before, other, own]))).toBe(0)
    }
  })

  test('of nothing is a version of the same content', async () => {
    const client = new MemoryFabric().client()
    const content = bytesFrom(1, CHUNK + 10)
    const blob = await blobOf(client, content)
    for (const version of [await client.append(blob, stream([])), await client.write(blob, stream([])), await client.write(blob, stream([{ offset: 9 * CHUNK, bytes: new Uint8Array(0) }]))]) {
      expect(version).toMatchObject({ size: content.length, bytesChanged: 0 })
      expect(Buffer.compare(await contentOf(client, version), content)).toBe(0)
    }
  })
})

describe('a read as a stream', () => {
  test('is the same as one in memory', async () => {
    const fabric = new MemoryFabric()
    const client = fabric.client()
    const blob = await blobOf(client, bytesFrom(1, 3 * CHUNK + 10))
    const version = await client.write(blob, [{ offset: 7 * CHUNK - 3, bytes: bytesFrom(2, CHUNK + 20) }])
    await fc.assert(fc.asyncProperty(fc.nat(9 * CHUNK), fc.nat(9 * CHUNK), async (offset, size) => {
      const expected = await client.read(version, offset, size)
      const items = await itemsOf(readVersion(version, { offset, size }, { blobs: client, chunks: fabric.chunks }))
      const end = items.pop()
      expect(end).toEqual({ size: expected.length })
      const read = new Uint8Array(expected.length)
      let done = 0
      for (const item of items) {
        if (!('bytes' in item)) throw new Error('a second end')
        expect(item.offset).toBeGreaterThanOrEqual(done)
        expect(item.bytes.length).toBeGreaterThan(0)
        read.set(item.bytes, item.offset)
        done = item.offset + item.bytes.length
      }
      expect(Buffer.compare(read, expected)).toBe(0)
    }), { numRuns: 200 })
  })

  test('of four petabytes of holes costs the nodes above what is stored', async () => {
    const fabric = new MemoryFabric()
    const client = fabric.client()
    const { blob } = await client.create({ chunkSize: CHUNK, fanOut: 64 })
    const tail = bytesFrom(1, 10)
    const edges = [TIB, 4096 * TIB]
    let version = await client.recent(blob)
    for (const edge of edges) version = await client.write(blob, stream([{ offset: edge - 5, bytes: tail }]))
    const get = vi.spyOn(fabric.records, 'get')
    const items = await itemsOf(exportVersion(version, { blobs: fabric.client('reader'), chunks: fabric.chunks }))
    const lengths = items.map((item) => 'bytes' in item ? [item.offset, item.bytes.length] : [item.size])
    expect(lengths).toEqual([[TIB - CHUNK, CHUNK], [TIB, 5], [4096 * TIB - CHUNK, CHUNK], [4096 * TIB, 5], [4096 * TIB + 5]])
    expect(get.mock.calls.length).toBeLessThan(20)
  })
})
