/**
 * The control socket's endpoints (table in `control-api.ts`) as routes: reads what clients send, calls the daemon's
 * handlers, and shapes the answers. It keeps no state. Not for: what an endpoint does (`daemon.ts`), HTTP (`http-server.ts`).
 */
import type { Priority } from '../dht/chunks.ts'
import { checkChunkSize } from '../protocols/cid.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { Log } from '../protocols/seams.ts'
import type { Part } from '../versioning/blobs.ts'
import type { SparseItem } from '../versioning/image-import.ts'
import { type ControlHandlers, type ImportProgress, LINES_TYPE, SPARSE_STREAM_TYPE, VERSION_HEADER, type VersionRow, type WriteProgress, type WriteRequest } from './control-api.ts'
import { errorDocument } from './error-document.ts'
import { json, type Reply, type Route, type RoutedRequest, serveOnSocket, type SocketServer } from './http-server.ts'
import { alignToChunks, decodeSparse, encodeSparse } from './sparse-stream.ts'

/** A few times a second is as fast as anybody reads, and tells the client that the import is alive. */
const PROGRESS_EVERY_MS = 200
/** A few megabytes of ids: the mount asks for hundreds at a time. */
const CHUNK_IDS_AT_ONCE_MAX = 65_536

/** ERR_CONFLICT when another process answers there. */
export async function serveControl (path: string, handlers: ControlHandlers, log: Log): Promise<SocketServer> {
  return await serveOnSocket(path, controlRoutes(handlers), log)
}

function controlRoutes (handlers: ControlHandlers): Route[] {
  const get = (pattern: string, answer: (request: RoutedRequest) => Promise<unknown>): Route =>
    ({ method: 'GET', pattern, handle: async (request) => json(await answer(request)) })
  const post = (pattern: string, answer: (body: Body, request: RoutedRequest) => Promise<unknown>): Route =>
    ({ method: 'POST', pattern, handle: async (request) => json(await answer(new Body(await request.json()), request)) })

  return [
    get('/v1/status', async (call) => await handlers.status(call)),
    get('/v1/peers', async (call) => await handlers.peers(call)),
    get('/v1/folders', async (call) => await handlers.folders(call)),
    get('/v1/images', async (call) => await handlers.images(call)),
    get('/v1/versions', async (call) => await handlers.versions(textOf(call, 'ref'), call)),
    get('/v1/resolve', async (call) => await handlers.resolve(textOf(call, 'ref'), call)),
    get('/v1/chunk-ids', async (call) => await handlers.chunkIds({
      blob: textOf(call, 'blob'),
      version: countOf(call, 'version'),
      first: countOf(call, 'first'),
      count: countOf(call, 'count', CHUNK_IDS_AT_ONCE_MAX)
    }, call)),
    get('/v1/verify', async (call) => await handlers.verify(textOf(call, 'ref'), call)),
    get('/v1/recent', async (call) => await handlers.recent(textOf(call, 'ref'), call)),
    get('/v1/working-copies', async (call) => await handlers.workingCopies(call)),
    post('/v1/fetch', async (body, { signal }) => ({
      verified: await handlers.fetch(body.texts('chunks'), { signal, priority: priorityOf(body.optional('priority')) })
    })),
    post('/v1/blobs', async (body, call) => await handlers.createBlob({
      chunkSize: body.count('chunkSize'), fanOut: body.count('fanOut'), name: body.optional('name')
    }, call)),
    post('/v1/working-copies', async (body, call) => await handlers.createWorkingCopy({ name: body.text('name'), ref: body.text('ref') }, call)),
    {
      method: 'DELETE',
      pattern: '/v1/working-copies/:name',
      async handle (call) {
        await handlers.removeWorkingCopy(call.params['name'] ?? '', call)
        return json({})
      }
    },
    {
      method: 'POST',
      pattern: '/v1/working-copies/:name/revert',
      handle: async (call) => json(await handlers.revertWorkingCopy(call.params['name'] ?? '', call))
    },
    post('/v1/clone', async (body, call) => {
      body.exactlyOne('ref', 'path', 'workingCopy')
      return await handlers.clone({
        ref: body.optional('ref'), path: body.optional('path'), workingCopy: body.optional('workingCopy'), name: body.optional('name'), id: body.optional('id')
      }, call)
    }),
    post('/v1/commit', async (body, call) => {
      body.exactlyOne('path', 'workingCopy')
      return await handlers.commit({
        path: body.optional('path'), workingCopy: body.optional('workingCopy'), as: body.optional('as'), message: body.optional('message'), id: body.optional('id')
      }, call)
    }),
    post('/v1/commit-group', async (body, call) => {
      const members = body.records('members').map((member) => {
        member.exactlyOne('path', 'workingCopy')
        return { path: member.optional('path'), workingCopy: member.optional('workingCopy'), as: member.optional('as') }
      })
      return await handlers.commitGroup({ members, message: body.optional('message') }, call)
    }),
    { method: 'POST', pattern: '/v1/import', handle: async (call) => await importReply(handlers, call) },
    { method: 'GET', pattern: '/v1/export', handle: async (call) => sparseReply(await handlers.export(textOf(call, 'ref'), call)) },
    {
      method: 'POST',
      pattern: '/v1/write',
      handle: async (call) => await writeReply(call, async (request, items) => await handlers.writeBlob(request, partsOf(items), call))
    },
    {
      method: 'POST',
      pattern: '/v1/append',
      handle: async (call) => await writeReply(call, async (request, items) => await handlers.appendBlob(request, bytesInOrder(items), call))
    },
    {
      method: 'GET',
      pattern: '/v1/read',
      handle: async (call) => sparseReply(await handlers.readBlob(textOf(call, 'ref'), { offset: optionalCountOf(call, 'offset'), size: optionalCountOf(call, 'size') }, call))
    },
    {
      method: 'GET',
      pattern: '/metrics',
      handle: async (call) => ({ type: 'text/plain; version=0.0.4', body: await handlers.metrics(call) })
    }
  ]
}

