import { describe, expect, it } from 'vitest'
import { AUDIT_IDS_MAX, CHUNK_PROTOCOL, HAVE_IDS_MAX, auditChunks, getChunk, haveChunks, putChunk, serveChunks } from '../../../src/protocols/chunk-protocol.ts'
import { chunkIdOf } from '../../../src/protocols/cid.ts'
import { encodeCbor } from '../../../src/protocols/codec.ts'
import { P2pvmError } from '../../../src/protocols/errors.ts'
import { BODY_BYTES_MAX } from '../../../src/protocols/frame.ts'
import { EXCHANGE_KEYS_MAX, MEMBER_PROTOCOL, ROWS_MAX, describeMember, exchangeMembers, pushMembers, serveMembers } from '../../../src/protocols/member-protocol.ts'
import type { MemberRow } from '../../../src/protocols/member-protocol.ts'
import { RECORD_PROTOCOL, getRecords, putRecords, serveRecords } from '../../../src/protocols/record-protocol.ts'
import { FakeClock } from '../../harness/fake-clock.ts'
import { MemoryNetwork } from '../../harness/memory-transport.ts'

const options = { deadlineMs: 1000 }

function network () {
  const all = new MemoryNetwork(new FakeClock())
  return { all, near: all.join('near'), far: all.join('far') }
}

const idOf = (seed: number) => chunkIdOf(Uint8Array.of(seed & 255, seed >> 8))

describe('chunk/1', () => {
  it('asks for any number of chunks, in batches, answers in order', async () => {
    const { all, near, far } = network()
    const there = new Set(Array.from({ length: 1000 }, (_, index) => idOf(index * 3)))
    serveChunks(far, {
      have: async (ids) => ids.map((id) => there.has(id)),
      put: async () => true,
      get: async () => undefined,
      audit: async (ids) => ids.map((id) => there.has(id) ? 'good' : 'corrupt')
    })
    const ids = Array.from({ length: 2 * HAVE_IDS_MAX + 1 }, (_, index) => idOf(index))
    expect(await haveChunks(near, 'far', ids, options)).toEqual(ids.map((id) => there.has(id)))
    expect(all.requests.get(CHUNK_PROTOCOL)).toBe(3)
    const audited = ids.slice(0, AUDIT_IDS_MAX + 1)
    expect(await auditChunks(near, 'far', audited, options)).toEqual(audited.map((id) => there.has(id) ? 'good' : 'corrupt'))
    expect(await haveChunks(near, 'far', [], options)).toEqual([])
  })

  it('puts and gets, and lets the store\'s errors through', async () => {
    const { near, far } = network()
    const kept = new Map<string, Uint8Array>()
    const priorities: string[] = []
    serveChunks(far, {
      have: async () => [],
      put: async (id, bytes) => {
        if (chunkIdOf(bytes) !== id) throw new P2pvmError('ERR_CORRUPT', 'no match', { cid: id })
        const isNew = !kept.has(id)
        kept.set(id, bytes)
        return isNew
      },
      get: async (id, priority) => {
        priorities.push(priority)
        return kept.get(id)
      },
      audit: async () => []
    })
    const chunk = new Uint8Array(5000).fill(3)
    const id = chunkIdOf(chunk)
    expect(await putChunk(near, 'far', id, chunk, options)).toBe(true)
    expect(await putChunk(near, 'far', id, chunk, options)).toBe(false)
    expect(await getChunk(near, 'far', id, { ...options, priority: 'prefetch' })).toEqual(chunk)
    expect(await getChunk(near, 'far', idOf(1), options)).toBeUndefined()
    expect(priorities).toEqual(['prefetch', 'demand'])
    await expect(putChunk(near, 'far', idOf(1), chunk, options)).rejects.toMatchObject({ code: 'ERR_CORRUPT', fields: { cid: idOf(1) } })
  })
})

