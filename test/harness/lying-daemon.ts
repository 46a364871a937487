/**
 * A real storage peer with a store that lies: it keeps what it is given, and from the word `lie` on it hands out altered
 * bytes of the same length. After its ready line it answers each line on stdin (`lie`, `count`) with how often it has lied.
 *
 *   node lying-daemon.ts '{"dataDir", "bootstrap", "control"}'
 */
import { createInterface } from 'node:readline'
import type { ChunkStore } from '../../src/dht/chunk-store.ts'
import type { DaemonConfig } from '../../src/node/config.ts'
import { runDaemon } from '../../src/node/daemon.ts'

const told = JSON.parse(process.argv[2] ?? '') as Pick<DaemonConfig, 'dataDir' | 'bootstrap' | 'control'>
const stop = new AbortController()
process.once('SIGTERM', () => { stop.abort() })

let lying = false
let lies = 0
createInterface(process.stdin).on('line', (word) => {
  if (word === 'lie') lying = true
  print({ lies })
})

function print (line: object): void {
  process.stdout.write(`${JSON.stringify(line)}\n`)
}

function lyingStore (store: ChunkStore): ChunkStore {
  return {
    put: async (id, bytes) => await store.put(id, bytes),
    have: async (ids) => await store.have(ids),
    delete: async (id) => { await store.delete(id) },
    pathOf: (id) => store.pathOf(id),
    usage: () => store.usage(),
    get: async (id) => altered(await store.get(id)),
    getPacked: async (id) => altered(await store.getPacked(id))
  }
}

function altered (chunk: Uint8Array | undefined): Uint8Array | undefined {
  if (!lying || chunk === undefined) return chunk
  lies += 1
  const other = Uint8Array.from(chunk)
  other[other.length - 1]! ^= 1
  return other
}

await runDaemon({
  ...told,
  roles: ['storage'],
  listen: ['/ip4/127.0.0.1/tcp/0'],
  capacityBytes: 100 * 2 ** 30,
  cacheBytesMax: 2 ** 30,
  replicas: 3,
  writeQuorum: 2,
  memberList: true,
  logLevel: 'warn',
  onReady: print,
  signal: stop.signal
}, { wrapChunkStore: lyingStore })
process.exit(0)