async function importReply (handlers: ControlHandlers, call: RoutedRequest): Promise<Reply> {
  const request = {
    name: textOf(call, 'name'),
    chunkSize: checkChunkSize(countOf(call, 'chunkSize')),
    message: call.query.get('message') ?? undefined
  }
  const source = alignToChunks(decodeSparse(call.stream), request.chunkSize)
  const start: ImportProgress = { doneBytes: 0, chunks: 0, holes: 0, alreadyThere: 0 }
  return await longReply(call, start, async (onProgress) => await handlers.import(request, source, { signal: call.signal, onProgress }))
}

async function writeReply<Result> (
  call: RoutedRequest, run: (request: WriteRequest, items: AsyncIterable<SparseItem>) => Promise<Result>
): Promise<Reply> {
  const request = {
    ref: textOf(call, 'ref'),
    expectedBase: optionalCountOf(call, 'expectedBase'),
    message: call.query.get('message') ?? undefined,
    requestId: call.query.get('requestId') ?? undefined
  }
  const start: WriteProgress = { doneBytes: 0 }
  return await longReply(call, start, async (onProgress) => await run(request, counted(decodeSparse(call.stream), onProgress)))
}

async function * counted (items: AsyncIterable<SparseItem>, onProgress: (progress: WriteProgress) => void): AsyncGenerator<SparseItem> {
  let doneBytes = 0
  for await (const item of items) {
    yield item
    if ('bytes' in item) onProgress({ doneBytes: doneBytes += item.bytes.length })
  }
}

async function * partsOf (items: AsyncIterable<SparseItem>): AsyncGenerator<Part> {
  for await (const item of items) if ('bytes' in item) yield item
}

async function * bytesInOrder (items: AsyncIterable<SparseItem>): AsyncGenerator<Uint8Array> {
  let end = 0
  for await (const item of items) {
    if (('bytes' in item ? item.offset : item.size) !== end) throw new P2pvmError('ERR_PROTOCOL', `what is appended has a gap at ${end}`)
    if ('bytes' in item) {
      yield item.bytes
      end += item.bytes.length
    }
  }
}

