/**
 * Examples in PROTOCOL.md and FORMAT.md: fenced blocks whose info string is `hex NAME` or `json NAME`. In hex, what follows a `#` is a
 * remark, and `00*16` is sixteen zeros. The tests compare them with what the production code writes and reads.
 */
import { readFileSync } from 'node:fs'

const BLOCK = /^```(hex|json) ([^\n]+)\n(.*?)^```$/gms

export class DocumentedExamples {
  readonly #document: string
  readonly #texts = new Map<string, string>()

  /** `file`: at the top of the repository. */
  constructor (file: string) {
    this.#document = readFileSync(new URL(`../../${file}`, import.meta.url), 'utf8')
    for (const [, kind = '', name = '', body = ''] of this.#document.matchAll(BLOCK)) {
      const key = `${kind} ${name}`
      if (this.#texts.has(key)) throw new Error(`${file} has two examples: ${key}`)
      this.#texts.set(key, body)
    }
  }

  /** `hex NAME`, `json NAME`, in the order of the document. */
  get keys (): string[] {
    return [...this.#texts.keys()]
  }

  /** What the pattern's groups match, wherever it does: rows of tables. */
  rows (pattern: RegExp): string[][] {
    return [...this.#document.matchAll(pattern)].map(([, ...groups]) => groups)
  }

  bytes (name: string): Uint8Array {
    const tokens = this.text('hex', name).replace(/#.*$/gm, '').split(/\s+/).filter((token) => token !== '')
    return Uint8Array.from(tokens.flatMap((token) => {
      const [, pair, count] = /^([0-9a-f]{2})\*(\d+)$/.exec(token) ?? []
      if (pair !== undefined) return new Array<number>(Number(count)).fill(Number.parseInt(pair, 16))
      if (!/^(?:[0-9a-f]{2})+$/.test(token)) throw new Error(`${name}: no bytes: ${token}`)
      return [...Buffer.from(token, 'hex')]
    }))
  }

  json (name: string): unknown {
    return JSON.parse(this.text('json', name))
  }

  text (kind: 'hex' | 'json', name: string): string {
    const text = this.#texts.get(`${kind} ${name}`)
    if (text === undefined) throw new Error(`no example: ${kind} ${name}`)
    return text
  }
}

export function hexOf (bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex')
}

/** Bytes anywhere in it as hex: a Buffer is as good as an array of the same bytes. */
export function withHex (value: unknown): unknown {
  if (value instanceof Uint8Array) return hexOf(value)
  if (Array.isArray(value)) return value.map(withHex)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).map(([key, field]) => [key, withHex(field)]))
}
