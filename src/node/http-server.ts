/**
 * HTTP over a unix socket, for the daemon (`control-server.ts`) and its mounts: routes, JSON or streams both ways, errors as
 * JSON, bounds. It owns the socket's file: one that nobody answers on is a dead process's and is replaced.
 */
import { chmodSync } from 'node:fs'
import { lstat, mkdir, unlink } from 'node:fs/promises'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { connect } from 'node:net'
import { dirname } from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { type ErrorCode, errorCodeOf, P2pvmError } from '../protocols/errors.ts'
import type { Log } from '../protocols/seams.ts'
import { errorDocument } from './error-document.ts'

export interface RoutedRequest {
  /** What stands for `:name` in the pattern. */
  readonly params: Readonly<Record<string, string>>
  readonly query: URLSearchParams
  readonly headers: IncomingMessage['headers']
  /** The body as it comes in. */
  readonly stream: AsyncIterable<Uint8Array>
  /** The whole body, an object. ERR_USAGE when it is not that. */
  json (): Promise<Readonly<Record<string, unknown>>>
  /** Aborts when the client goes away before it has its answer. */
  readonly signal: AbortSignal
}

export interface Reply {
  readonly type: string
  /** A stream that throws after its beginning breaks the connection off: the client sees that it is not whole. */
  readonly body: string | AsyncIterable<Uint8Array | string>
  readonly headers?: Readonly<Record<string, string>>
}

export interface Route {
  readonly method: 'GET' | 'POST' | 'DELETE'
  /** `/v1/working-copies/:name/revert` */
  readonly pattern: string
  handle (request: RoutedRequest): Promise<Reply>
}

export function json (value: unknown): Reply {
  return { type: 'application/json', body: JSON.stringify(value) }
}

export interface SocketServer {
  /** Stops listening, ends what is under way, removes the socket's file. */
  close (): Promise<void>
}

/** Chunk ids of a whole window of prefetch, with room. */
const BODY_BYTES_MAX = 4 * 1024 * 1024
/** A mount waits with one request per miss: the kernel has at most some hundred reads under way per mount. */
const REQUESTS_AT_ONCE_MAX = 2048
/** The owner and its group use the socket: whoever may use it may read every image. */
const SOCKET_MODE = 0o660
/** Longer than any client pauses in normal use, so that it is the client who lets a kept connection go. */
const KEEP_ALIVE_MS = 120_000
const HEAD_DEADLINE_MS = 10_000
const PROBE_DEADLINE_MS = 2_000

/** ERR_CONFLICT when another process answers there; ERR_NOT_ALLOWED where the folder forbids it. */
export async function serveOnSocket (path: string, routes: readonly Route[], log: Log): Promise<SocketServer> {
  await makeRoom(path)
  const dispatch = new Dispatcher(routes, log)
  const server = createServer((request, response) => { void dispatch.answer(request, response) })
  server.headersTimeout = HEAD_DEADLINE_MS
  server.requestTimeout = 0 // an import takes as long as it takes: its signal and its own deadlines end it
  server.keepAliveTimeout = KEEP_ALIVE_MS
  await listen(server, path)
  return {
    async close () {
      const closed = new Promise<void>((resolve) => { server.close(() => { resolve() }) }) // also unlinks the socket
      server.closeAllConnections()
      await closed
    }
  }
}

async function makeRoom (path: string): Promise<void> {
  try {
    await mkdir(dirname(path), { recursive: true, mode: 0o750 })
    if (!(await lstat(path)).isSocket()) throw new P2pvmError('ERR_CONFLICT', `${path} is there, and is no socket`, { path })
    if (await somebodyAnswers(path)) throw new P2pvmError('ERR_CONFLICT', `another process answers at the socket ${path}`, { path })
    await unlink(path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return
    if (error instanceof P2pvmError) throw error
    throw new P2pvmError(errorCodeOf(error), `cannot make the socket ${path}: ${(error as Error).message}`, { path }, error)
  }
}

/** False: the file is left over from a dead process. */
async function somebodyAnswers (path: string): Promise<boolean> {
  return await new Promise((resolve, reject) => {
    const probe = connect({ path, timeout: PROBE_DEADLINE_MS })
    const done = (answer: () => void): void => {
      probe.destroy()
      answer()
    }
    probe.once('connect', () => { done(() => { resolve(true) }) })
    probe.once('timeout', () => { done(() => { resolve(true) }) }) // somebody listens, and is too busy to accept
    probe.once('error', (error: NodeJS.ErrnoException) => {
      done(() => { if (error.code === 'ECONNREFUSED') resolve(false); else reject(error) })
    })
  })
}

async function listen (server: Server, path: string): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => {
      reject(new P2pvmError(errorCodeOf(error), `cannot listen at the socket ${path}: ${error.message}`, { path }, error))
    })
    // bind(2) happens inside the call: nobody can connect before the mode is right.
    const before = process.umask(0o777 & ~SOCKET_MODE)
    try {
      server.listen(path, resolve)
    } finally {
      process.umask(before)
    }
  })
  chmodSync(path, SOCKET_MODE)
}

