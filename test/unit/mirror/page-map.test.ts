import { mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { PAGE_BYTES, PAGE_VALID, PageMap, runsOf, SECTOR_BYTES, sectorMask } from '../../../src/mirror/page-map.ts'

describe('the page map', () => {
  let folder: string
  let fd: number

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'p2pvm-map-'))
    fd = openSync(join(folder, 'map'), 'w+')
  })

  afterEach(() => { rmSync(folder, { recursive: true }) })

  const onDisk = (): number[] => [...readFileSync(join(folder, 'map'))]

  it('has a bit for each sector of a range', () => {
    expect(sectorMask(0, 0, PAGE_BYTES)).toBe(PAGE_VALID)
    expect(sectorMask(0, 512, 1024)).toBe(0b10)
    expect(sectorMask(1, 0, PAGE_BYTES + 512)).toBe(1)
    expect(sectorMask(1, 2 * PAGE_BYTES - 512, 9 * PAGE_BYTES)).toBe(0x80)
    expect(sectorMask(3, 0, PAGE_BYTES)).toBe(0)
    expect(sectorMask(0, PAGE_BYTES, 2 * PAGE_BYTES)).toBe(0)
  })

  it('writes what it marks to the file, and only adds bits', () => {
    const map = PageMap.forSize(5 * PAGE_BYTES)
    map.mark(fd, 512, 1024)
    map.mark(fd, PAGE_BYTES - 512, 3 * PAGE_BYTES + 512)
    map.mark(fd, 0, 512)
    expect([...map.bytes]).toEqual([0x83, 0xff, 0xff, 0x01, 0])
    expect(onDisk()).toEqual([0x83, 0xff, 0xff, 0x01])
  })

  it('leaves the file alone when every bit is there', () => {
    const map = PageMap.forSize(4 * PAGE_BYTES)
    map.mark(fd, 0, 4 * PAGE_BYTES)
    map.touched.fill(0)
    map.mark(-1, PAGE_BYTES, 2 * PAGE_BYTES + 512) // a descriptor that fails
    expect(map.touched[0]).toBe(0)
  })

  it('does not show a bit that could not be written down', () => {
    const map = PageMap.forSize(PAGE_BYTES)
    expect(() => { map.mark(-1, 0, 512) }).toThrow()
    expect(map.validAt(0)).toBe(0)
    map.mark(fd, 0, 512) // and the lock is free
    expect(map.validAt(0)).toBe(1)
  })

  it('loses no bit to threads that mark sectors of the same page', async () => {
    const pages = 4000
    const map = PageMap.forSize(pages * PAGE_BYTES)
    const workers = 4
    await Promise.all(Array.from({ length: workers }, async (_, worker) => {
      const thread = new Worker(new URL('../../harness/page-map-worker.ts', import.meta.url), { workerData: { shared: map.shared, fd, worker, workers } })
      await new Promise<void>((resolve, reject) => { thread.on('exit', () => { resolve() }).on('error', reject) })
    }))
    expect(map.bytes.every((mask) => mask === PAGE_VALID)).toBe(true)
    expect(onDisk().every((mask) => mask === PAGE_VALID)).toBe(true)
    expect(onDisk()).toHaveLength(pages)
  })
})

describe('runsOf', () => {
  const runs = (masks: number[], bytesMax = Infinity): Array<[number, number]> =>
    [...runsOf((page) => masks[page] ?? 0, 0, masks.length, bytesMax)].map(({ from, to }) => [from / SECTOR_BYTES, to / SECTOR_BYTES])

  it('merges neighbours over pages', () => {
    expect(runs([0, 0x80, 0xff, 0x01, 0x05])).toEqual([[15, 25], [32, 33], [34, 35]])
    expect(runs([])).toEqual([])
    expect(runs([0, 0])).toEqual([])
    expect(runs([0xff, 0xff])).toEqual([[0, 16]])
  })

  it('cuts what is too long', () => {
    expect(runs([0xff, 0xff, 0xff], PAGE_BYTES)).toEqual([[0, 8], [8, 16], [16, 24]])
  })
})
