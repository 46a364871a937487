/**
 * The FUSE server's main-thread half: takes the requests that workers hand over, has each handled, and answers it exactly
 * once. Also starts the workers, brings views of files to them, and knows when the connection has ended.
 *
 * State it owns: the workers, the epoch, the requests under way. The bytes' meaning is `handlers.ts`'s.
 */
import { Worker } from 'node:worker_threads'
import type { Clock, Log } from '../../protocols/seams.ts'
import { ERRNO, errnoOf } from '../errno.ts'
import { logFailure } from '../failures.ts'
import type { FileViewInit } from '../file-view.ts'
import { type Trace, traceLine } from '../trace.ts'
import { notify, writeReply } from './channel.ts'
import { describeRequest } from './decoder.ts'
import { makeReaders } from './disk-read-ahead.ts'
import { allocateReadMemory, DirectReads } from '../direct-reads.ts'
import { makeReadAheadRing, RING_BYTES, SLOTS } from './read-ahead-ring.ts'
import { EpochClock, makeEpochBuffer } from './epoch.ts'
import type { Handlers } from './handlers.ts'
import { OPCODES } from './opcodes.ts'
import { IN_HEADER_BYTES, notifyInvalInode, notifyResend, OUT_HEADER_BYTES, readInHeader, readInterruptIn, reply } from './protocol.ts'
import type { FromWorker, ToWorker, WorkerInit } from './worker.ts'

export interface FuseServerComponents {
  readonly clock: Clock
  readonly log: Log
  readonly trace?: Trace | undefined
}

export interface FuseServerInit {
  readonly deviceFd: number
  readonly workers: number
}

/** Beside this module: a bundle has it as an entry of its own. */
const WORKER_URL = new URL(import.meta.url.endsWith('.ts') ? './worker.ts' : './fuse-worker.js', import.meta.url)

export class FuseServer {
  readonly #components: FuseServerComponents
  readonly #init: FuseServerInit
  readonly #epoch: EpochClock
  readonly #epochBuffer: SharedArrayBuffer
  readonly #workers: Worker[] = []
  readonly #underWay = new Map<bigint, AbortController>()
  readonly #ended: Promise<void>
  #handlers: Handlers | undefined
  #resolveEnded: () => void = () => {}
  #running = 0
  readonly counters: Record<string, number> = {}

  constructor (init: FuseServerInit, components: FuseServerComponents) {
    this.#init = init
    this.#components = components
    this.#epochBuffer = makeEpochBuffer(init.workers)
    this.#epoch = new EpochClock(this.#epochBuffer, init.workers)
    this.#ended = new Promise((resolve) => { this.#resolveEnded = resolve })
  }

  /** Resolves when the connection has ended (unmounted or aborted) and no worker runs any more. */
  get ended (): Promise<void> {
    return this.#ended
  }

  /**
   * Before `start`: what a server before this one has read and not answered is read again. Were workers at it already, the kernel
   * would send again what they have in hand.
   */
  resend (): void {
    const bytes = notifyResend()
    writeReply(this.#init.deviceFd, bytes, bytes.length)
  }

  start (handlers: Handlers): void {
    this.#handlers = handlers
    const readers = makeReaders()
    const queue = DirectReads.openQueue(SLOTS)
    const memory = queue === undefined ? undefined : allocateReadMemory(RING_BYTES)
    const ahead = queue === undefined || memory === undefined ? undefined : { queue, ring: makeReadAheadRing(memory) }
    for (let worker = 0; worker < this.#init.workers; worker++) {
      const workerData: WorkerInit = { deviceFd: this.#init.deviceFd, worker, epoch: this.#epochBuffer, readers, ahead }
      const thread = new Worker(WORKER_URL, { workerData })
      this.#running++
      thread.on('message', (message: FromWorker) => { this.#onMessage(message) })
      // A defect in a worker ends the process, as one in the main thread does.
      thread.on('error', (error) => { throw error })
      thread.on('exit', () => { if (--this.#running === 0) this.#resolveEnded() })
      this.#workers.push(thread)
    }
  }

  /** Brings a file to every worker; resolves when none can be using what it had before. */
  async publish (view: FileViewInit): Promise<void> {
    await this.#tell({ kind: 'view', view })
  }

  async withdraw (fh: number): Promise<void> {
    await this.#tell({ kind: 'close', fh })
  }

  async quiesce (): Promise<void> {
    await this.#epoch.quiesce()
  }

  /** The kernel has written back what was dirty in `[from, to)` of an inode, and answered it is, when this resolves. */
  async flushPages (ino: bigint, from: number, to: number): Promise<void> {
    await notify(this.#init.deviceFd, notifyInvalInode(ino, from, to))
  }

  /** Messages first, then the epoch: a worker that sees the epoch finds the messages. */
  async #tell (message: ToWorker): Promise<void> {
    for (const worker of this.#workers) worker.postMessage(message)
    await this.#epoch.quiesce()
  }

  #onMessage (message: FromWorker): void {
    if (message.kind === 'passed') this.#epoch.onPassed()
    else if (message.kind === 'written') this.#onWritten(message.fh)
    else if (message.kind === 'request') void this.#serve(Buffer.from(message.bytes.buffer, message.bytes.byteOffset, message.bytes.length))
    else for (const controller of this.#underWay.values()) controller.abort()
  }

  #onWritten (fh: number): void {
    this.counters.written_back = (this.counters.written_back ?? 0) + 1
    this.#handlers?.written(fh)
  }

  async #serve (bytes: Buffer): Promise<void> {
    const header = readInHeader(bytes)
    const row = OPCODES.get(header.opcode)
    const body = bytes.subarray(IN_HEADER_BYTES)
    const name = row?.name ?? `opcode ${header.opcode}`
    const { clock, log, trace } = this.#components
    const startedAt = trace === undefined ? 0 : clock.monotonic()
    this.counters[name] = (this.counters[name] ?? 0) + 1
    if (row?.handler === 'interrupt') {
      this.#underWay.get(readInterruptIn(body).unique)?.abort()
      trace?.(describeRequest(header, body))
      return
    }
    let answer: Buffer
    const controller = new AbortController()
    this.#underWay.set(header.unique, controller)
    try {
      if (row === undefined || row.handler === 'unsupported') answer = reply(header.unique, ERRNO.ENOSYS)
      else if (row.handler === 'refuse') answer = reply(header.unique, ERRNO.EROFS)
      else if (body.length < row.bodyBytesMin || this.#handlers === undefined) answer = reply(header.unique, ERRNO.EINVAL)
      else answer = reply(header.unique, 0, await this.#handlers[row.handler]({ header, body, signal: controller.signal }))
    } catch (error) {
      logFailure(log, name, error)
      answer = reply(header.unique, errnoOf(error))
    } finally {
      this.#underWay.delete(header.unique)
    }
    if (row?.replies !== false) writeReply(this.#init.deviceFd, answer, answer.length)
    trace?.(traceLine(describeRequest(header, body), -answer.readInt32LE(4), `${answer.length - OUT_HEADER_BYTES} bytes`, clock.monotonic() - startedAt))
  }
}