class Dispatcher {
  readonly #routes: ReadonlyArray<{ readonly route: Route, readonly segments: readonly string[] }>
  readonly #log: Log
  #underWay = 0

  constructor (routes: readonly Route[], log: Log) {
    this.#routes = routes.map((route) => ({ route, segments: route.pattern.split('/') }))
    this.#log = log
  }

  async answer (request: IncomingMessage, response: ServerResponse): Promise<void> {
    const gone = new AbortController()
    response.once('close', () => {
      if (!response.writableFinished) gone.abort(new P2pvmError('ERR_ABORTED', 'the client went away'))
    })
    this.#underWay += 1
    try {
      if (this.#underWay > REQUESTS_AT_ONCE_MAX) throw new P2pvmError('ERR_UNAVAILABLE', 'too many requests at once')
      await send(response, await this.#handle(request, gone.signal), gone.signal)
    } catch (error) {
      this.#fail(response, error, `${request.method} ${request.url}`)
    } finally {
      this.#underWay -= 1
    }
  }

  async #handle (request: IncomingMessage, signal: AbortSignal): Promise<Reply> {
    const url = new URL(request.url ?? '/', 'http://socket')
    const { route, params } = this.#find(request.method, url.pathname)
    return await route.handle({
      params,
      query: url.searchParams,
      headers: request.headers,
      stream: request, // left early, it ends the reading and not the connection: the answer can still go out
      json: async () => await readJson(request),
      signal
    })
  }

  #find (method: string | undefined, path: string): { route: Route, params: Record<string, string> } {
    const given = path.split('/')
    for (const { route, segments } of this.#routes) {
      if (route.method !== method || segments.length !== given.length) continue
      const params = paramsOf(segments, given)
      if (params !== undefined) return { route, params }
    }
    throw new P2pvmError('ERR_NOT_FOUND', `no such endpoint: ${method} ${path}`)
  }

  #fail (response: ServerResponse, error: unknown, request: string): void {
    const code = errorCodeOf(error)
    if (code === 'ERR_INTERNAL') this.#log.error('request failed', { request, error: error instanceof Error ? error.stack : String(error) })
    if (response.headersSent) {
      response.destroy()
      return
    }
    const body = JSON.stringify(errorDocument(error))
    response.writeHead(statusOf(code), { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) })
    response.end(body)
  }
}

function paramsOf (segments: readonly string[], given: readonly string[]): Record<string, string> | undefined {
  const params: Record<string, string> = {}
  for (const [at, segment] of segments.entries()) {
    const text = given[at] ?? ''
    if (!segment.startsWith(':')) {
      if (segment !== text) return undefined
      continue
    }
    try {
      params[segment.slice(1)] = decodeURIComponent(text)
    } catch {
      throw new P2pvmError('ERR_USAGE', `malformed: ${text}`)
    }
  }
  return params
}

async function readJson (request: IncomingMessage): Promise<Readonly<Record<string, unknown>>> {
  const parts: Buffer[] = []
  let size = 0
  for await (const part of request as AsyncIterable<Buffer>) {
    size += part.length
    if (size > BODY_BYTES_MAX) throw new P2pvmError('ERR_USAGE', `a request of more than ${BODY_BYTES_MAX} bytes`)
    parts.push(part)
  }
  try {
    const value: unknown = JSON.parse(Buffer.concat(parts).toString())
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Record<string, unknown>
  } catch {
    // Refused below, as any other body that is not an object.
  }
  throw new P2pvmError('ERR_USAGE', 'the body must be one JSON object')
}

async function send (response: ServerResponse, { type, body, headers }: Reply, signal: AbortSignal): Promise<void> {
  if (typeof body === 'string') {
    response.writeHead(200, { 'content-type': type, 'content-length': Buffer.byteLength(body), ...headers })
    response.end(body)
    return
  }
  response.writeHead(200, { 'content-type': type, ...headers })
  response.flushHeaders()
  await pipeline(Readable.from(body), response, { signal })
}

const STATUSES: Readonly<Partial<Record<ErrorCode, number>>> = {
  ERR_USAGE: 400,
  ERR_PROTOCOL: 400,
  ERR_NOT_FOUND: 404,
  ERR_CONFLICT: 409,
  ERR_SOURCE_CHANGED: 409,
  ERR_NOT_ALLOWED: 403,
  ERR_UNAVAILABLE: 503,
  ERR_TIMEOUT: 504,
  ERR_DISK_FULL: 507
}

function statusOf (code: ErrorCode): number {
  return STATUSES[code] ?? 500
}
