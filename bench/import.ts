/**
 * Import and export of a real image, three replicas on loopback, side by side with `casync make` and `casync extract` to and
 * from a local store, and with `cp --sparse`. Counts the bytes that are stored and sent, ours against the kernel's, and the
 * daemons' memory.
 *
 *   node bench/import.ts [IMAGE] [--rounds N]      without IMAGE: the Debian image of the tests
 */
import { readdir, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import type { ImportResult } from '../src/node/control-api.ts'
import { table } from '../src/node/output.ts'
import { formatBytes } from '../src/node/units.ts'
import { counterSum, p2pvm, peersOf, withFabric, type Workshop } from './lib/fabric.ts'
import { type BenchImage, benchImage } from './lib/image.ts'
import { enterOwnNetwork, loopbackBytes } from './lib/loopback.ts'
import { machine } from './lib/machine.ts'
import { meanPssBytes } from './lib/memory.ts'
import { Spread, spreadOf } from './lib/spread.ts'
import { command, timed } from './lib/timed.ts'

/** What memory is looked at after: the garbage of starting up is gone by then. */
const SETTLED_MS = 60_000
/** Frames of our own protocols, as they are handed to libp2p. */
const SENT_COUNTER = 'wire_bytes_sent_total'

const SUBJECTS = ['p2pvm import', 'casync make', 'cp --sparse + sync', 'p2pvm export', 'casync extract'] as const
type Subject = (typeof SUBJECTS)[number]

const { values: { rounds }, positionals } = parseArgs({ allowPositionals: true, options: { rounds: { type: 'string', default: '3' } } })
await enterOwnNetwork()
const image = await benchImage(positionals[0])

const took = new Map<Subject, Spread>(SUBJECTS.map((subject) => [subject, new Spread()]))
const notes: string[] = []

console.log(machine())
console.log(`${image.path}: ${formatBytes(image.sizeBytes)}, of which ${formatBytes(image.nonZeroBytes)} in pages that are not zeros`)
for (let round = 1; round <= Number(rounds); round++) {
  await withFabric(async (workshop) => { await oneRound(workshop, image, round === 1) })
  console.log(`round ${round}: ${SUBJECTS.map((subject) => `${subject} ${(took.get(subject)!.last / 1000).toFixed(1)} s`).join(', ')}`)
}
report(image)

async function oneRound ({ fabric, importer, reader, folder }: Workshop, { path, sizeBytes }: BenchImage, first: boolean): Promise<void> {
  const pids = peersOf(fabric).map(({ pid }) => pid)
  if (first) {
    await delay(SETTLED_MS)
    notes.push(`memory of a daemon (PSS, mean over ${pids.length}) a minute after start: ${formatBytes(await meanPssBytes(pids))}`)
  }

  const before = { loopback: loopbackBytes(), counted: await counterSum(fabric, SENT_COUNTER) }
  const imported = await measure('p2pvm import', async () => await p2pvm<ImportResult>(importer, 'import', path, '--name', 'bench'))
  const after = { counted: await counterSum(fabric, SENT_COUNTER), loopback: loopbackBytes() }
  if (first) {
    notes.push(
      `memory of a daemon after the import: ${formatBytes(await meanPssBytes(pids))}`,
      stored('p2pvm', imported.storedBytes, `packed, in ${imported.newChunks} chunks, each on ${imported.replicas.wanted} peers; ${formatBytes(imported.sentBytes)} of chunks sent`),
      wire(after.counted - before.counted, after.loopback - before.loopback))
  }

  const store = join(folder, 'store')
  const index = join(folder, 'bench.caibx')
  await measure('casync make', async () => { await command('casync', 'make', `--store=${store}`, index, path) })
  if (first) notes.push(stored('casync', await bytesBelow(store), 'compressed'))

  const copy = join(folder, 'copy.img')
  await measure('cp --sparse + sync', async () => {
    await command('cp', '--sparse=always', path, copy)
    await command('sync', copy)
  })
  await rm(copy)

  const exported = join(folder, 'exported.img')
  const { size } = await measure('p2pvm export', async () => await p2pvm<{ size: number }>(reader, 'export', 'bench', exported))
  if (size !== sizeBytes) throw new Error(`exported ${size} bytes of ${sizeBytes}`)
  await command('cmp', path, exported)
  await rm(exported)

  await measure('casync extract', async () => { await command('casync', 'extract', `--store=${store}`, index, exported) })
}

async function measure<T> (subject: Subject, work: () => Promise<T>): Promise<T> {
  const { ms, result } = await timed(work)
  took.get(subject)!.add(ms)
  return result
}

async function bytesBelow (folder: string): Promise<number> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true })
  const sizes = await Promise.all(entries.filter((entry) => entry.isFile()).map(async (entry) => (await stat(join(entry.parentPath, entry.name))).size))
  return sizes.reduce((sum, size) => sum + size, 0)
}

function stored (who: string, bytes: number, how: string): string {
  return `${who} stored ${formatBytes(bytes)}, ${(bytes / image.nonZeroBytes).toFixed(2)} × the bytes that are not zeros, ${how}`
}

function wire (counted: number, loopback: number): string {
  const off = 100 * (loopback - counted) / loopback
  return `sent during the import: ${formatBytes(counted)} by our counters, ${formatBytes(loopback)} by the loopback interface's, which is ${off.toFixed(1)} % more (TCP and IP headers, and what libp2p sends itself)`
}

function report ({ sizeBytes }: BenchImage): void {
  const rate = (spread: Spread, bytes: number): string => spreadOf(spread.values.map((ms) => bytes / ms / 1000)).text(0)
  console.log(`\n${table(
    ['', 'SECONDS', 'MB/S OF THE IMAGE', 'MB/S OF WHAT IS NOT ZERO'],
    SUBJECTS.map((subject) => {
      const spread = took.get(subject)!
      return [subject, spreadOf(spread.values.map((ms) => ms / 1000)).text(1), rate(spread, sizeBytes), rate(spread, image.nonZeroBytes)]
    })
  )}`)
  console.log(`(medians of ${rounds} rounds, lowest and highest in brackets; the image is in the page cache; p2pvm's writes are on disk when it returns, casync's are not)\n`)
  for (const [ours, theirs] of [['p2pvm import', 'casync make'], ['p2pvm import', 'cp --sparse + sync'], ['p2pvm export', 'casync extract']] as const) {
    const ratios = took.get(ours)!.values.map((ms, round) => took.get(theirs)!.values[round]! / ms)
    console.log(`${theirs} takes ${spreadOf(ratios).text(2)} times as long as ${ours}`)
  }
  for (const note of notes) console.log(note)
}
