import fc from 'fast-check'
import { expect, test } from 'vitest'
import { formatBytes, formatDuration, parseBytes } from '../../../src/node/units.ts'

test.each([
  ['0', 0], ['4096', 4096], ['256KiB', 262144], ['256k', 262144], ['4M', 4 << 20], ['1.5 GiB', 1.5 * 2 ** 30], ['2t', 2 ** 41], ['17B', 17]
])('%s is %d bytes', (text, bytes) => {
  expect(parseBytes(text)).toBe(bytes)
})

test.each(['', 'KiB', '1KB', '1.1', '-4', '1e3', '0x10', '4 k k', '9999999P', 'Infinity'])('%s is no size', (text) => {
  expect(() => parseBytes(text)).toThrow(expect.objectContaining({ code: 'ERR_USAGE' }))
})

test('what is printed of whole units reads back', () => {
  fc.assert(fc.property(fc.integer({ min: 1, max: 1023 }), fc.integer({ min: 0, max: 4 }), (count, power) => {
    const bytes = count * 1024 ** power
    expect(parseBytes(formatBytes(bytes))).toBe(bytes)
  }))
})

test.each([[0.25, '0.3 ms'], [340, '340 ms'], [2500, '2.5 s'], [200_000, '3 min 20 s'], [7_500_000, '2 h 5 min'], [273_600_000, '3 d 4 h']])('%d ms is %s', (ms, text) => {
  expect(formatDuration(ms)).toBe(text)
})
