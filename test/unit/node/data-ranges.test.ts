import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { dataRanges, rangesOf, windowsOf } from '../../../src/node/data-ranges.ts'
import { openImportSource } from '../../../src/node/import-source.ts'

const MIB = 1024 * 1024
const folder = mkdtempSync(join(tmpdir(), 'p2pvm-ranges-'))
const never = new AbortController().signal
afterAll(() => { rmSync(folder, { recursive: true }) })

const entry = (start: number, length: number, zero: boolean): object => ({ start, length, depth: 0, present: true, zero, data: !zero, offset: start })

describe('a map by qemu-img', () => {
  it('joins what touches, and leaves out holes', () => {
    expect(rangesOf([entry(0, 4096, false), entry(4096, 512, false), entry(4608, 3584, true), entry(8192, 4096, false)], 12_288))
      .toEqual([{ start: 0, end: 4608 }, { start: 8192, end: 12_288 }])
  })

  it('counts whole sectors: the last may reach past the end', () => {
    expect(rangesOf([entry(0, 512, false)], 1)).toEqual([{ start: 0, end: 512 }])
    expect(rangesOf([entry(0, 1024, false)], 1)).toBeUndefined()
  })

  it.each([
    ['no array', {}],
    ['a gap', [entry(0, 512, false), entry(1024, 512, false)]],
    ['too short', [entry(0, 512, false)]],
    ['other fields', [{ start: 0, length: 1536 }]],
    ['a length that is none', [{ start: 0, length: 'all', zero: false }]]
  ])('is no map: %s', (_, map) => {
    expect(rangesOf(map, 1536)).toBeUndefined()
  })
})

describe('windows', () => {
  const windows = (ranges: Array<[number, number]>, size = 100): number[][] =>
    [...windowsOf(ranges.map(([start, end]) => ({ start, end })), { chunkSize: 4, stepBytes: 16, size })].map(({ start, end }) => [start, end])

  it('are whole chunks around the data, and cut at the end of the file', () => {
    expect(windows([[5, 6], [97, 112]], 99)).toEqual([[4, 8], [96, 99]])
  })

  it('are no longer than a step', () => {
    expect(windows([[0, 40]])).toEqual([[0, 16], [16, 32], [32, 40]])
  })

  it('do not overlap where two ranges share a chunk', () => {
    expect(windows([[0, 5], [6, 9], [10, 11]])).toEqual([[0, 8], [8, 12]])
  })
})

describe('a sparse file', () => {
  const path = join(folder, 'sparse.img')
  execFileSync('truncate', ['-s', String(64 * MIB + 100), path])
  const write = (at: number, text: string): void => {
    execFileSync('dd', [`of=${path}`, 'bs=1', `seek=${at}`, 'conv=notrunc', 'status=none'], { input: text })
  }
  write(10 * MIB, 'in the middle')
  write(64 * MIB + 96, 'end!')

  it('is data around what was written, and holes elsewhere', async () => {
    const file = await open(path)
    const { size, blocks } = await file.stat()
    const ranges = await dataRanges(file.fd, { size, blocks }, never)
    await file.close()
    expect(ranges.every(({ start, end }) => start < end)).toBe(true)
    expect(ranges.some(({ start, end }) => start <= 10 * MIB && end >= 10 * MIB + 13)).toBe(true)
    expect(ranges.reduce((sum, { start, end }) => sum + end - start, 0)).toBeLessThan(MIB)
  })

  it('is one range where qemu-img is not to be had', async () => {
    const file = await open(path)
    const { size, blocks } = await file.stat()
    const { PATH } = process.env
    process.env['PATH'] = folder
    try {
      expect(await dataRanges(file.fd, { size, blocks }, never)).toEqual([{ start: 0, end: size }])
    } finally {
      process.env['PATH'] = PATH
      await file.close()
    }
  })

  it('is imported whole', async () => {
    const source = await openImportSource(path, { chunkSize: 65_536, signal: never, stdin: process.stdin })
    const items = []
    for await (const item of source.items()) items.push(item)
    await source.close()
    expect(items.map((item) => 'size' in item ? item.size : [item.offset, item.bytes.length])).toEqual([[10 * MIB, 65_536], [64 * MIB, 100], 64 * MIB + 100])
    const [middle, end] = items as Array<{ bytes: Uint8Array }>
    expect(Buffer.from(middle!.bytes.subarray(0, 13)).toString()).toBe('in the middle')
    expect(Buffer.from(end!.bytes.subarray(96)).toString()).toBe('end!')
  })
})
