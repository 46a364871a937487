/**
 * What a command says: the result on stdout (one JSON document with --json, else text for people), progress and errors on
 * stderr. Progress shows on a terminal only, and not with --json. Colour only there too, and never under NO_COLOR.
 */
import { errorDocument } from './error-document.ts'
import { formatBytes, formatDuration } from './units.ts'

interface Terminal {
  readonly isTTY?: boolean
  readonly columns?: number
  write (text: string): unknown
}

export interface OutputInit {
  readonly json: boolean
  readonly stdout: Terminal
  readonly stderr: Terminal
  readonly env: Readonly<Record<string, string | undefined>>
}

export class Output {
  readonly #init: OutputInit
  #progressShown = false

  constructor (init: OutputInit) {
    this.#init = init
  }

  /** The one result of a command. `text` is not called under --json. */
  result (document: object, text: () => string): void {
    this.#clearProgress()
    this.#init.stdout.write(`${this.#init.json ? JSON.stringify(document) : text()}\n`)
  }

  /** For `export REF -`, whose stdout carries the image. */
  resultBeside (document: object, text: () => string): void {
    this.#clearProgress()
    this.#init.stderr.write(`${this.#init.json ? JSON.stringify(document) : text()}\n`)
  }

  /** Something that the user should know, and that is no error. */
  note (message: string): void {
    this.#clearProgress()
    this.#init.stderr.write(`p2pvm: ${message}\n`)
  }

  failure (error: unknown): void {
    this.#clearProgress()
    const document = errorDocument(error)
    if (this.#init.json) {
      this.#init.stdout.write(`${JSON.stringify(document)}\n`)
      return
    }
    this.#init.stderr.write(`${this.#red('p2pvm:')} ${document.error.message}\n`)
    if (document.error.code === 'ERR_INTERNAL' && error instanceof Error) this.#init.stderr.write(`${error.stack}\n`)
  }

  get showsProgress (): boolean {
    return this.#init.stderr.isTTY === true && !this.#init.json
  }

  /** Overwrites the line before. */
  progress (line: string): void {
    if (!this.showsProgress) return
    // What is longer than the terminal is wide goes on in the next line, and only that one could be overwritten.
    const columns = this.#init.stderr.columns ?? 0
    this.#init.stderr.write(`\r\x1b[K${columns > 0 ? line.slice(0, columns - 1) : line}`)
    this.#progressShown = true
  }

  #clearProgress (): void {
    if (this.#progressShown) this.#init.stderr.write('\r\x1b[K')
    this.#progressShown = false
  }

  #red (text: string): string {
    const { env, stderr } = this.#init
    return stderr.isTTY === true && (env['NO_COLOR'] ?? '') === '' ? `\x1b[31m${text}\x1b[0m` : text
  }
}

/** Shows how far a transfer is, at most some times a second: `412 MiB of 2 GiB  388 MiB/s  78% holes  12% already there`. */
export class TransferProgress {
  readonly #output: Output
  readonly #totalBytes: number | undefined
  readonly #startMs = performance.now()
  #shownMs = -Infinity

  constructor (output: Output, totalBytes: number | undefined) {
    this.#output = output
    this.#totalBytes = totalBytes
  }

  update (doneBytes: number, ...shares: string[]): void {
    const nowMs = performance.now()
    if (nowMs - this.#shownMs < PROGRESS_EVERY_MS) return
    this.#shownMs = nowMs
    const elapsedMs = nowMs - this.#startMs
    const of = this.#totalBytes === undefined ? '' : ` of ${formatBytes(this.#totalBytes)}`
    this.#output.progress([`${formatBytes(doneBytes)}${of}`, rate(doneBytes, elapsedMs), ...shares].join('  '))
  }

  /** `2 GiB in 4.1 s, 500 MiB/s` */
  summary (bytes: number): string {
    const elapsedMs = performance.now() - this.#startMs
    return `${formatBytes(bytes)} in ${formatDuration(elapsedMs)}, ${rate(bytes, elapsedMs)}`
  }
}

const PROGRESS_EVERY_MS = 200

function rate (bytes: number, elapsedMs: number): string {
  return `${formatBytes(elapsedMs > 0 ? Math.round(bytes / elapsedMs * 1000) : 0)}/s`
}

export function percent (part: number, whole: number): string {
  return `${whole === 0 ? 0 : Math.round(part / whole * 100)}%`
}

type Cell = string | number | null

/** Columns aligned under their heads; numbers, and the heads over them, to the right. */
export function table (heads: readonly string[], rows: ReadonlyArray<readonly Cell[]>): string {
  const text = [heads, ...rows.map((row) => row.map((cell) => cell === null ? '-' : String(cell)))]
  const widths = heads.map((_, column) => Math.max(...text.map((row) => (row[column] ?? '').length)))
  const right = heads.map((_, column) => rows.length > 0 && rows.every((row) => typeof row[column] === 'number' || /^[\d.]+( [KMGTP]?i?B)?$/.test(String(row[column]))))
  return text.map((row) => row.map((cell, column) => right[column] === true ? cell.padStart(widths[column] ?? 0) : cell.padEnd(widths[column] ?? 0)).join('  ').trimEnd()).join('\n')
}

/** `name   value` lines. */
export function fields (rows: ReadonlyArray<readonly [string, Cell]>): string {
  const width = Math.max(...rows.map(([name]) => name.length))
  return rows.map(([name, value]) => `${name.padEnd(width)}  ${value ?? '-'}`).join('\n')
}
