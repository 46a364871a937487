/**
 * Requests over a unix socket: JSON in, JSON or a stream out, errors thrown as the same P2pvmError that the other side
 * threw. Every request has a deadline. Not for: what the endpoints are (`control-client.ts`, `mounts.ts`).
 */
import { type Agent, type ClientRequest, type IncomingMessage, request as httpRequest } from 'node:http'
import { text } from 'node:stream/consumers'
import { pipeline } from 'node:stream/promises'
import { abortErrorOf } from '../protocols/abort.ts'
import { P2pvmError } from '../protocols/errors.ts'
import { readErrorDocument } from './error-document.ts'
import { nodeClock } from './world.ts'

export interface RequestInit {
  readonly query?: Readonly<Record<string, string | number | undefined>>
  /** An object goes as JSON, an iterable as it is. */
  readonly body?: unknown
  /** Until the head of the answer is here, and for an answer in JSON until all of it is. */
  readonly deadlineMs: number
  readonly signal?: AbortSignal | undefined
  readonly headers?: Readonly<Record<string, string>>
  /** Keeps connections open between requests. */
  readonly agent?: Agent | undefined
  /** May be asked again when a kept connection turns out to be dead. GET always may. */
  readonly idempotent?: boolean
}

type Method = 'GET' | 'POST' | 'DELETE'

/** The answer, parsed. The shape is what the other half of this program sends: checked by its types, not here. */
export async function requestJson<T> (socket: string, method: Method, path: string, init: RequestInit): Promise<T> {
  return await withDeadline(socket, init, async (deadline) => {
    const body = await text(await open(socket, method, path, init, deadline))
    try {
      return JSON.parse(body) as T
    } catch (error) {
      throw new P2pvmError('ERR_PROTOCOL', `${method} ${path}: the answer is not JSON`, {}, error)
    }
  })
}

/** The answer, as a stream. Deadline and signal end with its head: what comes after is the reader's to bound. */
export async function requestStream (socket: string, method: Method, path: string, init: RequestInit): Promise<IncomingMessage> {
  return await withDeadline(socket, init, async (deadline) => await open(socket, method, path, init, deadline))
}

async function open (socket: string, method: Method, path: string, init: RequestInit, signal: AbortSignal): Promise<IncomingMessage> {
  const idempotent = method === 'GET' || init.idempotent === true
  for (;;) {
    const { request, response } = await send(socket, method, path, init, signal)
    if (response instanceof Error) {
      signal.throwIfAborted()
      if (request.reusedSocket && idempotent) continue
      throw socketError(response, socket)
    }
    if (response.statusCode === 200) return response
    const error = errorOf(await text(response), response.statusCode)
    request.destroy() // it may still be sending a body that nobody wants any more
    throw error
  }
}

async function send (socket: string, method: Method, path: string, init: RequestInit, signal: AbortSignal): Promise<{ request: ClientRequest, response: IncomingMessage | Error }> {
  const query = new URLSearchParams()
  for (const [key, value] of Object.entries(init.query ?? {})) if (value !== undefined) query.set(key, String(value))
  const streamed = isIterable(init.body) ? init.body : undefined
  const json = streamed === undefined && init.body !== undefined ? Buffer.from(JSON.stringify(init.body)) : undefined
  const request = httpRequest({
    socketPath: socket,
    method,
    path: query.size > 0 ? `${path}?${query}` : path,
    agent: init.agent ?? false,
    signal,
    headers: { ...json === undefined ? {} : { 'content-type': 'application/json', 'content-length': json.length }, ...init.headers }
  })
  const answered = new Promise<IncomingMessage | Error>((resolve) => {
    request.once('response', resolve)
    request.on('error', resolve)
  })
  if (streamed === undefined) request.end(json)
  // The other side may answer (an error) before it has read all: the answer counts, not that we could not go on writing.
  else pipeline(streamed, request).catch(() => {})
  return { request, response: await answered }
}

function isIterable (body: unknown): body is AsyncIterable<Uint8Array> {
  return typeof body === 'object' && body !== null && Symbol.asyncIterator in body
}

function errorOf (body: string, status: number | undefined): P2pvmError {
  try {
    return readErrorDocument(JSON.parse(body))
  } catch {
    return new P2pvmError('ERR_PROTOCOL', `HTTP ${status}: ${body.slice(0, 200)}`)
  }
}

function socketError (error: NodeJS.ErrnoException, socket: string): P2pvmError {
  if (error.code === 'EACCES' || error.code === 'EPERM') return new P2pvmError('ERR_NOT_ALLOWED', `no permission to use the socket ${socket}`, { socket }, error)
  if (error.code === 'ENOENT' || error.code === 'ECONNREFUSED' || error.code === 'ENOTSOCK') {
    return new P2pvmError('ERR_UNAVAILABLE', `nobody answers at the socket ${socket}`, { socket, errno: error.code }, error)
  }
  return new P2pvmError('ERR_UNAVAILABLE', `the connection to ${socket} broke: ${error.message}`, { socket }, error)
}

/** What breaks because of the deadline or the caller is thrown as that; what else breaks, as a lost connection. */
async function withDeadline<T> (socket: string, { deadlineMs, signal }: RequestInit, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const deadline = nodeClock.deadline(deadlineMs, signal)
  try {
    return await work(deadline.signal)
  } catch (error) {
    if (deadline.signal.aborted) throw abortErrorOf(deadline.signal)
    if (error instanceof P2pvmError) throw error
    throw new P2pvmError('ERR_UNAVAILABLE', `the connection broke: ${(error as Error).message}`, { socket }, error)
  } finally {
    deadline[Symbol.dispose]()
  }
}
