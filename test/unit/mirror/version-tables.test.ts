import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import type { ChunkFiles } from '../../../src/mirror/chunk-files.ts'
import { FileView, type ReadChunks } from '../../../src/mirror/file-view.ts'
import { PAGE_BYTES, PageMap } from '../../../src/mirror/page-map.ts'
import type { VersionTable } from '../../../src/mirror/version-table.ts'
import { VersionTables } from '../../../src/mirror/version-tables.ts'
import { FakeClock } from '../../harness/fake-clock.ts'

const CHUNK = 64 * 1024
const REF = { blob: 'abcdefghijklmnop', version: 1, size: 4 * CHUNK, chunkSize: CHUNK }

let folder: string
let tables: VersionTables

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'p2pvm-tables-'))
  const source = { chunkIds: async () => await Promise.reject(new Error('nobody asks')) }
  const chunkFiles = { release: async () => {} } as unknown as ChunkFiles
  tables = new VersionTables({ source, clock: new FakeClock(), folder }, chunkFiles)
})

afterEach(() => { rmSync(folder, { recursive: true }) })

function viewOf (table: VersionTable, top?: PageMap): FileView {
  return new FileView({ fh: 1, size: REF.size, base: table.view, top: top === undefined ? undefined : { pagesFd: -1, mapFd: -1, map: top.shared }, routeWrites: true })
}

it('a version has one table, which knows how many files go by it, and another version has another', async () => {
  const table = tables.acquire(REF)
  const view = viewOf(table)
  expect(view.isAloneOnVersion).toBe(true)
  expect(tables.acquire({ ...REF })).toBe(table)
  expect(view.isAloneOnVersion).toBe(false)
  const other = tables.acquire({ ...REF, version: 2 })
  expect(viewOf(other).isAloneOnVersion).toBe(true)
  expect(viewOf(other).table).not.toBe(view.table)
  await tables.release(table)
  expect(view.isAloneOnVersion).toBe(true)
})

it('a table that was dropped leaves its number to nobody', async () => {
  const numbers = new Set<number>()
  for (let version = 1; version <= 20; version++) {
    const table = tables.acquire({ ...REF, version })
    numbers.add(viewOf(table).table)
    await tables.release(table)
  }
  const again = tables.acquire(REF)
  expect(numbers.size).toBe(20)
  expect(numbers).not.toContain(viewOf(again).table)
})

it('what a ring has of a chunk is not read from its file; what was written over it is not asked for there', () => {
  const table = tables.acquire(REF)
  new Int32Array(table.view.slots).fill(1_000_000) // no descriptor
  const asked: number[][] = []
  const ring: ReadChunks = {
    read: (number, index, chunkSize, within, to, at, length) => {
      asked.push([number, index, chunkSize, within, at, length])
      to.fill(index, at, at + length)
      return true
    }
  }
  const written = PageMap.forSize(REF.size)
  const bytes = Buffer.alloc(2 * CHUNK + 1)
  expect(viewOf(table, written).readInto(bytes, 1, CHUNK + 100, 3 * CHUNK, ring)).toBe(true)
  expect(asked).toEqual([[table.view.id, 1, CHUNK, 100, 1, CHUNK - 100], [table.view.id, 2, CHUNK, 0, CHUNK - 99, CHUNK]])
  expect(bytes.subarray(1, CHUNK - 99).every((byte) => byte === 1) && bytes.subarray(CHUNK - 99, 2 * CHUNK - 99).every((byte) => byte === 2)).toBe(true)

  written.bytes.fill(0xff, CHUNK / PAGE_BYTES)
  expect(() => viewOf(table, written).readInto(bytes, 0, CHUNK, 2 * CHUNK, ring)).toThrow() // the overlay's file
  expect(asked).toHaveLength(2)
})
