/** A line per request that the main thread has answered, for debugging. Owns no state. */
import { constants } from 'node:os'

/** Takes one line, without its end. */
export type Trace = (line: string) => void

const NAMES = new Map(Object.entries(constants.errno).map(([name, errno]) => [errno, name]))

/** `errno` is positive, or 0; `answer` says what a request that went well was answered. */
export function traceLine (request: string, errno: number, answer: string, tookMs: number): string {
  const outcome = errno === 0 ? answer : NAMES.get(errno) ?? `errno ${errno}`
  return `${request} → ${outcome} ${Math.round(tookMs * 1000)} µs`
}
