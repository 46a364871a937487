/**
 * The version tables of this mount: one per version, shared by the files that use it. Those that nobody uses are kept for a
 * while, so that a file that is opened again and again finds its descriptors.
 */
import type { ChunkFiles } from './chunk-files.ts'
import type { VersionRef } from './source.ts'
import { VersionTable, type VersionTableComponents } from './version-table.ts'

/** A table of a 2 GB image holds some 40 KB and its chunks' descriptors, which count against their own bound. */
const IDLE_MAX = 8

export class VersionTables {
  readonly #components: VersionTableComponents
  readonly #chunkFiles: ChunkFiles
  readonly #tables = new Map<string, VersionTable>() // idle ones in order of their last use

  #lastId = 0

  constructor (components: VersionTableComponents, chunkFiles: ChunkFiles) {
    this.#components = components
    this.#chunkFiles = chunkFiles
  }

  acquire (ref: VersionRef): VersionTable {
    const key = keyOf(ref)
    const table = this.#tables.get(key) ?? new VersionTable(++this.#lastId, ref, this.#components)
    this.#tables.set(key, table)
    table.files++
    return table
  }

  async release (table: VersionTable): Promise<void> {
    const key = keyOf(table.ref)
    if (this.#tables.get(key) !== table || --table.files > 0) return
    this.#tables.delete(key)
    this.#tables.set(key, table)
    const idle = [...this.#tables.values()].filter(({ files }) => files === 0)
    await this.#drop(idle.slice(0, Math.max(0, idle.length - IDLE_MAX)))
  }

  async close (): Promise<void> {
    await this.#drop([...this.#tables.values()])
  }

  async #drop (tables: VersionTable[]): Promise<void> {
    for (const table of tables) this.#tables.delete(keyOf(table.ref))
    if (tables.length > 0) await this.#chunkFiles.release(new Set(tables))
    for (const table of tables) table.close()
  }
}

function keyOf (ref: VersionRef): string {
  return `${ref.blob}@${ref.version}`
}
