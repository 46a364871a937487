/** The order of what an overlay makes durable: the pages first, then the map that says they are there. */
import { mkdtempSync, readFileSync, rmSync, writeSync } from 'node:fs'
import type * as fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { Overlay } from '../../../src/mirror/overlay.ts'
import { PAGE_BYTES, PAGE_VALID } from '../../../src/mirror/page-map.ts'

const SIZE = 4 * PAGE_BYTES

/** Told of each fdatasync before it begins, and what its end waits for. */
const disk = vi.hoisted(() => ({ onSync: (_fd: number): void => {}, held: Promise.resolve() }))

vi.mock('node:fs', async (original) => {
  const real = await original<typeof fs>()
  return { ...real, fdatasync: (fd: number, done: (error: Error | null) => void) => {
    disk.onSync(fd)
    void disk.held.then(() => { real.fdatasync(fd, done) }, done)
  } }
})

let folder: string
let overlay: Overlay

beforeEach(async () => {
  disk.onSync = () => {}
  disk.held = Promise.resolve()
  folder = mkdtempSync(join(tmpdir(), 'p2pvm-overlay-sync-'))
  overlay = await Overlay.open(folder, SIZE)
})

afterEach(async () => {
  await overlay.close()
  rmSync(folder, { recursive: true })
})

function write (page: number): void {
  const { pagesFd, mapFd } = overlay.view()
  writeSync(pagesFd, Buffer.alloc(PAGE_BYTES, 1), 0, PAGE_BYTES, page * PAGE_BYTES)
  overlay.map.mark(mapFd, page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
}

const synced = (): number[] => [...readFileSync(join(folder, 'map.synced'))]

it('the map of what is synced says nothing of a page before the page is durable', async () => {
  write(0)
  const seen: Array<{ pages: boolean, map: number[] }> = []
  disk.onSync = (fd) => {
    seen.push({ pages: fd === overlay.view().pagesFd, map: synced() })
    // What comes while the pages are on their way to the disk may miss it.
    if (seen.length === 1) write(1)
  }
  await overlay.sync()
  expect(seen).toEqual([{ pages: true, map: [] }, { pages: false, map: [PAGE_VALID, 0, 0, 0] }])
  await overlay.sync()
  expect(synced()).toEqual([PAGE_VALID, PAGE_VALID, 0, 0])
})

it('a sync that fails is made up for by the next', async () => {
  write(2)
  disk.onSync = () => { throw new Error('the disk failed') }
  await expect(overlay.sync()).rejects.toThrow('the disk failed')
  expect(synced()).toEqual([])
  disk.onSync = () => {}
  await overlay.sync()
  expect(synced()).toEqual([0, 0, PAGE_VALID, 0])
})

it('writing back makes nothing count as synced, and goes one at a time', async () => {
  const { promise, resolve } = Promise.withResolvers<void>()
  const seen: number[] = []
  disk.onSync = (fd) => { seen.push(fd) }
  disk.held = promise
  write(1)
  overlay.writeBack()
  overlay.writeBack()
  expect(seen).toEqual([overlay.view().pagesFd])
  disk.held = Promise.resolve()
  let closed = false
  const closing = overlay.sync().then(() => { closed = true })
  await new Promise((done) => { setTimeout(done, 20) })
  expect(closed, 'a sync has not heard yet what becomes of it').toBe(false)
  expect(synced()).toEqual([])
  resolve()
  await closing
  expect(synced()).toEqual([0, PAGE_VALID, 0, 0])
  overlay.writeBack()
  expect(seen.length).toBe(4)
})

it('whoever syncs next is told of pages that could not be written back, once', async () => {
  write(3)
  disk.held = Promise.reject(new Error('the disk failed'))
  overlay.writeBack()
  disk.held = Promise.resolve()
  await expect(overlay.sync()).rejects.toThrow('the disk failed')
  expect(synced()).toEqual([])
  await overlay.sync()
  expect(synced()).toEqual([0, 0, 0, PAGE_VALID])
})