/** What may take hours: progress before the result for whoever accepts it, and knows then that it is alive. */
async function longReply<Progress, Result> (
  call: RoutedRequest, start: Progress, run: (onProgress: (progress: Progress) => void) => Promise<Result>
): Promise<Reply> {
  if (call.headers.accept !== LINES_TYPE) return json(await run(() => {}))
  return { type: LINES_TYPE, body: progressLines(start, run) }
}

/** `{"progress"}` while it runs, then `{"result"}` or an error document. */
async function * progressLines<Progress, Result> (
  start: Progress, run: (onProgress: (progress: Progress) => void) => Promise<Result>
): AsyncGenerator<string> {
  let progress = start
  let last: string | undefined
  const done = run((next) => { progress = next }).then(
    (result) => { last = JSON.stringify({ result }) },
    (error: unknown) => { last = JSON.stringify(errorDocument(error)) })
  let tick: NodeJS.Timeout | undefined
  while (last === undefined) {
    yield `${JSON.stringify({ progress })}\n`
    await Promise.race([done, new Promise((resolve) => { tick = setTimeout(resolve, PROGRESS_EVERY_MS) })])
    clearTimeout(tick)
  }
  yield `${last}\n`
}

function sparseReply ({ version, items }: { readonly version: VersionRow, readonly items: AsyncIterable<SparseItem> }): Reply {
  return { type: SPARSE_STREAM_TYPE, headers: { [VERSION_HEADER]: encodeURIComponent(JSON.stringify(version)) }, body: encodeSparse(items) }
}

function textOf ({ query }: RoutedRequest, name: string): string {
  const text = query.get(name)
  if (text === null || text === '') throw new P2pvmError('ERR_USAGE', `the parameter ${name} is missing`)
  return text
}

function countOf (call: RoutedRequest, name: string, max = Number.MAX_SAFE_INTEGER): number {
  const text = textOf(call, name)
  const count = Number(text)
  if (!/^\d+$/.test(text) || count > max) throw new P2pvmError('ERR_USAGE', `the parameter ${name} must be a number from 0 to ${max}, not ${text}`)
  return count
}

function optionalCountOf (call: RoutedRequest, name: string): number | undefined {
  return call.query.has(name) ? countOf(call, name) : undefined
}

function priorityOf (text: string | undefined): Priority | undefined {
  if (text === undefined || text === 'demand' || text === 'commit' || text === 'prefetch') return text
  throw new P2pvmError('ERR_USAGE', `no such priority: ${text}`)
}

/** Members of a request's object, each checked as it is taken out. */
class Body {
  readonly #members: Readonly<Record<string, unknown>>

  constructor (members: Readonly<Record<string, unknown>>) {
    this.#members = members
  }

  text (name: string): string {
    const text = this.optional(name)
    if (text === undefined || text === '') throw new P2pvmError('ERR_USAGE', `${name} is missing`)
    return text
  }

  optional (name: string): string | undefined {
    const value = this.#members[name] ?? undefined
    if (value === undefined || typeof value === 'string') return value
    throw new P2pvmError('ERR_USAGE', `${name} must be text`)
  }

  /** undefined when it is not there. */
  count (name: string): number | undefined {
    const value = this.#members[name] ?? undefined
    if (value === undefined || (Number.isSafeInteger(value) && Number(value) >= 0)) return value as number | undefined
    throw new P2pvmError('ERR_USAGE', `${name} must be a whole number`)
  }

  texts (name: string): string[] {
    const value = this.#members[name]
    if (Array.isArray(value) && value.every((item): item is string => typeof item === 'string')) return value
    throw new P2pvmError('ERR_USAGE', `${name} must be a list of texts`)
  }

  records (name: string): Body[] {
    const value = this.#members[name]
    if (Array.isArray(value) && value.every((item): item is Record<string, unknown> => typeof item === 'object' && item !== null)) {
      return value.map((item) => new Body(item))
    }
    throw new P2pvmError('ERR_USAGE', `${name} must be a list of objects`)
  }

  exactlyOne (...names: string[]): void {
    const given = names.filter((name) => this.optional(name) !== undefined)
    if (given.length !== 1) throw new P2pvmError('ERR_USAGE', `exactly one of ${names.join(', ')} must be given`)
  }
}
