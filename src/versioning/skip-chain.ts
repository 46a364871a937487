/**
 * How publication records are linked: each to the one before, and, where that is another one, to the one whose number is the same
 * without its lowest set bit. So from any record to any older one there is a way of few links, O(log²) of them, and which records
 * lie on it is known before any of them is fetched. Pure.
 */
import assert from 'node:assert/strict'

/** The second version that this one's record links to, when that is not the one before. */
export function skipOf (version: number): number | undefined {
  const to = withoutLowestBit(version)
  return version === 0 || to === version - 1 ? undefined : to
}

/** The versions of which each links to the next, both ends included. */
export function wayDown (from: number, to: number): number[] {
  assert(from >= to && to >= 0, `a way down from ${from} to ${to}`)
  const way = [from]
  for (let at = from; at > to; way.push(at)) at = withoutLowestBit(at) >= to ? withoutLowestBit(at) : at - 1
  return way
}

/** Of numbers beyond 32 bits, too. */
function withoutLowestBit (version: number): number {
  if (version === 0) return 0
  let bit = 1
  while (version % (2 * bit) === 0) bit *= 2
  return version - bit
}
