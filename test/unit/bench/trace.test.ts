import { readdirSync, readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { parseQemuLog } from '../../../bench/lib/record.ts'
import { decodeTrace, diskOf, encodeTrace, type Trace, ZERO_UNIT_BYTES } from '../../../bench/lib/trace.ts'

const TRACES = new URL('../../../bench/traces/', import.meta.url)

const TRACE: Trace = {
  what: 'a machine that does little',
  size: 10 * ZERO_UNIT_BYTES + 512,
  data: [{ from: 0, to: 2 }, { from: 5, to: 6 }],
  accesses: [
    { kind: 'read', offset: 4096, size: 8192, us: 0 },
    { kind: 'write', offset: 512, size: 512, us: 1500 },
    { kind: 'read', offset: 1024, size: 4096, us: 1500 }
  ]
}

describe('a trace', () => {
  it('is the same after a journey through its file', () => {
    expect(decodeTrace(encodeTrace(TRACE))).toEqual(TRACE)
  })

  it('says later and from where, relative to the access before', () => {
    expect(encodeTrace(TRACE).split('\n').slice(3)).toEqual(['data    0+2 3+1', 'access  3', 'r 0 8 16', 'w 1500 -23 1', 'r 0 0 8', ''])
  })

  it('is refused when it is cut, or something else', () => {
    expect(() => decodeTrace(encodeTrace(TRACE).replace(/r 0 0 8\n$/, ''))).toThrow('not an access')
    expect(() => decodeTrace('something else')).toThrow('not a disk trace')
  })

  it('knows zeros by units of 16 KiB', () => {
    const disk = diskOf(TRACE)
    expect(disk.isZero(2 * ZERO_UNIT_BYTES, 5 * ZERO_UNIT_BYTES)).toBe(true)
    expect(disk.isZero(2 * ZERO_UNIT_BYTES, 5 * ZERO_UNIT_BYTES + 1)).toBe(false)
    expect(disk.isZero(ZERO_UNIT_BYTES, 3 * ZERO_UNIT_BYTES)).toBe(false)
    expect(disk.isZero(10 * ZERO_UNIT_BYTES, TRACE.size)).toBe(true)
  })

  it('is what QEMU wrote, in the order in which it wrote it', () => {
    expect(parseQemuLog([
      '77@1700000000.000010:blk_co_preadv blk 0x5581 bs 0x5582 offset 4096 bytes 8192 flags 0x0',
      '77@1700000000.001510:blk_co_pwritev blk 0x5581 bs 0x5582 offset 512 bytes 512 flags 0x1',
      'qemu-system-x86_64: warning: something',
      '77@1700000000.001509:blk_co_preadv blk 0x5581 bs 0x5582 offset 1024 bytes 4096 flags 0x0',
      ''
    ].join('\n'))).toEqual(TRACE.accesses)
  })
})

describe('the traces that are kept', () => {
  const names = readdirSync(TRACES).filter((name) => name.endsWith('.trace'))

  it.each(names)('%s is whole, and lies on its disk', (name) => {
    const { size, data, accesses } = decodeTrace(readFileSync(new URL(name, TRACES), 'utf8'))
    expect(accesses.length).toBeGreaterThan(500)
    expect(accesses.every((access) => access.size > 0 && access.offset >= 0 && access.offset + access.size <= size)).toBe(true)
    expect(data.every(({ from, to }) => from < to && to * ZERO_UNIT_BYTES <= size)).toBe(true)
  })
})
