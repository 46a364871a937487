/**
 * The chunks of one version as this mount knows them: their ids, leaf by leaf, and per chunk the slot from which workers
 * read (see file-view.ts). Several open files of one version share one table.
 *
 * State it owns: the ids, the shared slots, the leaf store's file. Descriptors in the slots belong to `chunk-files.ts`.
 */
import { P2pvmError } from '../protocols/errors.ts'
import type { ChunkId } from '../protocols/cid.ts'
import type { Clock } from '../protocols/seams.ts'
import { type ChunkTableView, SLOT_HOLE } from './file-view.ts'
import { isNodeError } from './files.ts'
import { LEAF_CHUNKS, type Leaf, LeafStore } from './leaf-store.ts'
import { Flights, patiently } from './patience.ts'
import type { MirrorSource, VersionRef } from './source.ts'

export interface VersionTableComponents {
  readonly source: Pick<MirrorSource, 'chunkIds'>
  readonly clock: Clock
  /** Folder of the leaf store. */
  readonly folder: string
}

/** Chunks asked for in one request when many leaves are wanted: 64 KB of JSON. */
const QUESTION_CHUNKS_MAX = 16 * LEAF_CHUNKS

export class VersionTable {
  readonly ref: VersionRef
  readonly view: ChunkTableView
  readonly #files: Int32Array
  readonly slots: Int32Array
  readonly used: Uint8Array
  readonly #components: VersionTableComponents
  readonly #store: LeafStore
  readonly #leaves = new Map<number, Leaf>()
  readonly #questions = new Flights<number>()

  /** `id`: see `ChunkTableView`. */
  constructor (id: number, ref: VersionRef, components: VersionTableComponents) {
    const chunks = Math.ceil(ref.size / ref.chunkSize)
    const cells = (count: number): SharedArrayBuffer => new SharedArrayBuffer(count * Int32Array.BYTES_PER_ELEMENT)
    this.ref = ref
    this.view = { id, files: cells(1), chunkSize: ref.chunkSize, slots: cells(chunks), used: new SharedArrayBuffer(chunks) }
    this.#files = new Int32Array(this.view.files)
    this.slots = new Int32Array(this.view.slots)
    this.used = new Uint8Array(this.view.used)
    this.#components = components
    this.#store = new LeafStore(components.folder, ref)
  }

  get files (): number {
    return Atomics.load(this.#files, 0)
  }

  /** How many files go by it now. */
  set files (count: number) {
    Atomics.store(this.#files, 0, count)
  }

  /** The id of a chunk (null: hole), from memory, disk or the daemon. */
  async idOf (index: number, signal: AbortSignal): Promise<ChunkId | null> {
    const leaf = Math.floor(index / LEAF_CHUNKS)
    if (!this.#leaves.has(leaf)) await this.#load(leaf, signal)
    const id = this.#leaves.get(leaf)?.[index % LEAF_CHUNKS]
    if (id === undefined) throw new P2pvmError('ERR_PROTOCOL', `the daemon gave no id for chunk ${index}`, { blob: this.ref.blob, version: this.ref.version })
    return id
  }

  /** Whether a chunk is a hole. Who asks goes on to the next ones: when the daemon is asked, it is for many. */
  async isHole (index: number, signal: AbortSignal): Promise<boolean> {
    if (index >= this.slots.length) return true // what a working copy has grown by
    const leaf = Math.floor(index / LEAF_CHUNKS)
    const ahead = QUESTION_CHUNKS_MAX / LEAF_CHUNKS
    if (!this.#leaves.has(leaf) && this.#store.read(leaf, this.#countIn(leaf)) === undefined) await this.#learn(Array.from({ length: ahead }, (_, at) => leaf + at), signal)
    return await this.idOf(index, signal) === null
  }

  /** Learns the leaves that the other table knows, and those of these chunks, many per question. */
  async learnLike (other: VersionTable, chunks: Iterable<number>, signal: AbortSignal): Promise<void> {
    const wanted = new Set(other.#leaves.keys())
    for (const index of chunks) wanted.add(Math.floor(index / LEAF_CHUNKS))
    await this.#learn(wanted, signal)
  }

  async #learn (wanted: Iterable<number>, signal: AbortSignal): Promise<void> {
    const unknown = [...wanted].filter((leaf) => !this.#leaves.has(leaf) && leaf * LEAF_CHUNKS < this.slots.length).sort((a, b) => a - b)
    const most = QUESTION_CHUNKS_MAX / LEAF_CHUNKS
    for (let at = 0; at < unknown.length;) {
      const first = unknown[at] ?? 0
      let count = 1
      while (count < most && unknown[at + count] === first + count) count++
      await this.#ask(first, count, signal)
      at += count
    }
  }

  /** Concurrent misses in one leaf are one question. */
  async #load (leaf: number, signal: AbortSignal): Promise<void> {
    const kept = this.#store.read(leaf, this.#countIn(leaf))
    if (kept === undefined) await this.#questions.join(leaf, signal, async () => { await this.#ask(leaf, 1, signal) })
    else this.#keep(leaf, kept)
  }

  async #ask (first: number, leaves: number, signal: AbortSignal): Promise<void> {
    const from = first * LEAF_CHUNKS
    const count = Math.min(leaves * LEAF_CHUNKS, this.slots.length - from)
    const ids = await patiently(this.#components.clock, signal, async () =>
      await this.#components.source.chunkIds(this.ref, from, count, signal))
    if (ids.length !== count) throw new P2pvmError('ERR_PROTOCOL', `the daemon gave ${ids.length} chunk ids and not ${count}`)
    for (let at = 0; at < count; at += LEAF_CHUNKS) {
      const leaf = ids.slice(at, at + LEAF_CHUNKS)
      this.#keep(first + at / LEAF_CHUNKS, leaf)
      try {
        this.#store.write(first + at / LEAF_CHUNKS, leaf)
      } catch (error) {
        // A full disk must not fail a read that is otherwise answered: the leaf is asked for again next time.
        if (!isNodeError(error, 'ENOSPC', 'EDQUOT')) throw error
      }
    }
  }

  #keep (leaf: number, ids: Leaf): void {
    this.#leaves.set(leaf, ids)
    for (const [index, id] of ids.entries()) {
      if (id === null) Atomics.store(this.slots, leaf * LEAF_CHUNKS + index, SLOT_HOLE)
    }
  }

  #countIn (leaf: number): number {
    return Math.min(LEAF_CHUNKS, this.slots.length - leaf * LEAF_CHUNKS)
  }

  /** Only when no file uses it any more. */
  close (): void {
    this.#store.close()
  }
}
