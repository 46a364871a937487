import { mkdtempSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { FileView, planRead } from '../../../src/mirror/file-view.ts'
import { dirtyBytesOf, foldUnder, Overlay, readPageMap } from '../../../src/mirror/overlay.ts'
import { PAGE_BYTES, PageMap } from '../../../src/mirror/page-map.ts'
import { openSealedOverlay } from '../../../src/mirror/sealed-overlay.ts'

const PAGES = 10
const SIZE = PAGES * PAGE_BYTES - 1000 // ends within a sector

/** A file of holes below two overlays. */
function viewOf (top: Overlay | undefined, sealed?: Overlay): FileView {
  const slots = new SharedArrayBuffer(4)
  new Int32Array(slots).fill(-1)
  return new FileView({ fh: 1, size: SIZE, base: { id: 1, files: new SharedArrayBuffer(4), chunkSize: 65536, slots, used: new SharedArrayBuffer(1) }, top: top?.view(), sealed: sealed?.view(), routeWrites: false })
}

describe('an overlay', () => {
  let folder: string
  let overlay: Overlay
  const opened: Overlay[] = []

  const open = async (name: string): Promise<Overlay> => {
    const one = await Overlay.open(join(folder, name), SIZE)
    opened.push(one)
    return one
  }

  beforeEach(async () => {
    folder = mkdtempSync(join(tmpdir(), 'p2pvm-overlay-'))
    overlay = await open('top')
  })

  afterEach(async () => {
    for (const one of opened.splice(0)) await one.close()
    rmSync(folder, { recursive: true })
  })

  const write = (to: Overlay, from: number, end: number, byte: number): void => { viewOf(to).writeFrom(Buffer.alloc(end - from, byte), 0, from, end) }

  const contents = (...layers: [Overlay, Overlay?]): Buffer => {
    const bytes = Buffer.alloc(SIZE, 0xee)
    expect(viewOf(...layers).readInto(bytes, 0, 0, SIZE)).toBe(true)
    return bytes
  }

  /** As after a power cut: another boot, and only what was synced. */
  const cutPower = (name: string): void => { writeFileSync(join(folder, name, 'boot'), 'another boot') }

  it('has what was written, also for the next process of the same boot', async () => {
    write(overlay, 512, 1024, 1)
    write(overlay, 2 * PAGE_BYTES, 4 * PAGE_BYTES, 2)
    write(overlay, SIZE - SIZE % 512, SIZE, 3)
    const expected = Buffer.alloc(SIZE).fill(1, 512, 1024).fill(2, 2 * PAGE_BYTES, 4 * PAGE_BYTES).fill(3, SIZE - SIZE % 512)
    expect(contents(overlay).equals(expected)).toBe(true)
    // The first one is not closed: its process was killed.
    const again = await open('top')
    expect(contents(again).equals(expected)).toBe(true)
    expect(dirtyBytesOf(again.map.bytes, SIZE)).toBe(512 + 2 * PAGE_BYTES + SIZE % 512)
    expect(await readPageMap(join(folder, 'top'), SIZE)).toEqual(new Uint8Array(again.map.bytes))
  })

  it('does not show bytes whose bits were not written: a server killed between the two', async () => {
    const { pagesFd } = overlay.view()
    writeSync(pagesFd, Buffer.alloc(PAGE_BYTES, 9), 0, PAGE_BYTES, 0)
    expect(contents(await open('top')).every((byte) => byte === 0)).toBe(true)
  })

  it('does not set bits for bytes that could not be written', () => {
    const base = { id: 1, files: new SharedArrayBuffer(4), chunkSize: 65536, slots: new SharedArrayBuffer(4), used: new SharedArrayBuffer(1) }
    const failing = new FileView({ fh: 1, size: SIZE, base, top: { ...overlay.view(), pagesFd: -1 }, sealed: undefined, routeWrites: false })
    expect(() => { failing.writeFrom(Buffer.alloc(PAGE_BYTES, 1), 0, 0, PAGE_BYTES) }).toThrow()
    expect(overlay.map.validAt(0)).toBe(0)
    expect([...readFileSync(join(folder, 'top', 'map.live'))].some((mask) => mask !== 0)).toBe(false)
  })

  it('keeps after a power cut what was synced, and nothing of what was not', async () => {
    write(overlay, 0, PAGE_BYTES, 1)
    await overlay.sync()
    write(overlay, PAGE_BYTES, 2 * PAGE_BYTES, 2)
    cutPower('top')
    const again = await open('top')
    expect(contents(again).equals(Buffer.alloc(SIZE).fill(1, 0, PAGE_BYTES))).toBe(true)
    // It works as before in the new boot: killed, and opened again.
    write(again, 3 * PAGE_BYTES, 4 * PAGE_BYTES, 3)
    const third = await open('top')
    expect(contents(third).equals(Buffer.alloc(SIZE).fill(1, 0, PAGE_BYTES).fill(3, 3 * PAGE_BYTES, 4 * PAGE_BYTES))).toBe(true)
  })

  it('syncs what an earlier process of this boot wrote and did not sync', async () => {
    write(overlay, 0, PAGE_BYTES, 1)
    const again = await open('top')
    await again.sync()
    cutPower('top')
    expect(contents(await open('top')).equals(Buffer.alloc(SIZE).fill(1, 0, PAGE_BYTES))).toBe(true)
  })

  it('is right with any mixture of old and new bytes in map.synced', async () => {
    const path = join(folder, 'top', 'map.synced')
    write(overlay, 0, 512, 1)
    await overlay.sync()
    const before = Buffer.alloc(PAGES)
    readFileSync(path).copy(before)
    write(overlay, 0, 5 * PAGE_BYTES, 2)
    await overlay.sync()
    const after = readFileSync(path)
    await overlay.close()
    opened.splice(0)
    for (let torn = 0; torn < 1 << 5; torn++) {
      writeFileSync(path, Uint8Array.from(after, (byte, page) => (torn & (1 << page)) !== 0 ? byte : before[page] ?? 0))
      cutPower('top')
      const again = await open('top')
      for (let page = 0; page < 5; page++) {
        const kept = (torn & (1 << page)) !== 0
        expect(contents(again)[page * PAGE_BYTES + 600]).toBe(kept ? 2 : 0)
      }
      expect(contents(again)[0]).toBe(2) // overwritten where it was valid: the pages were synced before
      await again.close()
      opened.splice(0)
    }
  })

  it('shares one sync among those who wait, and none of them returns before its writes are down', async () => {
    const synced = (): number[] => [...readFileSync(join(folder, 'top', 'map.synced'))]
    write(overlay, 0, PAGE_BYTES, 1)
    const first = overlay.sync()
    write(overlay, PAGE_BYTES, 2 * PAGE_BYTES, 1)
    const second = overlay.sync()
    await Promise.all([first, second])
    expect(synced().slice(0, 2)).toEqual([0xff, 0xff])
    write(overlay, 2 * PAGE_BYTES, 3 * PAGE_BYTES, 1)
    await overlay.sync()
    expect(synced()[2]).toBe(0xff)
  })

  it('folds under a newer one: sectors that the newer one has stay', async () => {
    const sealed = await open('sealed')
    write(sealed, 0, 6 * PAGE_BYTES, 1)
    write(overlay, 512, 1024, 2)
    write(overlay, 3 * PAGE_BYTES, 4 * PAGE_BYTES, 2)
    const before = contents(overlay, sealed)
    await foldUnder(overlay, sealed, async () => {})
    expect(contents(overlay).equals(before)).toBe(true)
    cutPower('top')
    expect(contents(await open('top')).equals(before)).toBe(true)
  })

  it('is read chunk by chunk when it is sealed', async () => {
    write(overlay, PAGE_BYTES, 2 * PAGE_BYTES, 1)
    write(overlay, 8 * PAGE_BYTES, SIZE, 2)
    const sealed = await openSealedOverlay(overlay.folder, { chunkSize: 2 * PAGE_BYTES, size: SIZE })
    expect([...sealed.dirtyChunks()]).toEqual([0, 4])
    expect(sealed.dirtyBytes()).toBe(PAGE_BYTES + SIZE - 8 * PAGE_BYTES)
    expect([sealed.coversChunk(0), sealed.coversChunk(4)]).toEqual([false, true])
    expect(sealed.chunkBytes(4)).toBe(2 * PAGE_BYTES - 1000)
    const bytes = new Uint8Array(2 * PAGE_BYTES).fill(7)
    await sealed.readOver(0, bytes)
    expect([...bytes.subarray(PAGE_BYTES - 1, PAGE_BYTES + 1)]).toEqual([7, 1])
    const last = new Uint8Array(sealed.chunkBytes(4))
    await sealed.readOver(4, last)
    expect(last.every((byte) => byte === 2)).toBe(true)
    await sealed.close()
  })
})

describe('planRead', () => {
  it('merges what one layer has, and goes down to sectors only where pages are mixed', () => {
    const top = PageMap.forSize(8 * PAGE_BYTES)
    const sealed = PageMap.forSize(8 * PAGE_BYTES)
    top.bytes.set([0xff, 0xff, 0x02, 0, 0, 0, 0xff, 0])
    sealed.bytes.set([0x0f, 0, 0x06, 0xff, 0xff, 0, 0, 0])
    const plan = planRead(100, 8 * PAGE_BYTES, top, sealed).map(({ layer, from, to }) => [layer, from, to])
    expect(plan).toEqual([
      ['top', 100, 8192], ['base', 8192, 8704], ['top', 8704, 9216], ['sealed', 9216, 9728], ['base', 9728, 12288],
      ['sealed', 12288, 20480], ['base', 20480, 24576], ['top', 24576, 28672], ['base', 28672, 32768]
    ])
  })

  it('is one segment without overlays, and none for nothing', () => {
    expect(planRead(5, 1_000_000, undefined, undefined)).toEqual([{ layer: 'base', from: 5, to: 1_000_000 }])
    expect(planRead(5, 5, PageMap.forSize(PAGE_BYTES), undefined)).toEqual([])
  })
})
