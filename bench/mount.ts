/**
 * A machine's disk, side by side in one run: the local file system, a working copy under our drivers, bindfs, nbdfuse over nbdkit's cow
 * filter, and qcow2 through qemu-nbd. fio for throughput and latency, cold and warm; bonnie++, the talk's program, inside an ext4 on
 * each disk; and the first read of an image from storage peers on loopback.
 *
 *   node bench/mount.ts [--rounds N] [--seconds N] [--size SIZE] [--rows NAME,…] [--no-bonnie]
 *
 * `--seconds` is the length of a random job, `--size` that of the disk, `--rows` words of the rows to run. Writes end with an fsync.
 * Needs root and /dev/fuse; without loop devices bonnie++ is left out.
 */
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { table } from '../src/node/output.ts'
import { formatBytes, parseBytes } from '../src/node/units.ts'
import { bonnie, BONNIE_COLUMNS } from './lib/bonnie.ts'
import { bindfs, type Content, type Disk, localFile, type Maker, mountFileSystem, nbdkitCow, qcow2, workingCopy } from './lib/disks.ts'
import { p2pvm, withFabric, type Workshop } from './lib/fabric.ts'
import { fio, type FioJob, type FioResult } from './lib/fio.ts'
import { enterOwnNetwork } from './lib/loopback.ts'
import { machine } from './lib/machine.ts'
import { installPackages } from './lib/packages.ts'
import { readCold, startOver, tryMounts } from './lib/reader.ts'
import { Spread, spreadOf } from './lib/spread.ts'
import { Stage } from './lib/stage.ts'

const { values: options } = parseArgs({
  options: {
    rounds: { type: 'string', default: '3' },
    seconds: { type: 'string', default: '3' },
    size: { type: 'string', default: '512MiB' },
    rows: { type: 'string', default: '' },
    'no-bonnie': { type: 'boolean', default: false }
  }
})
const rounds = Number(options.rounds)
const seconds = Number(options.seconds)
const sizeBytes = parseBytes(options.size)

/** A driver that is slow at random writes is not waited for longer. */
const SLOW_FACTOR = 4
/** bonnie++ tells nothing of what takes less than half a second: it needs more to read back than fio. In a file system of twice that. */
const BONNIE_FACTOR = 2
const BONNIE_ROOM = 4
const MIB = 1024 ** 2

interface Job extends FioJob {
  readonly name: string
  readonly unit: 'MB/s' | 'IOPS'
  /** All that the kernel has cached is dropped before. */
  readonly cold: boolean
  /** All is read with O_DIRECT before, as a machine has that runs for a while: what is below a disk has it in the page cache, if it ever does. */
  readonly readBefore?: boolean
  /** What it must reach, as a share of the local file in the same run. */
  readonly ratioMin?: number
  /** Its single requests are of interest. */
  readonly latency?: boolean
  /** µs at the median, no more. */
  readonly p50Max?: number
}

const TIMED = [`runtime=${seconds}`, 'time_based']
const BUFFERED_WRITES = ['end_fsync=1', `io_size=${Math.floor(sizeBytes / 4)}`, `runtime=${SLOW_FACTOR * seconds}`]
const JOBS: readonly Job[] = [
  { name: 'seq read, cold', unit: 'MB/s', kind: 'read', cold: true, args: ['rw=read', 'bs=1M'], ratioMin: 0.9 },
  // Answered by the kernel alone: no driver can do anything about it, so it has nothing to reach.
  { name: 'seq read, warm', unit: 'MB/s', kind: 'read', cold: false, args: ['rw=read', 'bs=1M'] },
  { name: '4K read, O_DIRECT', unit: 'IOPS', kind: 'read', cold: false, args: ['rw=randread', 'bs=4k', 'direct=1', ...TIMED], readBefore: true, latency: true, p50Max: 30 },
  { name: '4K read, cold', unit: 'IOPS', kind: 'read', cold: true, args: ['rw=randread', 'bs=4k', ...TIMED], latency: true },
  { name: 'seq write', unit: 'MB/s', kind: 'write', cold: false, args: ['rw=write', 'bs=1M', 'end_fsync=1'], ratioMin: 0.9 },
  { name: '4K write', unit: 'IOPS', kind: 'write', cold: false, args: ['rw=randwrite', 'bs=4k', ...BUFFERED_WRITES], latency: true, ratioMin: 0.3 },
  { name: '4K write, O_DIRECT', unit: 'IOPS', kind: 'write', cold: false, args: ['rw=randwrite', 'bs=4k', 'direct=1', 'end_fsync=1', ...TIMED], latency: true }
]
/** MB/s. */
const COLD_FABRIC_MIN = 250

