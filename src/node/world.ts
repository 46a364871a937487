/**
 * The real world behind the seams: clock, randomness, log and counters of a process. State it owns: none but the counters
 * that it hands out. Disk and key-value store are in `dht/node-disk.ts` and `dht/open-store.ts`.
 */
import { randomBytes } from 'node:crypto'
import { P2pvmError } from '../protocols/errors.ts'
import type { Clock, Counters, Deadline, Log, Random } from '../protocols/seams.ts'

/** Node's timers turn a longer delay into one of 1 ms. */
const TIMER_MS_MAX = 2 ** 31 - 1

export const nodeClock: Clock = {
  now: () => Date.now(),

  monotonic: () => performance.now(),

  sleep (ms: number, signal?: AbortSignal): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    if (signal?.aborted === true) {
      reject(signal.reason)
      return promise
    }
    const abort = (): void => {
      clearTimeout(timer)
      reject(signal?.reason)
    }
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', abort)
      resolve()
    }, Math.min(ms, TIMER_MS_MAX)).unref()
    signal?.addEventListener('abort', abort, { once: true })
    return promise
  },

  deadline (ms: number, ...signals: Array<AbortSignal | undefined>): Deadline {
    // By hand, not AbortSignal.any: one that follows a signal as old as the process is kept until that signal ends.
    const controller = new AbortController()
    const sources = signals.filter((signal) => signal !== undefined)
    const follow = (event: Event): void => { abort((event.target as AbortSignal).reason) }
    const timer = setTimeout(() => {
      abort(new P2pvmError('ERR_TIMEOUT', `no answer within ${ms} ms`))
    }, Math.min(ms, TIMER_MS_MAX)).unref()
    const dispose = (): void => {
      clearTimeout(timer)
      for (const source of sources) source.removeEventListener('abort', follow)
    }
    const abort = (reason: unknown): void => {
      dispose()
      controller.abort(reason)
    }
    for (const source of sources) source.addEventListener('abort', follow, { once: true })
    const aborted = sources.find((source) => source.aborted)
    if (aborted !== undefined) abort(aborted.reason)
    return { signal: controller.signal, [Symbol.dispose]: dispose }
  }
}

export const nodeRandom: Random = {
  bytes: (count) => new Uint8Array(randomBytes(count)),
  unit: () => Math.random()
}

export const LOG_LEVELS = ['debug', 'info', 'warn', 'error'] as const
export type LogLevel = typeof LOG_LEVELS[number]

/** One readable line per event: `2025-11-23T07:00:00.000Z warn  chunk is corrupt  chunk=bafkrei… peer=12D3…` */
export function createLog ({ level, stream }: { level: LogLevel, stream: { write (line: string): unknown } }): Log {
  const threshold = LOG_LEVELS.indexOf(level)
  const writer = (own: LogLevel) => (message: string, fields: Record<string, unknown> = {}): void => {
    if (LOG_LEVELS.indexOf(own) < threshold) return
    const words = Object.entries(fields).filter(([, value]) => value !== undefined).map(([key, value]) => `${key}=${printable(value)}`)
    stream.write(`${new Date().toISOString()} ${own.padEnd(5)} ${[oneLine(message), ...words].join(' ')}\n`)
  }
  return { debug: writer('debug'), info: writer('info'), warn: writer('warn'), error: writer('error') }
}

function printable (value: unknown): string {
  if (value instanceof P2pvmError) return JSON.stringify(`${value.code}: ${value.message}`)
  if (value instanceof Error) return JSON.stringify(value.stack ?? value.message)
  if (typeof value !== 'string') return JSON.stringify(value) ?? String(value)
  return /^[^\s"=]+$/.test(value) ? value : JSON.stringify(value)
}

/** What a peer sent us may be in a message: no line may pass for two. */
function oneLine (text: string): string {
  return text.replaceAll(/[\r\n]+/g, ' ')
}

/** All of it, as a process hands it down. */
export interface World {
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
  readonly counters: CounterRegistry
}

export interface CounterRegistry extends Counters {
  /** Every counter by name, its labels summed. */
  totals (): Record<string, number>
  /** Prometheus text exposition format, version 0.0.4. */
  render (): string
}

export function createCounters (): CounterRegistry {
  const series = new Map<string, Map<string, { labels: Record<string, string>, value: number }>>()

  const sum = (name: string, labels: Record<string, string> = {}): number => {
    let total = 0
    for (const one of series.get(name)?.values() ?? []) {
      if (Object.entries(labels).every(([key, value]) => one.labels[key] === value)) total += one.value
    }
    return total
  }

  return {
    add (name, amount = 1, labels = {}) {
      let byLabels = series.get(name)
      if (byLabels === undefined) series.set(name, byLabels = new Map())
      const key = renderLabels(labels)
      const one = byLabels.get(key)
      if (one === undefined) byLabels.set(key, { labels: { ...labels }, value: amount })
      else one.value += amount
    },
    value: sum,
    totals: () => Object.fromEntries([...series.keys()].sort().map((name) => [name, sum(name)])),
    render () {
      const lines: string[] = []
      for (const name of [...series.keys()].sort()) {
        lines.push(`# TYPE ${name} counter`)
        for (const [key, one] of [...series.get(name) ?? []].sort(([a], [b]) => a < b ? -1 : 1)) lines.push(`${name}${key} ${one.value}`)
      }
      return lines.map((line) => `${line}\n`).join('')
    }
  }
}

/** `{peer="12D3…",reason="…"}`, sorted; empty without labels. */
function renderLabels (labels: Record<string, string>): string {
  const keys = Object.keys(labels).sort()
  if (keys.length === 0) return ''
  // Called for every message; nearly no value has anything to escape.
  const escape = (value: string): string =>
    /[\\"\n]/.test(value) ? value.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n') : value
  return `{${keys.map((key) => `${key}="${escape(labels[key] ?? '')}"`).join(',')}}`
}

/** Lines on stderr, when they are wanted. */
export function tracer (wanted: boolean): ((line: string) => void) | undefined {
  return wanted ? (line) => { process.stderr.write(`${line}\n`) } : undefined
}
