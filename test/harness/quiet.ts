/** A log that keeps what it was told, and plain counters, for tests. */
import type { Counters, Log } from '../../src/protocols/seams.ts'

export class KeptLog implements Log {
  readonly lines: Array<{ level: string, message: string, fields: Record<string, unknown> }> = []
  debug (message: string, fields: Record<string, unknown> = {}): void { this.#keep('debug', message, fields) }
  info (message: string, fields: Record<string, unknown> = {}): void { this.#keep('info', message, fields) }
  warn (message: string, fields: Record<string, unknown> = {}): void { this.#keep('warn', message, fields) }
  error (message: string, fields: Record<string, unknown> = {}): void { this.#keep('error', message, fields) }

  #keep (level: string, message: string, fields: Record<string, unknown>): void {
    this.lines.push({ level, message, fields })
  }
}

export class PlainCounters implements Counters {
  readonly #counts = new Map<string, Map<string, { labels: Record<string, string>, sum: number }>>()

  add (name: string, amount = 1, labels: Record<string, string> = {}): void {
    const byLabels = this.#counts.get(name) ?? new Map<string, { labels: Record<string, string>, sum: number }>()
    this.#counts.set(name, byLabels)
    const key = JSON.stringify(labels)
    byLabels.set(key, { labels, sum: (byLabels.get(key)?.sum ?? 0) + amount })
  }

  value (name: string, labels: Record<string, string> = {}): number {
    const matching = [...this.#counts.get(name)?.values() ?? []].filter((one) => Object.entries(labels).every(([key, value]) => one.labels[key] === value))
    return matching.reduce((sum, one) => sum + one.sum, 0)
  }
}
