/** Zeros that take no space, on a file of this disk, which may be told to have no holes or to fail. */
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { readFully, writeFully } from '../../../src/mirror/files.ts'
import { zero } from '../../../src/mirror/holes.ts'
import { Overlay } from '../../../src/mirror/overlay.ts'
import { PAGE_BYTES } from '../../../src/mirror/page-map.ts'
import type * as systemCalls from '../../../src/mirror/system-calls.ts'

const disk = vi.hoisted((): { punches: Array<[offset: number, length: number]>, hasHoles: boolean, error: Error | undefined } =>
  ({ punches: [], hasHoles: true, error: undefined }))

vi.mock('../../../src/mirror/system-calls.ts', async (original) => {
  const real = await original<typeof systemCalls>()
  const punchHole: typeof real.punchHole = (fd, offset, length) => {
    disk.punches.push([offset, length])
    if (disk.error !== undefined) throw disk.error
    return disk.hasHoles && real.punchHole(fd, offset, length)
  }
  return { ...real, punchHole }
})

const MIB = 1024 * 1024
const SIZE = 8 * MIB

let folder: string
let path: string
let fd: number

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'p2pvm-holes-'))
  path = join(folder, 'pages')
  writeFileSync(path, '')
  truncateSync(path, SIZE)
  fd = openSync(path, 'r+')
  Object.assign(disk, { punches: [], hasHoles: true, error: undefined })
})

afterEach(() => {
  closeSync(fd)
  rmSync(folder, { recursive: true })
})

const fill = (from: number, to: number): void => { writeFully(fd, Buffer.alloc(to - from, 1), 0, to - from, from) }
const taken = (): number => statSync(path).blocks * 512
const filled = (from: number, to: number): Buffer => Buffer.alloc(SIZE).fill(1, from, to)

describe('the zeros of a file', () => {
  it('take no space where they are whole pages, and are written at both ends', () => {
    fill(MIB, 2 * MIB)
    zero(fd, MIB + PAGE_BYTES + 512, MIB + 8 * PAGE_BYTES - 512, MIB + 8 * PAGE_BYTES - 512)
    expect(disk.punches).toEqual([[MIB + 2 * PAGE_BYTES, 5 * PAGE_BYTES]])
    expect(taken()).toBe(MIB - 5 * PAGE_BYTES)
    expect(readFileSync(path).equals(filled(MIB, 2 * MIB).fill(0, MIB + PAGE_BYTES + 512, MIB + 8 * PAGE_BYTES - 512))).toBe(true)
  })

  it('are given back of a single page, and of all of a large file', () => {
    fill(0, SIZE)
    zero(fd, 3 * PAGE_BYTES, 4 * PAGE_BYTES, 4 * PAGE_BYTES)
    expect(taken()).toBe(SIZE - PAGE_BYTES)
    zero(fd, 0, SIZE, SIZE)
    expect(taken()).toBe(0)
    expect(readFileSync(path).equals(Buffer.alloc(SIZE))).toBe(true)
  })

  it('are written within a page, and not where there are zeros or a hole', () => {
    fill(2 * MIB, 2 * MIB + PAGE_BYTES)
    zero(fd, MIB + 512, MIB + 1024, MIB + 1024) // nothing there
    zero(fd, 2 * MIB - 5 * 512, 2 * MIB + 512, 2 * MIB + 512) // a sector of what is
    expect(disk.punches).toEqual([])
    expect(taken()).toBe(PAGE_BYTES)
    expect(readFileSync(path).equals(filled(2 * MIB + 512, 2 * MIB + PAGE_BYTES))).toBe(true)
  })

  it('to the end of the file, in the middle of a page', () => {
    truncateSync(path, SIZE - 1000)
    fill(SIZE - 2 * PAGE_BYTES, SIZE - 1000)
    zero(fd, SIZE - 2 * PAGE_BYTES, SIZE - 1000, SIZE)
    expect([taken(), statSync(path).size]).toEqual([0, SIZE - 1000])
    expect(readFileSync(path).equals(Buffer.alloc(SIZE - 1000))).toBe(true)
  })

  it('are zeros all the same on a disk that has no holes, and take no more space than before', () => {
    disk.hasHoles = false
    fill(MIB, 3 * MIB)
    zero(fd, 512, 3 * MIB - 512, 3 * MIB - 512)
    expect(disk.punches).toHaveLength(1)
    expect(taken()).toBe(2 * MIB)
    expect(readFileSync(path).equals(filled(3 * MIB - 512, 3 * MIB))).toBe(true)
  })
})

describe('an overlay', () => {
  it('gives the space of zeroed pages back, and has the zeros in the next process and after a power cut', async () => {
    const place = join(folder, 'punched')
    const blocks = (): number => statSync(join(place, 'pages')).blocks * 512
    const first = await Overlay.open(place, 8 * MIB)
    const { pagesFd, mapFd } = first.view()
    writeFully(pagesFd, Buffer.alloc(8 * MIB, 1), 0, 8 * MIB, 0)
    first.map.mark(mapFd, 0, 4 * MIB)
    await first.sync()
    expect(blocks()).toBeGreaterThanOrEqual(8 * MIB)
    first.zero(512, 8 * MIB - 512) // bytes without bits, too: a write that was not answered
    expect(blocks()).toBeLessThan(MIB)
    // Not closed: its process was killed.
    const killed = await Overlay.open(place, 8 * MIB)
    const bytes = Buffer.alloc(8 * MIB)
    readFully(killed.view().pagesFd, bytes, 0, 8 * MIB, 0)
    expect(bytes.equals(Buffer.alloc(8 * MIB).fill(1, 0, 512).fill(1, 8 * MIB - 512))).toBe(true)
    expect([killed.map.validAt(0), killed.map.validAt(1024), killed.map.validAt(2047)]).toEqual([0xff, 0xff, 0x7f])
    await killed.sync()
    writeFileSync(join(place, 'boot'), 'another boot')
    const later = await Overlay.open(place, 8 * MIB)
    expect([later.map.validAt(0), later.map.validAt(1024), later.map.validAt(2047)]).toEqual([0xff, 0xff, 0x7f])
    for (const one of [first, killed, later]) await one.close()
  })

  it('does not say that pages are zeros before they are', async () => {
    const overlay = await Overlay.open(join(folder, 'broken'), 8 * PAGE_BYTES)
    closeSync(overlay.view().pagesFd)
    expect(() => { overlay.zero(0, PAGE_BYTES) }).toThrow('EBADF')
    expect(overlay.map.validAt(0)).toBe(0)
    closeSync(overlay.view().mapFd)
  })

  it('says what a disk says that fails, and nothing is taken for zeros', async () => {
    const overlay = await Overlay.open(join(folder, 'overlay'), SIZE)
    disk.error = Object.assign(new Error('ENOSPC: no space left on device, fallocate'), { code: 'ENOSPC' })
    const { pagesFd } = overlay.view()
    writeFully(pagesFd, Buffer.alloc(2 * PAGE_BYTES, 1), 0, 2 * PAGE_BYTES, 0)
    expect(() => { overlay.zero(512, 4 * PAGE_BYTES) }).toThrow(disk.error)
    expect([overlay.map.validAt(0), overlay.map.validAt(1)]).toEqual([0, 0])
    expect(readFileSync(join(folder, 'overlay', 'pages')).subarray(0, 2 * PAGE_BYTES).equals(Buffer.alloc(2 * PAGE_BYTES, 1))).toBe(true)
    await overlay.close()
  })
})