describe('record/1', () => {
  it('moves any number of records of any size, in their order', async () => {
    const { all, near, far } = network()
    const kept = new Map<string, Uint8Array>()
    serveRecords(far, {
      put: async (records) => records.map(({ name, value }) => {
        if (kept.has(name)) return 'conflict'
        kept.set(name, value)
        return 'stored'
      }),
      get: async (names) => names.map((name) => kept.get(name))
    })
    const records = Array.from({ length: 1500 }, (_, index) => ({ name: `node/${index}`, value: new Uint8Array(index % 100 === 0 ? 128 * 1024 : index % 7).fill(index) }))
    expect(await putRecords(near, 'far', records, options)).toEqual(records.map(() => 'stored'))
    expect(await putRecords(near, 'far', records.slice(0, 2), options)).toEqual(['conflict', 'conflict'])
    const putBatches = all.requests.get(RECORD_PROTOCOL)!
    const names = [...records.map(({ name }) => name), 'not/there']
    const values = await getRecords(near, 'far', names, options)
    expect(values).toHaveLength(names.length)
    expect(values.every((value, index) => Buffer.compare(value ?? Buffer.from('none'), records[index]?.value ?? Buffer.from('none')) === 0)).toBe(true)
    expect(putBatches).toBeLessThan(8)
    expect(all.requests.get(RECORD_PROTOCOL)! - putBatches).toBeLessThan(8)
  })
})

describe('member/1', () => {
  const row: MemberRow = { id: 'far', addresses: ['/ip4/127.0.0.1/tcp/1'], roles: ['storage', 'versions'], capacityBytes: 2 ** 40, incarnation: 1_700_000_000_000, heartbeat: 7, down: false }

  it('describes, exchanges and pushes', async () => {
    const { near, far } = network()
    const pushed: MemberRow[] = []
    serveMembers(far, {
      describe: () => row,
      exchange: ({ beats }) => ({ beats, rows: [row], want: beats.map(({ key }) => key), more: true, complete: false }),
      push: (rows) => { pushed.push(...rows) }
    })
    expect(await describeMember(near, 'far', options)).toEqual(row)
    const beats = [{ key: 'ffffffffffffffff', incarnation: 2 ** 48 - 1, heartbeat: 2 ** 32 - 1 }, { key: '0000000000000000', incarnation: 0, heartbeat: 0 }]
    const answer = await exchangeMembers(near, 'far', { from: '0000000000000000', to: null, beats, complete: true, pull: false }, options)
    expect(answer).toEqual({ beats, rows: [row], want: beats.map(({ key }) => key), more: true, complete: false })
    await pushMembers(near, 'far', [row], options)
    expect(pushed).toEqual([row])
  })

  it('refuses a peer that describes another', async () => {
    const { near, far } = network()
    serveMembers(far, { describe: () => ({ ...row, id: 'else' }), exchange: () => { throw new Error() }, push: () => {} })
    await expect(describeMember(near, 'far', options)).rejects.toMatchObject({ code: 'ERR_PROTOCOL' })
  })

  it('fits a body with as much as an answer may hold', async () => {
    const { near, far } = network()
    const address = `/${'x'.repeat(63)}`
    const largest: MemberRow = { ...row, id: 'x'.repeat(64), addresses: Array.from({ length: 8 }, () => address), roles: ['storage', 'versions', 'compute'], capacityBytes: Number.MAX_SAFE_INTEGER }
    const key = 'f'.repeat(16)
    const full = {
      beats: Array.from({ length: EXCHANGE_KEYS_MAX }, () => ({ key, incarnation: 2 ** 48 - 1, heartbeat: 2 ** 32 - 1 })),
      rows: Array.from({ length: ROWS_MAX }, () => largest),
      want: Array.from({ length: ROWS_MAX }, () => key),
      more: true,
      complete: true
    }
    let bytes = 0
    serveMembers(far, { describe: () => row, exchange: () => full, push: () => {} })
    const request = near.request.bind(near)
    near.request = async (...asked) => {
      const answer = await request(...asked)
      bytes = encodeCbor(answer.body).length
      return answer
    }
    await exchangeMembers(near, 'far', { from: key, to: null, beats: [], complete: true, pull: false }, options)
    expect(MEMBER_PROTOCOL).toBe('member/1')
    expect(bytes).toBeGreaterThan(100_000)
    expect(bytes).toBeLessThan(BODY_BYTES_MAX - 100)
  })
})
