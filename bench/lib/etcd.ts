/**
 * An etcd for comparison, of one member or several, and durable transactions against it over its own protocol (gRPC, on Node's
 * HTTP/2): what an etcd client library would send, without one. All are asked of the first member.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { connect, type ClientHttp2Session } from 'node:http2'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'

export interface Etcd {
  /** One transaction that puts a key; resolves when it is on the disks of a majority of the members. */
  put (key: string, value: Uint8Array): Promise<void>
  stop (): Promise<void>
}

const START_DEADLINE_MS = 20_000
const GRPC_OK = '0'

export async function startEtcd (folder: string, { members: count = 1 }: { members?: number } = {}): Promise<Etcd> {
  const members: Array<{ name: string, client: string, peer: string }> = []
  for (let at = 0; at < count; at++) {
    members.push({ name: `member-${at}`, client: `http://127.0.0.1:${await freePort()}`, peer: `http://127.0.0.1:${await freePort()}` })
  }
  const cluster = members.map(({ name, peer }) => `${name}=${peer}`).join(',')
  const children = members.map(({ name, client, peer }) => spawn('etcd', [
    '--name', name, '--data-dir', join(folder, name), '--listen-client-urls', client, '--advertise-client-urls', client,
    '--listen-peer-urls', peer, '--initial-advertise-peer-urls', peer, '--initial-cluster', cluster, '--logger', 'zap', '--log-outputs', '/dev/null'
  ], { stdio: 'ignore' }))
  const ended = Promise.all(children.map(async (child) => { await once(child, 'exit') }))
  ended.catch(() => {}) // could not be started: the deadline below says so
  const stop = async (): Promise<void> => {
    for (const child of children) child.kill('SIGTERM')
    await ended
  }
  const session = await connected(members[0]!.client).catch(async (error: unknown) => {
    await stop()
    throw error
  })
  return {
    async put (key, value) {
      const request = putTransaction(Buffer.from(key), value)
      for (const end = performance.now() + START_DEADLINE_MS; ;) {
        const status = await call(session, '/etcdserverpb.KV/Txn', request)
        if (status === GRPC_OK) return
        // It listens before it has elected itself.
        if (performance.now() > end) throw new Error(`etcd answers with gRPC status ${status}`)
        await delay(50)
      }
    },
    async stop () {
      session.close()
      await stop()
    }
  }
}

async function connected (url: string): Promise<ClientHttp2Session> {
  for (const end = performance.now() + START_DEADLINE_MS; ;) {
    const session = connect(url)
    try {
      await once(session, 'connect')
      return session
    } catch (error) {
      session.destroy()
      if (performance.now() > end) throw new Error('etcd does not start', { cause: error })
      await delay(50)
    }
  }
}

async function call (session: ClientHttp2Session, path: string, message: Uint8Array): Promise<string | undefined> {
  const stream = session.request({ ':method': 'POST', ':path': path, 'content-type': 'application/grpc', te: 'trailers' })
  const head = Buffer.alloc(5) // not compressed
  head.writeUInt32BE(message.length, 1)
  stream.end(Buffer.concat([head, message]))
  let status: string | undefined
  const take = (headers: Record<string, unknown>): void => { status = headers['grpc-status'] as string | undefined ?? status }
  stream.on('response', take).on('trailers', take).resume()
  await once(stream, 'close')
  return status
}

/** TxnRequest { success: [RequestOp { request_put: PutRequest { key, value } }] }, in protobuf. */
function putTransaction (key: Uint8Array, value: Uint8Array): Uint8Array {
  return field(2, field(2, Buffer.concat([field(1, key), field(2, value)])))
}

function field (number: number, bytes: Uint8Array): Uint8Array {
  const length = []
  for (let left = bytes.length; ; left >>>= 7) {
    length.push(left > 0x7f ? (left & 0x7f) | 0x80 : left)
    if (left <= 0x7f) break
  }
  return Buffer.concat([Buffer.from([number << 3 | 2, ...length]), bytes])
}

async function freePort (): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  server.close()
  await once(server, 'close')
  if (address === null || typeof address === 'string') throw new Error('no free port')
  return address.port
}
