/**
 * One blob's writes to the version manager's store, in order. What comes while one write is on its way to the disk goes
 * together in the next: many writers of one blob share a flush, and what survives a crash is always a beginning of what was
 * asked. Blobs do not wait for one another; their writes meet in the store's own group commit.
 */
import type { Operation } from './version-store.ts'

interface Batch {
  readonly operations: Operation[]
  readonly written: PromiseWithResolvers<void>
}

export class WriteQueue {
  readonly #commit: (operations: readonly Operation[]) => Promise<void>
  readonly #onFailure: (error: unknown) => void
  #gathering: Batch | undefined
  #committing = false
  #failure: { readonly error: unknown } | undefined

  /** After `onFailure` the queue takes nothing more: what is in memory may be ahead of what is on disk. */
  constructor (commit: (operations: readonly Operation[]) => Promise<void>, onFailure: (error: unknown) => void) {
    this.#commit = commit
    this.#onFailure = onFailure
  }

  get idle (): boolean {
    return !this.#committing
  }

  async write (operations: readonly Operation[]): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure.error
    this.#gathering ??= { operations: [], written: Promise.withResolvers() }
    this.#gathering.operations.push(...operations)
    const { promise } = this.#gathering.written
    if (!this.#committing) void this.#commitAll()
    await promise
  }

  async #commitAll (): Promise<void> {
    this.#committing = true
    for (let batch; (batch = this.#take()) !== undefined;) {
      try {
        await this.#commit(batch.operations)
        batch.written.resolve()
      } catch (error) {
        this.#failure = { error }
        batch.written.reject(error)
        this.#take()?.written.reject(error)
        this.#onFailure(error)
      }
    }
    this.#committing = false
  }

  #take (): Batch | undefined {
    const batch = this.#gathering
    this.#gathering = undefined
    return batch
  }
}
