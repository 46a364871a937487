/** What number N writes: a small value that stays, a large one, and in the same write the large one of some numbers before goes. */
import type { Operation } from '../../src/dht/write-ahead-log.ts'

/** A few dozen of the large ones fill a file of the log. */
const VALUE_BYTES = { a: 40, b: 24_000 }
/** So many numbers later a number's second key is removed. */
const KEPT = 20

const key = (kind: 'a' | 'b', number: number): string => `${kind}/${String(number).padStart(9, '0')}`

export function entryOf (number: number): Operation[] {
  return [
    { key: key('a', number), value: valueOf('a', number) },
    { key: key('b', number), value: valueOf('b', number) },
    ...number < KEPT ? [] : [{ key: key('b', number - KEPT), value: null }]
  ]
}

function valueOf (kind: 'a' | 'b', number: number): Uint8Array {
  return Buffer.alloc(VALUE_BYTES[kind], `${key(kind, number)} `)
}

/** Of what is there: the numbers whose first key is there with its value, and what is not as it must be if they are written and no others. */
export function checkEntries (range: (start: string, end: string) => Iterable<{ key: string, value: Uint8Array }>): { numbers: Set<number>, wrong: string[] } {
  const wrong: string[] = []
  const found = (kind: 'a' | 'b'): Set<number> => new Set(Array.from(range(`${kind}/`, `${kind}/~`), (entry) => {
    const number = Number(entry.key.slice(2))
    if (Buffer.compare(entry.value, valueOf(kind, number)) !== 0) wrong.push(`${entry.key} has another value`)
    return number
  }))
  const [numbers, seconds] = [found('a'), found('b')]
  for (const number of new Set([...numbers, ...seconds])) {
    if (seconds.has(number) !== (numbers.has(number) && !numbers.has(number + KEPT))) wrong.push(`${number} is there in part`)
  }
  return { numbers, wrong }
}
