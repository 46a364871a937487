/** Run under strace by put-syscalls.test.ts: `put-once.ts chunk|record FOLDER` does one durable put and says so on stdout. */
import { writeSync } from 'node:fs'
import { join } from 'node:path'
import { DiskChunkStore } from '../../src/dht/disk-chunk-store.ts'
import { openStore } from '../../src/dht/open-store.ts'
import { nodeDisk } from '../../src/dht/node-disk.ts'
import { RecordStore } from '../../src/dht/record-store.ts'
import { createCounters, createLog, nodeClock } from '../../src/node/world.ts'
import { chunkIdOf } from '../../src/protocols/cid.ts'

const [kind, folder = ''] = process.argv.slice(2)
const bytes = Buffer.alloc(256 * 1024, 'durable')
const log = createLog({ level: 'warn', stream: process.stderr })

async function putChunk (): Promise<void> {
  const store = await DiskChunkStore.open({ disk: nodeDisk, clock: nodeClock, log, counters: createCounters() }, { root: folder, durable: true, freeFloorBytes: 0 })
  writeSync(1, 'begin\n')
  await store.put(chunkIdOf(bytes), bytes)
}

async function putRecord (): Promise<void> {
  const store = new RecordStore({ store: await openStore(join(folder, 'records.lmdb')), clock: nodeClock })
  writeSync(1, 'begin\n')
  await store.put([{ name: 'node/blob/1/0/0', value: bytes.subarray(0, 4096) }])
}

await (kind === 'record' ? putRecord() : putChunk())
writeSync(1, 'acknowledged\n')
// Whatever is synced at exit came too late, and is not to be mistaken for the put's own.
process.kill(process.pid, 'SIGKILL')
