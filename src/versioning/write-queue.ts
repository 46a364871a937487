/**
 * One blob's writes to the version manager's store, in order. What comes while one write is on its way to the disk goes
 * together in the next: many writers of one blob share a flush, and what survives a crash is always a beginning of what was
 * asked. Blobs do not wait for one another; their writes meet in the store's own group commit.
 *
 * Except in a joint write, which is of several blobs, all or none: where its turn has come in one queue, that one waits until it has come
 * in all of them. A joint write takes its place in all its queues in one synchronous sweep, so that any two of them come in the same
 * order wherever both are: no two can wait for each other.
 */
import assert from 'node:assert/strict'
import type { Operation } from './version-store.ts'

type Commit = (operations: readonly Operation[]) => Promise<void>

interface Batch {
  readonly operations: Operation[]
  readonly written: PromiseWithResolvers<void>
  /** Nothing more comes into this batch; its operations are those of the joint write. */
  readonly joint?: JointWrite
}

export interface WritePart {
  readonly queue: WriteQueue
  readonly operations: readonly Operation[]
}

export class WriteQueue {
  readonly #commit: Commit
  readonly #onFailure: (error: unknown) => void
  readonly #waiting: Batch[] = []
  #committing = false
  #failure: { readonly error: unknown } | undefined

  /** After `onFailure` the queue takes nothing more: what is in memory may be ahead of what is on disk. */
  constructor (commit: Commit, onFailure: (error: unknown) => void) {
    this.#commit = commit
    this.#onFailure = onFailure
  }

  /** In one write of the store. When it fails, or one of the queues does before its turn, all of them fail. */
  static async writeJointly (parts: readonly WritePart[]): Promise<void> {
    if (parts[0] === undefined) return
    assert.equal(new Set(parts.map(({ queue }) => queue)).size, parts.length, 'a queue cannot wait for itself')
    const joint = new JointWrite(parts.length, parts.flatMap(({ operations }) => operations), parts[0].queue.#commit)
    // Whoever is told of a failure finds all queues given up.
    const outcomes = await Promise.allSettled(parts.map(async ({ queue }) => { await queue.#join(joint) }))
    for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason
  }

  get idle (): boolean {
    return !this.#committing
  }

  async write (operations: readonly Operation[]): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure.error
    const last = this.#waiting.at(-1)
    const batch = last !== undefined && last.joint === undefined ? last : this.#enqueue({ operations: [], written: Promise.withResolvers() })
    batch.operations.push(...operations)
    this.#begin()
    await batch.written.promise
  }

  async #join (joint: JointWrite): Promise<void> {
    if (this.#failure !== undefined) {
      joint.fail(this.#failure.error)
      throw this.#failure.error
    }
    const { written } = this.#enqueue({ operations: [], written: Promise.withResolvers(), joint })
    this.#begin()
    await written.promise
  }

  #enqueue (batch: Batch): Batch {
    this.#waiting.push(batch)
    return batch
  }

  #begin (): void {
    if (!this.#committing) void this.#commitAll()
  }

  async #commitAll (): Promise<void> {
    this.#committing = true
    for (let batch; (batch = this.#waiting.shift()) !== undefined;) {
      try {
        await (batch.joint === undefined ? this.#commit(batch.operations) : batch.joint.reach())
        batch.written.resolve()
      } catch (error) {
        this.#fail(error, [batch, ...this.#waiting.splice(0)])
      }
    }
    this.#committing = false
  }

  #fail (error: unknown, batches: readonly Batch[]): void {
    this.#failure = { error }
    for (const { written, joint } of batches) {
      joint?.fail(error)
      written.reject(error)
    }
    this.#onFailure(error)
  }
}

/** One write in the turn of several queues. */
class JointWrite {
  readonly #operations: readonly Operation[]
  readonly #commit: Commit
  readonly #written = Promise.withResolvers<void>()
  #missing: number

  constructor (queues: number, operations: readonly Operation[], commit: Commit) {
    this.#missing = queues
    this.#operations = operations
    this.#commit = commit
    this.#written.promise.catch(() => {}) // perhaps no queue waits for it yet
  }

  /** A queue's turn. With the last one's it is written. */
  async reach (): Promise<void> {
    this.#missing -= 1
    if (this.#missing === 0) this.#written.resolve(this.#commit(this.#operations))
    await this.#written.promise
  }

  /** One of the queues will never get there. */
  fail (error: unknown): void {
    this.#written.reject(error)
  }
}
