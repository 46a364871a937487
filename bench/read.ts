/**
 * Reading a real image that is on the fabric, from a machine that has never seen it: how long until the first byte, against
 * fetching all of it first (`casync extract`, `cp`); how fast through the mount when cold and when cached, against a local file;
 * and what a reader of a part fetches.
 *
 *   node bench/read.ts [IMAGE] [--rounds N]      without IMAGE: the Debian image of the tests
 */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import type { ImportResult } from '../src/node/control-api.ts'
import { table } from '../src/node/output.ts'
import { formatBytes } from '../src/node/units.ts'
import { counterSum, p2pvm, withFabric, type Workshop } from './lib/fabric.ts'
import { benchImage } from './lib/image.ts'
import { enterOwnNetwork } from './lib/loopback.ts'
import { machine } from './lib/machine.ts'
import { Spread, spreadOf } from './lib/spread.ts'
import { command, timed } from './lib/timed.ts'


const FIRST_BYTE = ['p2pvm mount', 'first byte after it', 'casync extract, then read', 'cp --sparse, then read'] as const
const READS = ['mount, cold: all of it', 'mount, cached by p2pvm', 'mount, in the page cache', 'local file, from disk', 'local file, in the page cache'] as const
type Subject = (typeof FIRST_BYTE)[number] | (typeof READS)[number]

const { values: { rounds }, positionals } = parseArgs({ allowPositionals: true, options: { rounds: { type: 'string', default: '3' } } })
await enterOwnNetwork()
const image = await benchImage(positionals[0])
const took = new Map<Subject, Spread>([...FIRST_BYTE, ...READS].map((subject) => [subject, new Spread()]))
const fetchedFor = { firstByte: new Spread(), all: new Spread() }

console.log(machine())
console.log(`${image.path}: ${formatBytes(image.sizeBytes)}, of which ${formatBytes(image.nonZeroBytes)} in pages that are not zeros`)
for (let round = 1; round <= Number(rounds); round++) {
  await withFabric(oneRound)
  console.log(`round ${round}: ${[...took].map(([subject, spread]) => `${subject} ${spread.last.toFixed(0)} ms`).join(', ')}`)
}
report()

async function oneRound ({ fabric, importer, reader, folder }: Workshop): Promise<void> {
  const { version } = await p2pvm<ImportResult>(importer, 'import', image.path, '--name', 'bench')
  const store = join(folder, 'store')
  const index = join(folder, 'bench.caibx')
  await command('casync', 'make', `--store=${store}`, index, image.path)
  const received = async (): Promise<number> => await counterSum(fabric, 'chunk_bytes_received_total')

  const mountpoint = join(folder, 'mnt')
  await mkdir(mountpoint)
  const mounted = join(mountpoint, 'by-name', 'bench', String(version))
  const before = await received()
  await measure('p2pvm mount', async () => await p2pvm(reader, 'mount', mountpoint, '--detach'))
  await measure('first byte after it', async () => { await firstByte(mounted) })
  const afterFirst = await received()
  await measure('mount, cold: all of it', async () => { await readAll(mounted, 'direct') })
  fetchedFor.firstByte.add(afterFirst - before)
  fetchedFor.all.add(await received() - before)
  await measure('mount, cached by p2pvm', async () => { await readAll(mounted, 'direct') })
  await readAll(mounted)
  await measure('mount, in the page cache', async () => { await readAll(mounted) })
  await command('cmp', mounted, image.path)
  await p2pvm(reader, 'umount', mountpoint)

  const extracted = join(folder, 'extracted.img')
  await measure('casync extract, then read', async () => {
    await command('casync', 'extract', `--store=${store}`, index, extracted)
    await firstByte(extracted)
  })
  const copy = join(folder, 'copy.img')
  await measure('cp --sparse, then read', async () => {
    await command('cp', '--sparse=always', image.path, copy)
    await firstByte(copy)
  })
  await measure('local file, from disk', async () => { await readAll(copy, 'direct') })
  await readAll(copy)
  await measure('local file, in the page cache', async () => { await readAll(copy) })
}

async function firstByte (path: string): Promise<void> {
  await command('dd', `if=${path}`, 'of=/dev/null', 'bs=4096', 'count=1', 'status=none')
}

/** `direct`: past the kernel's page cache. */
async function readAll (path: string, ...flags: string[]): Promise<void> {
  await command('dd', `if=${path}`, 'of=/dev/null', 'bs=1M', 'status=none', ...flags.map((flag) => `iflag=${flag}`))
}

async function measure (subject: Subject, work: () => Promise<unknown>): Promise<void> {
  took.get(subject)!.add((await timed(work)).ms)
}

function report (): void {
  console.log(`\n${table(['UNTIL THE FIRST BYTE', 'MS'], FIRST_BYTE.map((subject) => [subject, took.get(subject)!.text(0)]))}`)
  console.log(`\n${table(['READING ALL, 1 MiB AT A TIME', 'MB/S'], READS.map((subject) =>
    [subject, spreadOf(took.get(subject)!.values.map((ms) => image.sizeBytes / ms / 1000)).text(0)]))}`)
  console.log(`(medians of ${rounds} rounds, lowest and highest in brackets; MB/s of the image's size, holes included)\n`)
  const mount = took.get('p2pvm mount')!.values.map((ms, round) => ms + took.get('first byte after it')!.values[round]!)
  for (const theirs of ['casync extract, then read', 'cp --sparse, then read'] as const) {
    const ratios = took.get(theirs)!.values.map((ms, round) => ms / mount[round]!)
    console.log(`${theirs}: ${spreadOf(ratios).text(1)} times as long as mount and first byte`)
  }
  console.log(`fetched for the first byte: ${formatBytes(fetchedFor.firstByte.median)}; for all of it: ${formatBytes(fetchedFor.all.median)} of ${formatBytes(image.nonZeroBytes)} that are not zeros`)
}
