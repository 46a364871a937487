/**
 * A terminal: a command that runs on a real one (terminal.py), and what a person sees of it. Knows as much of a screen as the
 * program asks of it (CR, LF, erase to the end of the line, colours), and that a line which is too long goes on in the next.
 */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const PROGRAM = fileURLToPath(new URL('terminal.py', import.meta.url))
const CONTROL_C = '\x03'
// Either one control sequence, or one character.
const TOKEN = /\x1b\[([\d;]*)([A-Za-z])|[^]/gu

export class Screen {
  /** What stood in a line when it was erased. */
  readonly erased: string[] = []
  /** Colours were asked for. */
  coloured = false
  readonly #columns: number
  readonly #rows: string[][] = [[]]
  #column = 0

  constructor (columns: number) {
    this.#columns = columns
  }

  /** From the top, without the empty ones at the end. */
  get lines (): string[] {
    const lines = this.#rows.map((row) => row.join('').trimEnd())
    return lines.slice(0, lines.findLastIndex((line) => line !== '') + 1)
  }

  /** Where the cursor is. */
  get cursor (): { readonly row: number, readonly column: number } {
    return { row: this.#rows.length - 1, column: this.#column }
  }

  write (text: string): void {
    for (const [token, parameters, command] of text.matchAll(TOKEN)) {
      if (command === 'K' && parameters === '') this.#erase()
      else if (command === 'm') this.coloured = true
      else if (command !== undefined) throw new Error(`the program asks for more than this screen knows: ${JSON.stringify(token)}`)
      else if (token === '\r') this.#column = 0
      else if (token === '\n') this.#rows.push([]) // the column stays: terminals are sent CR LF
      else this.#put(token)
    }
  }

  get #row (): string[] {
    return this.#rows.at(-1)!
  }

  #erase (): void {
    const text = this.#row.join('').trimEnd()
    if (text !== '') this.erased.push(text)
    this.#row.splice(this.#column)
  }

  #put (character: string): void {
    if (this.#column === this.#columns) {
      this.#rows.push([])
      this.#column = 0
    }
    for (let at = this.#row.length; at < this.#column; at++) this.#row.push(' ')
    this.#row[this.#column++] = character
  }
}

export interface Shown {
  readonly code: number | null
  readonly screen: Screen
}

export interface TerminalInit {
  readonly columns?: number
  readonly env: NodeJS.ProcessEnv
}

const COLUMNS_DEFAULT = 80

export class Terminal {
  readonly screen: Screen
  readonly #child: ChildProcessWithoutNullStreams
  readonly #ended: Promise<Shown>

  constructor (command: readonly string[], { columns = COLUMNS_DEFAULT, env }: TerminalInit) {
    this.screen = new Screen(columns)
    this.#child = spawn('python3', [PROGRAM, String(columns), ...command], { env })
    let complaints = ''
    this.#child.stdout.setEncoding('utf8').on('data', (text: string) => { this.screen.write(text) })
    this.#child.stderr.setEncoding('utf8').on('data', (text: string) => { complaints += text })
    this.#ended = new Promise((resolve, reject) => {
      this.#child.once('error', reject)
      this.#child.once('close', (code) => { if (complaints === '') resolve({ code, screen: this.screen }); else reject(new Error(complaints)) })
    })
    this.#ended.catch(() => {})
  }

  interrupt (): void {
    this.#child.stdin.write(CONTROL_C)
  }

  async ended (): Promise<Shown> {
    return await this.#ended
  }
}
