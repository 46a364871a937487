import { describe, expect, it } from 'vitest'
import { LEASE_MS } from '../../../src/dht/chunk-store.ts'
import { RECORD_LEASE_GRANULARITY_MS, RecordStore } from '../../../src/dht/record-store.ts'
import { RECORD_BYTES_MAX, RECORD_NAME_BYTES_MAX } from '../../../src/dht/records.ts'
import { FakeClock } from '../../harness/fake-clock.ts'
import { MemoryKeyValueStore } from '../../harness/memory-stores.ts'

const record = (name: string, text = name): { name: string, value: Uint8Array } => ({ name, value: new Uint8Array(Buffer.from(text)) })

function make (): { disk: MemoryKeyValueStore, store: RecordStore, clock: FakeClock } {
  const disk = new MemoryKeyValueStore()
  const clock = new FakeClock()
  return { disk, clock, store: new RecordStore({ store: disk, clock }) }
}

describe('record store', () => {
  it('gives back what was put', async () => {
    const { store } = make()
    expect(await store.put([record('node/a'), record('node/b', '')])).toEqual(['stored', 'stored'])
    expect(store.get('node/a')).toEqual(record('node/a').value)
    expect(store.get('node/b')).toEqual(new Uint8Array(0))
    expect(store.get('node/c')).toBeUndefined()
    expect(store.count()).toBe(2)
  })

  it('never changes a value; a conflict keeps only its own record out', async () => {
    const { store } = make()
    await store.put([record('a', 'first')])
    expect(await store.put([record('b'), record('a', 'second'), record('c')])).toEqual(['stored', 'conflict', 'stored'])
    expect(store.get('a')).toEqual(record('a', 'first').value)
    expect(store.get('c')).toBeDefined()
    expect(store.count()).toBe(3)
  })

  it('sees conflicts within a batch', async () => {
    const { store } = make()
    expect(await store.put([record('a', '1'), record('a', '2'), record('a', '1')])).toEqual(['stored', 'conflict', 'there'])
    expect(store.count()).toBe(1)
  })

  it('does not answer before another writer\'s write of the same record is on disk', async () => {
    const { store, disk } = make()
    const release = disk.hold()
    const first = store.put([record('a')])
    let answered = false
    const second = store.put([record('a')]).then((outcomes) => {
      answered = true
      return outcomes
    })
    await new Promise((resolve) => setImmediate(resolve))
    expect(answered).toBe(false)
    release()
    expect(await first).toEqual(['stored'])
    expect(await second).toEqual(['there'])
  })

  it('renews leases durably, at most once an hour', async () => {
    const { store, disk, clock } = make()
    const leaseEnd = (): number => Number(Buffer.from(disk.get('record/a') ?? []).readBigUInt64BE())
    await store.put([record('a')])
    expect(leaseEnd()).toBe(clock.now() + LEASE_MS)
    await clock.advance(RECORD_LEASE_GRANULARITY_MS)
    await store.put([record('a')])
    expect(disk.writes).toBe(1)
    await clock.advance(1)
    expect(await store.put([record('a')])).toEqual(['there'])
    expect(leaseEnd()).toBe(clock.now() + LEASE_MS)
    expect(store.count()).toBe(1)
  })

  it('counts what it finds when it is opened', async () => {
    const { store, disk, clock } = make()
    await store.put([record('a'), record('b')])
    await disk.write([{ key: 'record0', value: Buffer.from('not a record') }, { key: 'name/x', value: Buffer.from('nor this') }])
    expect(new RecordStore({ store: disk, clock }).count()).toBe(2)
  })

  it('does not count what could not be written', async () => {
    const { store, disk } = make()
    disk.fate = () => 'disk full'
    await expect(store.put([record('a')])).rejects.toMatchObject({ code: 'ERR_DISK_FULL' })
    expect(store.count()).toBe(0)
    disk.fate = () => 'kept'
    expect(await store.put([record('a')])).toEqual(['stored'])
  })

  it.each([
    ['', 'x'], ['with space', 'x'], ['line\nbreak', 'x'], ['ümlaut', 'x'],
    ['x'.repeat(RECORD_NAME_BYTES_MAX + 1), 'x'], ['large', 'x'.repeat(RECORD_BYTES_MAX + 1)]
  ])('refuses the name %j', async (name, text) => {
    await expect(make().store.put([record(name, text)])).rejects.toMatchObject({ code: 'ERR_USAGE' })
  })
})