interface Row {
  readonly maker: Maker
  readonly results: Map<Job, FioResult[]>
  /** Per column of bonnie++; undefined: not run, or too fast to tell. */
  bonnie?: Array<number | undefined>
}

const remarks = new Set<string>()
const coldFabric = new Spread()

installPackages('bench')
await enterOwnNetwork({ mounts: true })
if (process.getuid?.() !== 0) throw new Error('this benchmark mounts: it needs root')
console.log(machine())

let stage: Stage | undefined
let rows: Row[] = []
await withFabric(async (workshop) => {
  stage = new Stage(workshop.folder)
  rows = await measureAll(workshop, stage)
}, async () => { await stage?.clear() })
report()

async function measureAll (workshop: Workshop, stage: Stage): Promise<Row[]> {
  const { importer, reader } = workshop
  const mounts = await tryMounts(stage, reader, (why) => { remarks.add(why) })
  const makers = [
    localFile(stage), ...mounts.map(({ driver, mountpoint }) => workingCopy(stage, reader, mountpoint, driver)),
    bindfs(stage), nbdkitCow(stage), qcow2(stage)
  ].filter(({ name }) => options.rows === '' || options.rows.split(',').some((word) => name.includes(word)))
  const rows = makers.map((maker): Row => ({ maker, results: new Map(JOBS.map((job) => [job, []])) }))
  for (const { note } of makers) if (note !== undefined) remarks.add(note)

  const plain = await randomContent(stage)
  await p2pvm(importer, 'import', plain.path, '--name', plain.name)
  for (let round = 1; round <= rounds; round++) {
    await startOver(reader, mounts)
    coldFabric.add(await readCold(stage, mounts[0]!.mountpoint, plain.name, sizeBytes) / 1e6)
    for (const row of rows) await withDisk(row, plain, async (disk) => { await fioRound(stage, row, disk) })
    if (round === rounds && !options['no-bonnie']) await bonnieAll(workshop, stage, rows)
    console.log(`round ${round} of ${rounds} done`)
  }
  return rows
}

async function withDisk ({ maker }: Row, content: Content, work: (disk: Disk) => Promise<void>): Promise<void> {
  const disk = await maker.make(content)
  try {
    await work(disk)
  } finally {
    await disk.close()
  }
}

/** Bytes of which nothing is saved by packing them: the worst case for whoever fetches them. */
async function randomContent (stage: Stage): Promise<Content> {
  const path = join(stage.newFolder(), 'random.raw')
  const file = await open(path, 'w')
  for (let at = 0; at < sizeBytes; at += MIB) await file.write(randomBytes(Math.min(MIB, sizeBytes - at)))
  await file.sync()
  await file.close()
  return { name: 'random', path }
}

async function fioRound (stage: Stage, { results }: Row, disk: Disk): Promise<void> {
  for (const job of JOBS) {
    await stage.run('sync')
    if (job.cold && !dropCaches()) continue
    if (job.readBefore === true) await stage.run('dd', `if=${disk.path}`, 'of=/dev/null', 'bs=1M', 'iflag=direct', 'status=none')
    results.get(job)!.push(await fio(stage, disk.path, sizeBytes, job))
  }
}

/** False where that is not allowed. */
function dropCaches (): boolean {
  try {
    writeFileSync('/proc/sys/vm/drop_caches', '1')
    return true
  } catch {
    remarks.add('the kernel\'s caches cannot be dropped here: nothing was measured cold')
    return false
  }
}

/** The talk's: inside a file system on the disk, one run each. */
async function bonnieAll ({ importer }: Workshop, stage: Stage, rows: readonly Row[]): Promise<void> {
  if (!hasLoopDevices()) {
    remarks.add('bonnie++ is left out: this machine has no loop device to mount a file system in a file with')
    return
  }
  const path = join(stage.newFolder(), 'ext4.raw')
  await stage.run('truncate', '-s', String(BONNIE_ROOM * sizeBytes), path)
  await stage.run('mkfs.ext4', '-q', '-F', path)
  await p2pvm(importer, 'import', path, '--name', 'ext4')
  for (const row of rows) {
    await withDisk(row, { name: 'ext4', path }, async (disk) => {
      const { folder, close } = await mountFileSystem(stage, disk)
      try {
        row.bonnie = await bonnie(stage, folder, BONNIE_FACTOR * sizeBytes)
      } finally {
        await close()
      }
    })
  }
}

