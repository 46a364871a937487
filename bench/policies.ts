/**
 * What the talk's rule for a chunk's content costs, against ours: the traces of real boots (`bench/traces/`), replayed by arithmetic for
 * chunk sizes from 16 KiB to 4 MiB. Bytes fetched, remote operations, and the reads and writes of the machine that would have waited.
 *
 *   node bench/policies.ts [TRACE…]      without TRACE: all of bench/traces/
 *   node bench/policies.ts --record      makes these traces anew: boots real machines, a minute or two
 */
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { parseArgs } from 'node:util'
import { table } from '../src/node/output.ts'
import { formatBytes, formatDuration } from '../src/node/units.ts'
import { type Access, type Cost, type Disk, pageMapCost, talkCost } from './lib/policies.ts'
import { installPackages } from './lib/packages.ts'
import { type Errand, record } from './lib/record.ts'
import { decodeTrace, diskOf, encodeTrace, type Trace } from './lib/trace.ts'

const KIB = 1024
const CHUNK_SIZES = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096].map((kib) => kib * KIB)
const TRACES = join(import.meta.dirname, 'traces')

const ERRANDS: Readonly<Record<string, Errand>> = {
  'debian-boot': { what: 'Debian 12 boots, writes a small file and powers off' },
  'debian-work': {
    what: 'Debian 12 boots; copies /etc, makes a file of 1 MiB, lists all files, reads a third of the programs, appends to a file, powers off',
    work: 'cp -r /etc /root/etc; head -c 1M /dev/urandom >/var/tmp/new; find / -xdev >/root/files; cat /usr/bin/[a-h]* | wc -c; ' +
      'for i in 1 2 3 4 5 6 7 8 9; do echo $i >>/var/log/notes; sync; done'
  },
  'debian-database': {
    what: 'Debian 12 boots; reserves a file of 64 MiB and writes 300 of its pages, each at a random place with an fsync, as a database does; powers off',
    work: 'fallocate -l 64M /var/tmp/table; for i in $(seq 300); do dd if=/dev/urandom of=/var/tmp/table bs=4k count=1 seek=$((RANDOM % 16384)) conv=notrunc,fsync status=none; done'
  }
}

const { values: options, positionals } = parseArgs({ allowPositionals: true, options: { record: { type: 'boolean', default: false } } })
if (options.record) await recordAll()
const paths = positionals.length > 0 ? positionals : (await readdir(TRACES)).filter((name) => name.endsWith('.trace')).sort().map((name) => join(TRACES, name))
for (const path of paths) report(basename(path), decodeTrace(await readFile(path, 'utf8')))
console.log('\nFETCHED: of the chunks themselves, before packing. WAITED: reads and writes of the machine that had to wait for the fabric.')
console.log('IF BUFFERED: writes that waited behind a page cache, which reads a page that is to be written in part.')

async function recordAll (): Promise<void> {
  installPackages('test')
  for (const [name, errand] of Object.entries(ERRANDS)) {
    const trace = await record(errand)
    await writeFile(join(TRACES, `${name}.trace`), encodeTrace(trace))
    console.log(`recorded ${name}: ${trace.accesses.length} accesses`)
  }
}

function report (name: string, trace: Trace): void {
  const { accesses } = trace
  const disk = diskOf(trace)
  const of = (kind: 'read' | 'write'): string => {
    const those = accesses.filter((access) => access.kind === kind)
    return `${those.length} ${kind}s of ${formatBytes(those.reduce((sum, { size }) => sum + size, 0))}`
  }
  console.log(`\n${name}: ${trace.what}\n${of('read')}, ${of('write')} in ${formatDuration((accesses.at(-1)?.us ?? 0) / 1000)}, of a disk of ${formatBytes(trace.size)}`)
  console.log(`\n${comparison(accesses, disk)}`)
  console.log(`\nthe same on an image without holes, whose free space is full of what was there before\n${comparison(accesses, { size: trace.size, isZero: () => false })}`)
}

function comparison (accesses: readonly Access[], disk: Disk): string {
  const rows = CHUNK_SIZES.map((chunkSize) => {
    const talk = talkCost(accesses, disk, chunkSize)
    const direct = pageMapCost(accesses, disk, chunkSize, 'direct')
    const buffered = pageMapCost(accesses, disk, chunkSize, 'buffered')
    return [formatBytes(chunkSize), ...columns(talk), ...columns(direct), buffered.writesWaited, (talk.fetchedBytes / direct.fetchedBytes).toFixed(2), (talk.operations / direct.operations).toFixed(2)]
  })
  return table(['CHUNK', 'TALK: FETCHED', 'OPERATIONS', 'READS WAITED', 'WRITES WAITED', 'OURS: FETCHED', 'OPERATIONS', 'READS WAITED', 'WRITES WAITED', 'IF BUFFERED', 'TALK/OURS: BYTES', 'OPERATIONS'], rows)
}

function columns ({ fetchedBytes, operations, readsWaited, writesWaited }: Cost): Array<string | number> {
  return [formatBytes(fetchedBytes), operations, readsWaited, writesWaited]
}
