/**
 * A worker of the FUSE server: blocks in read on the device, answers reads and writes of what is at hand with one pread or
 * pwrite and one write, and hands everything else to the main thread. It never waits for the network or for the main thread,
 * so cached reads go on whatever happens there.
 *
 * State it owns: its request and reply buffers, its views of the open files, which the main thread publishes, who reads ahead in
 * them (`disk-read-ahead.ts`), and how much it has written to each.
 */
import { constants } from 'node:fs'
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import { ERRNO } from '../errno.ts'
import { FileView, type FileViewInit } from '../file-view.ts'
import { readRequest, writeReply } from './channel.ts'
import { DirectReads } from '../direct-reads.ts'
import { willNeed } from '../system-calls.ts'
import { type Begin, DiskReadAhead, REQUEST_BYTES_MIN } from './disk-read-ahead.ts'
import { EpochPassenger } from './epoch.ts'
import { FUSE_READ, FUSE_WRITE } from './opcodes.ts'
import { FUSE_WRITE_IN_BYTES, IN_HEADER_BYTES, MAX_WRITE_BYTES, OUT_HEADER_BYTES, READ_BUFFER_BYTES } from './protocol.ts'
import { ReadAheadRing, type ReadAheadRingInit } from './read-ahead-ring.ts'

export interface WorkerInit {
  readonly deviceFd: number
  readonly worker: number
  readonly epoch: SharedArrayBuffer
  readonly readers: SharedArrayBuffer
  /** Where this machine can read past the page cache, and not wait for it. */
  readonly ahead?: { readonly ring: ReadAheadRingInit, readonly queue: number } | undefined
}

/** From the main thread. */
export type ToWorker = { readonly kind: 'view', readonly view: FileViewInit } | { readonly kind: 'close', readonly fh: number }

/** To the main thread: a request for it, or that much was written to a file, or that a quiesce may be over, or that the connection has ended. */
export type FromWorker =
  | { readonly kind: 'request', readonly bytes: Uint8Array<ArrayBuffer> }
  | { readonly kind: 'written', readonly fh: number }
  | { readonly kind: 'passed' }
  | { readonly kind: 'ended' }

const UNIQUE_AT = 8
/** In the body of FUSE_READ: the flags that the file was opened with. */
const READ_FILE_FLAGS_AT = 32
const WRITE_REPLY_BYTES = OUT_HEADER_BYTES + 8
/** By one worker, to one file: enough for the disk to be busy with, and little enough for an fsync to wait for. */
const WRITTEN_BYTES_MAX = 32 * 1024 * 1024

function serve (init: WorkerInit, port: NonNullable<typeof parentPort>): void {
  const passenger = new EpochPassenger(init.epoch, init.worker)
  const views = new Map<number, FileView>()
  const ring = init.ahead === undefined ? undefined : new ReadAheadRing(init.ahead.ring, new DirectReads(init.ahead.queue))
  const ahead = new DiskReadAhead(init.readers)
  const intoPageCache: Begin = (_, __, fd) => { willNeed(fd, 0, 0) }
  const pastPageCache: Begin = (view, index, fd) => {
    if (ring?.begin(view.table, index, view.chunkSize, fd) !== true) willNeed(fd, 0, 0)
  }
  /** Bytes by file, since the main thread was told. */
  const written = new Map<number, number>()
  // Filled: a kill while the kernel copies a request to a page that is not there yet would fail that request, and not keep it.
  const request = Buffer.alloc(READ_BUFFER_BYTES, 1)
  const reply = Buffer.allocUnsafeSlow(OUT_HEADER_BYTES + MAX_WRITE_BYTES)
  const tell = (message: FromWorker, transfer: ArrayBuffer[] = []): void => { port.postMessage(message, transfer) }

  const answer = (length: number, error = 0): boolean => {
    reply.writeUInt32LE(length, 0)
    reply.writeInt32LE(-error, 4)
    request.copy(reply, UNIQUE_AT, UNIQUE_AT, UNIQUE_AT + 8)
    writeReply(init.deviceFd, reply, length)
    return true
  }

  /** True when the request was answered here. Offsets beyond 2^53 come out imprecise, and beyond the size of any file. */
  const answered = (opcode: number): boolean => {
    if (opcode !== FUSE_READ && opcode !== FUSE_WRITE) return false
    const view = views.get(request.readUInt32LE(IN_HEADER_BYTES))
    if (view === undefined) return false
    const offset = request.readUInt32LE(IN_HEADER_BYTES + 8) + request.readUInt32LE(IN_HEADER_BYTES + 12) * 2 ** 32
    const size = request.readUInt32LE(IN_HEADER_BYTES + 16)
    if (opcode === FUSE_READ) {
      const length = view.readable(offset, size)
      const direct = (request.readUInt32LE(IN_HEADER_BYTES + READ_FILE_FLAGS_AT) & constants.O_DIRECT) !== 0
      // QEMU tries one byte to learn what it must align to, and takes whole pages for the answer when it gets it.
      if (direct && length > 0 && !view.wholeSectors(offset, offset + length)) return answer(OUT_HEADER_BYTES, ERRNO.EINVAL)
      // The kernel keeps what it is given, unless it was asked with O_DIRECT. So the page cache has it once; and once for many where there are many.
      const isKept = !direct && view.isAloneOnVersion
      if (!view.readInto(reply, OUT_HEADER_BYTES, offset, offset + length, isKept && length >= REQUEST_BYTES_MIN ? ring : undefined)) return false
      answer(OUT_HEADER_BYTES + length)
      ahead.answered(view, offset, offset + length, isKept ? pastPageCache : intoPageCache)
      return true
    }
    if (!view.takesWrite(offset, offset + size)) return false
    view.writeFrom(request, IN_HEADER_BYTES + FUSE_WRITE_IN_BYTES, offset, offset + size)
    reply.writeUInt32LE(size, OUT_HEADER_BYTES)
    reply.writeUInt32LE(0, OUT_HEADER_BYTES + 4)
    answer(WRITE_REPLY_BYTES)
    const bytes = (written.get(view.fh) ?? 0) + size
    if (bytes >= WRITTEN_BYTES_MAX) tell({ kind: 'written', fh: view.fh })
    written.set(view.fh, bytes % WRITTEN_BYTES_MAX)
    return true
  }

  for (;;) {
    const length = readRequest(init.deviceFd, request)
    if (length === 0) break
    if (passenger.enter()) drain(port, views, written)
    try {
      if (!answered(request.readUInt32LE(4))) {
        const bytes = new Uint8Array(length)
        bytes.set(request.subarray(0, length))
        tell({ kind: 'request', bytes }, [bytes.buffer])
      }
    } catch (error) {
      // A disk that fails or is full; anything else is a defect, and ends the server.
      const { errno } = error as NodeJS.ErrnoException
      if (errno === undefined) throw error
      answer(OUT_HEADER_BYTES, -errno)
    }
    if (passenger.leave()) tell({ kind: 'passed' })
  }
  tell({ kind: 'ended' })
  port.close()
}

function drain (port: NonNullable<typeof parentPort>, views: Map<number, FileView>, written: Map<number, number>): void {
  for (let received = receiveMessageOnPort(port); received !== undefined; received = receiveMessageOnPort(port)) {
    const message = received.message as ToWorker
    if (message.kind === 'view') views.set(message.view.fh, new FileView(message.view))
    else {
      views.delete(message.fh)
      written.delete(message.fh)
    }
  }
}

if (parentPort !== null) serve(workerData as WorkerInit, parentPort)