function hasLoopDevices (): boolean {
  try {
    execFileSync('losetup', ['--find'], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

function report (): void {
  const local = rows.find(({ maker }) => !maker.fuse)
  console.log(`\n${table(['THROUGHPUT', ...JOBS.map(({ name, unit }) => `${name} ${unit}`)], rows.map((row) =>
    [row.maker.name, ...JOBS.map((job) => rateOf(row, job).text(0))]))}`)
  if (local !== undefined) {
    console.log(`\n${table(['× THE LOCAL FILE', ...JOBS.map(({ name }) => name)], rows.filter((row) => row !== local).map((row) =>
      [row.maker.name, ...JOBS.map((job) => ratio(row, local, job).text(2))]))}`)
  }
  const timedJobs = JOBS.filter(({ latency }) => latency === true)
  console.log(`\n${table(['µs: p50, p99, p99.9', ...timedJobs.map(({ name }) => name)], rows.map((row) =>
    [row.maker.name, ...timedJobs.map((job) => (['p50', 'p99', 'p999'] as const).map((key) => micros(latencyOf(row, job, key).median)).join('  '))]))}`)
  if (rows.some((row) => row.bonnie !== undefined)) {
    console.log(`\n${table(['BONNIE++ IN AN EXT4', ...BONNIE_COLUMNS], rows.map((row) =>
      [row.maker.name, ...BONNIE_COLUMNS.map((_, column) => row.bonnie?.[column] === undefined ? '-' : row.bonnie[column].toFixed(0))]))}`)
  }
  console.log(`\nmedians of ${rounds} rounds, lowest and highest in brackets; a disk of ${formatBytes(sizeBytes)}, random bytes. cold: the kernel's caches are dropped before, ` +
    'chunks, files and overlays are on the local disk. warm: all is in the page cache. O_DIRECT: past the page cache of the disk itself; what a server ' +
    'reads is in the page cache below, if it ever is: all was read so before. Writes are timed with an fsync at the end. bonnie++: of ' + `${formatBytes(BONNIE_FACTOR * sizeBytes)}, one run, read back from the page cache; -: too fast to tell.`)
  for (const remark of remarks) console.log(remark)
  console.log()
  for (const verdict of verdicts(local)) console.log(verdict)
}

function verdicts (local: Row | undefined): string[] {
  const ours = rows.find(({ maker }) => maker.name === 'p2pvm, direct')
  const lines = [verdict('first read from storage peers, MB/s', coldFabric, (value) => value >= COLD_FABRIC_MIN, `≥ ${COLD_FABRIC_MIN}`, 0)]
  if (ours === undefined) return lines
  for (const job of JOBS) {
    const { name, ratioMin, p50Max } = job
    if (ratioMin !== undefined && local !== undefined) lines.push(verdict(`${name}, × the local file`, ratio(ours, local, job), (value) => value >= ratioMin, `≥ ${ratioMin}`, 2))
    if (p50Max !== undefined) lines.push(verdict(`${name}, p50 in µs`, latencyOf(ours, job, 'p50'), (value) => value <= p50Max, `≤ ${p50Max}`, 1))
  }
  const others = rows.filter((row) => row !== ours && row.maker.fuse)
  for (const job of JOBS) {
    const best = others.filter(({ maker }) => maker.durable || job.kind === 'read').toSorted((a, b) => rateOf(b, job).median - rateOf(a, job).median)[0]
    if (best !== undefined) lines.push(verdict(`${job.name}, × ${best.maker.name}, the next best over FUSE`, ratio(ours, best, job), (value) => value >= 1, '≥ 1', 2))
  }
  return lines
}

function verdict (what: string, spread: Spread, isMet: (value: number) => boolean, wanted: string, digits: number): string {
  const word = spread.values.length === 0 ? 'not measured' : isMet(spread.median) ? 'met' : 'MISSED'
  return `${word.padEnd(8)}${what}: ${spread.text(digits)}, wanted ${wanted}`
}

function rateOf ({ results }: Row, job: Job): Spread {
  return spreadOf(results.get(job)!.map(({ bytesPerSecond }) => bytesPerSecond / (job.unit === 'MB/s' ? 1e6 : 4096)))
}

/** Round by round. */
function ratio (row: Row, to: Row, job: Job): Spread {
  const theirs = to.results.get(job)!
  return spreadOf(row.results.get(job)!.map(({ bytesPerSecond }, round) => bytesPerSecond / theirs[round]!.bytesPerSecond))
}

function latencyOf ({ results }: Row, job: Job, key: 'p50' | 'p99' | 'p999'): Spread {
  return spreadOf(results.get(job)!.map((result) => result[key]))
}

function micros (value: number): string {
  return value < 10 ? value.toFixed(1) : value.toFixed(0)
}
