/** What happened, line by line: the same seed must give the same lines. Only their hash is kept. */
import { createHash } from 'node:crypto'
import type { Timeline } from './simulated-clock.ts'

export class Trace {
  readonly #timeline: Timeline
  readonly #print: ((line: string) => void) | undefined
  readonly #hash = createHash('sha256')
  lines = 0

  constructor (timeline: Timeline, print?: (line: string) => void) {
    this.#timeline = timeline
    this.#print = print
  }

  add (...words: ReadonlyArray<string | number>): void {
    const line = `${this.#timeline.elapsedMs} ${words.join(' ')}`
    this.#hash.update(line).update('\n')
    this.#print?.(line)
    this.lines += 1
  }

  /** So far. */
  digest (): string {
    return this.#hash.copy().digest('hex')
  }
}
