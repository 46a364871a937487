/** A disk that is really full: a small tmpfs, filled behind the stores' backs. */
import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { DiskChunkStore } from '../../src/dht/disk-chunk-store.ts'
import { LOG_BYTES } from '../../src/dht/logged-store.ts'
import { openStore } from '../../src/dht/open-store.ts'
import { nodeDisk } from '../../src/dht/node-disk.ts'
import { RecordStore } from '../../src/dht/record-store.ts'
import { createCounters, nodeClock } from '../../src/node/world.ts'
import { chunkIdOf } from '../../src/protocols/cid.ts'
import { describeWith } from '../harness/capabilities.ts'

const run = promisify(execFile)
const silentLog = { debug () {}, info () {}, warn () {}, error () {} }
const MIB = 1024 * 1024
const ENTRY_BYTES = 16 * 1024

describeWith(['root'], 'a full disk', () => {
  let mountpoint: string
  beforeEach(async () => {
    mountpoint = await mkdtemp(join(tmpdir(), 'p2pvm-full-'))
    await run('mount', ['-t', 'tmpfs', '-o', 'size=8m', 'p2pvm-test', mountpoint])
  })
  afterEach(async () => {
    await run('umount', [mountpoint])
    await rm(mountpoint, { recursive: true })
  })

  const fill = async (): Promise<void> => {
    await writeFile(join(mountpoint, 'filler'), Buffer.alloc(16 * MIB, 1)).catch((error: { code: string }) => { expect(error.code).toBe('ENOSPC') })
  }

  it('is reported by the chunk store, which leaves nothing behind and goes on when there is room', async () => {
    const root = join(mountpoint, 'chunks')
    const store = await DiskChunkStore.open({ disk: nodeDisk, clock: nodeClock, log: silentLog, counters: createCounters() }, { root, durable: true, freeFloorBytes: 0 })
    const [first, second] = [Buffer.alloc(MIB, 'first'), Buffer.alloc(MIB, 'second')]
    await store.put(chunkIdOf(first), first)
    await fill()

    const refused = await store.put(chunkIdOf(second), second).catch((error: unknown) => error)
    expect(refused).toMatchObject({ code: 'ERR_DISK_FULL', cause: { code: 'ENOSPC' } })
    expect(await readdir(join(root, 'tmp'))).toEqual([])
    expect(await store.have([chunkIdOf(first), chunkIdOf(second)])).toEqual([true, false])
    expect(Buffer.compare(await store.get(chunkIdOf(first)) ?? Buffer.of(), first)).toBe(0)

    await rm(join(mountpoint, 'filler'))
    expect(await store.put(chunkIdOf(second), second)).toBe(true)
    expect(store.usage()).toEqual({ chunks: 2, bytes: 2 * MIB })
  })

  it('is full for lmdb, and not for the log: both of its files fill, then writes are refused, and nothing is lost', async () => {
    const folder = join(mountpoint, 'records')
    await mkdir(folder)
    const path = join(folder, 'records.lmdb')
    let database = await openStore(path)
    const number = (index: number): string => String(index).padStart(6, '0')
    const kept: string[] = []
    const write = async (index: number): Promise<void> => {
      await database.write([{ key: `entry/${number(index)}`, value: Buffer.alloc(ENTRY_BYTES, number(index)) }])
      kept.push(number(index))
    }
    const expectKept = (): void => {
      const entries = [...database.range({ start: 'entry/', end: 'entry/~' })]
      expect(entries.map(({ key }) => key)).toEqual(kept.map((one) => `entry/${one}`))
      for (const { key, value } of entries) expect(Buffer.compare(value, Buffer.alloc(ENTRY_BYTES, key.slice(-6)))).toBe(0)
    }
    const writeUntilRefused = async (from: number): Promise<unknown> => {
      for (let index = from; index < from + 5 * LOG_BYTES / ENTRY_BYTES; index++) {
        const refused = await write(index).then(() => undefined, (error: unknown) => error)
        if (refused !== undefined) return refused
      }
      return undefined
    }
    try {
      // The log has its blocks: of each of its files, LOG_BYTES and an entry.
      for (let index = 0; index * ENTRY_BYTES < 2.2 * LOG_BYTES; index++) await database.write([{ key: `entry/${number(index % 2)}`, value: Buffer.alloc(ENTRY_BYTES, number(index % 2)) }])
      kept.push(number(0), number(1))
      await fill()
      expect(await writeUntilRefused(2)).toMatchObject({ code: 'ERR_DISK_FULL' })
      expect(kept.length * ENTRY_BYTES, 'more than one file of the log').toBeGreaterThan(LOG_BYTES)
      expectKept()
      expect(await writeUntilRefused(900_000), 'each is tried anew').toMatchObject({ code: 'ERR_DISK_FULL' })
      expectKept()

      await database.close()
      database = await openStore(path)
      expectKept()
      expect(await writeUntilRefused(800_000), 'a start changes nothing').toMatchObject({ code: 'ERR_DISK_FULL' })
      await rm(join(mountpoint, 'filler'))
      await write(900_001)
      expectKept()
      await database.close()
      database = await openStore(path)
      expectKept()
    } finally {
      await database.close()
    }
  })

  it('goes on without a restart when there is room again, though lmdb could not take what is in the log', async () => {
    await mkdir(join(mountpoint, 'records'))
    const database = await openStore(join(mountpoint, 'records', 'records.lmdb'))
    try {
      const write = async (index: number): Promise<void> => { await database.write([{ key: `entry/${index}`, value: Buffer.alloc(ENTRY_BYTES, `${index}`) }]) }
      for (let index = 0; index * ENTRY_BYTES < 2.2 * LOG_BYTES; index++) await write(index % 2)
      await fill()
      let kept = 2
      while (kept * ENTRY_BYTES < 5 * LOG_BYTES && await write(kept).then(() => true, () => false)) kept += 1
      expect(kept * ENTRY_BYTES).toBeLessThan(3 * LOG_BYTES)
      await rm(join(mountpoint, 'filler'))
      for (let index = 0; index * ENTRY_BYTES < 2.2 * LOG_BYTES; index++) await write(index % 2)
      expect([...database.range({ start: 'entry/', end: 'entry/~' })]).toHaveLength(kept)
    } finally {
      await database.close()
    }
  })

  it('is reported by the record store, which goes on when there is room', async () => {
    await mkdir(join(mountpoint, 'records'))
    const database = await openStore(join(mountpoint, 'records', 'records.lmdb'))
    try {
      const store = new RecordStore({ store: database, clock: nodeClock })
      const record = (index: number): { name: string, value: Uint8Array } => ({ name: `node/${index}`, value: Buffer.alloc(100_000, `${index}`) })
      await store.put([record(0)])
      await fill()
      await expect(store.put([record(1), record(2), record(3)])).rejects.toMatchObject({ code: 'ERR_DISK_FULL' })
      const several = await Promise.allSettled([4, 5, 6, 7].map(async (index) => await store.put([record(index), record(index + 10), record(index + 20)])))
      expect(several.map((outcome) => (outcome as { reason?: { code?: string } }).reason?.code)).toEqual(Array(4).fill('ERR_DISK_FULL'))
      expect(store.get('node/1')).toBeUndefined()
      expect(store.get('node/0')?.length).toBe(100_000)
      expect(store.count()).toBe(1)

      await rm(join(mountpoint, 'filler'))
      expect(await store.put([record(1)])).toEqual(['stored'])
      expect(store.get('node/1')?.length).toBe(100_000)
    } finally {
      await database.close()
    }
  })
})
