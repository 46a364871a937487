/**
 * `npm run quickstart [IMAGE]`: the whole line once, on this machine: four storage peers and two compute peers, an image put
 * on the fabric, mounted lazily, changed through a working copy, cloned, committed, and read back on the other compute peer.
 * Prints what happened as one table. Whatever happens, it leaves nothing running, nothing mounted and no files.
 */
import { createHash } from 'node:crypto'
import { type FileHandle, mkdir, mkdtemp, open, readFile, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { isZero } from '../src/protocols/cid.ts'
import type { CloneResult, CommitResult, ImportResult, Status, WorkingCopyRow } from '../src/node/control-api.ts'
import { table } from '../src/node/output.ts'
import { formatBytes, formatDuration } from '../src/node/units.ts'
import { type FabricPeer, startFabric } from './fabric.ts'
import { makeSampleImage } from './sample-image.ts'

const STORAGE = 4
const COMPUTE = 2
/** What is read of the image through the mount: as much as a boot touches, spread over all of it. */
const READS = 160
const READ_BYTES = 64 * 1024
/** What is changed: some runs inside the image, at odd places, as a file system would. */
const CHANGES = 12
const CHANGE_BYTES = 300_000
const SUM_BUFFER_BYTES = 4 * 2 ** 20

class Table {
  readonly #rows: string[][] = []

  /** Does a step, and notes what it says about itself and how long it took. */
  async step<T> (name: string, work: () => Promise<{ readonly result: T, readonly what: string }>): Promise<T> {
    process.stderr.write(`${name} ... `)
    const startMs = performance.now()
    const { result, what } = await work().catch((error: unknown) => {
      process.stderr.write('failed\n')
      throw error
    })
    const took = formatDuration(performance.now() - startMs)
    process.stderr.write(`${took}\n`)
    this.#rows.push([name, what, took])
    return result
  }

  print (): void {
    console.log(`\n${table(['STEP', 'WHAT HAPPENED', 'TIME'], this.#rows)}`)
  }
}

async function quickstart (given: string | undefined, signal: AbortSignal): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'p2pvm-quickstart-'))
  const steps = new Table()
  try {
    const image = given ?? await steps.step('make an image', async () => {
      const path = join(folder, 'sample.img')
      const { files, contentBytes } = await makeSampleImage(path, signal)
      return { result: path, what: `${formatBytes((await stat(path)).size)} of ext4 with ${files} files of this machine, ${formatBytes(contentBytes)}` }
    })
    await onFabric(folder, image, steps, signal)
    steps.print()
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

async function onFabric (folder: string, image: string, steps: Table, signal: AbortSignal): Promise<void> {
  const fabric = await steps.step('start the fabric', async () => ({
    result: await startFabric({ storage: STORAGE, compute: COMPUTE, folder: join(folder, 'fabric'), signal }),
    what: `${STORAGE} storage peers and ${COMPUTE} compute peers, each a process, on loopback`
  }))
  try {
    const [storage, here, there] = [fabric.storage[1], fabric.compute[0], fabric.compute[1]]
    if (storage === undefined || here === undefined || there === undefined) throw new Error('a peer is missing')
    await importImage(storage, image, steps)
    const mounted = await mount(here, join(folder, 'here'), steps)
    await readPart(here, join(mounted, 'by-name', 'quickstart', '1'), image, steps, signal)
    const local = join(folder, 'changed.img')
    const { name, version } = await change(here, image, local, steps, signal)
    const other = await mount(there, join(folder, 'there'), steps)
    await compare(there, join(other, 'by-name', name, String(version)), local, `${name}@${version} on the other peer`, steps, signal)
    await compare(here, join(mounted, 'by-name', 'quickstart', '1'), image, 'the original, quickstart@1', steps, signal)
  } finally {
    await steps.step('stop', async () => {
      await fabric.stop()
      return { result: undefined, what: 'nothing is running, nothing is mounted' }
    })
  }
}

async function importImage (peer: FabricPeer, image: string, steps: Table): Promise<void> {
  await steps.step('import', async () => {
    const result = await command<ImportResult>(peer, 'import', image, '--name', 'quickstart')
    const what = `${formatBytes(result.size)}: ${result.chunks} chunks of ${formatBytes(result.chunkSize)}, ${result.holes} holes; ` +
      `${formatBytes(result.storedBytes)} new, ${formatBytes(result.sentBytes)} sent to ${result.replicas.wanted} replicas`
    return { result, what }
  })
}

async function mount (peer: FabricPeer, mountpoint: string, steps: Table): Promise<string> {
  return await steps.step(`mount on ${peer.name}`, async () => {
    await mkdir(mountpoint)
    await command(peer, 'mount', mountpoint, '--detach')
    return { result: mountpoint, what: 'every image of the fabric is a file; nothing was copied' }
  })
}

async function readPart (peer: FabricPeer, mounted: string, image: string, steps: Table, signal: AbortSignal): Promise<void> {
  await steps.step('read part of it', async () => {
    const before = await receivedBytes(peer)
    const [original, lazy] = await Promise.all([open(image), open(mounted)])
    let size
    try {
      size = (await original.stat()).size
      for (const offset of spread(size, READS, READ_BYTES)) {
        signal.throwIfAborted()
        const [expected, actual] = await Promise.all([readAt(original, offset), readAt(lazy, offset)])
        if (!expected.equals(actual)) throw new Error(`the bytes at ${offset} differ from the image's`)
      }
    } finally {
      await Promise.all([original.close(), lazy.close()])
    }
    const crossed = await receivedBytes(peer) - before
    return { result: undefined, what: `${formatBytes(READS * READ_BYTES)} in ${READS} places; ${formatBytes(crossed)} of ${formatBytes(size)} crossed the network` }
  })
}

async function change (peer: FabricPeer, image: string, local: string, steps: Table, signal: AbortSignal): Promise<{ name: string, version: number }> {
  const path = await steps.step('working copy', async () => {
    const { path } = await command<WorkingCopyRow>(peer, 'working-copy', 'create', 'disk', 'quickstart@1')
    if (path === null) throw new Error('the working copy is under no mount')
    return { result: path, what: `working/${basename(path)}, based on quickstart@1` }
  })
  await steps.step('change it', async () => {
    await copySparse(image, local, signal)
    let changed = 0
    for (const file of [path, local]) changed = await writeChanges(file)
    return { result: undefined, what: `${formatBytes(changed)} in ${CHANGES} places, fsync; the same to a local copy` }
  })
  const { blob } = await steps.step('clone', async () => {
    const result = await command<CloneResult>(peer, 'clone', path, '--name', 'quickstart-changed')
    return { result, what: `the working copy belongs to the new blob ${result.blob}; nothing was copied` }
  })
  return await steps.step('commit', async () => {
    const { version, chunks, bytes, freezeMs } = await command<CommitResult>(peer, 'commit', path, '--message', 'quickstart')
    return {
      result: { name: 'quickstart-changed', version },
      what: `${blob}@${version}: ${chunks} chunks, ${formatBytes(bytes)}; writers were held for ${formatDuration(freezeMs)}`
    }
  })
}

async function compare (peer: FabricPeer, mounted: string, local: string, name: string, steps: Table, signal: AbortSignal): Promise<void> {
  await steps.step(`verify ${name}`, async () => {
    const before = await receivedBytes(peer)
    const [expected, actual] = [await sha256(local, signal), await sha256(mounted, signal)]
    if (expected !== actual) throw new Error(`${mounted} has sha256 ${actual}, not ${expected}`)
    const crossed = await receivedBytes(peer) - before
    return { result: undefined, what: `every byte is right (sha256 ${actual.slice(0, 12)}…); ${formatBytes(crossed)} crossed the network` }
  })
}

async function command<T> (peer: FabricPeer, ...args: string[]): Promise<T> {
  const { code, json, stdout, stderr } = await peer.cli(...args)
  if (code !== 0) {
    const said = (json as { error?: { message: string } } | undefined)?.error?.message ?? stdout + stderr
    throw new Error(`p2pvm ${args.join(' ')} on ${peer.name} ended with ${code}: ${said}\n${(await readFile(peer.log, 'utf8')).slice(-2000)}`)
  }
  return json as T
}

async function receivedBytes (peer: FabricPeer): Promise<number> {
  const { counters } = await command<Status>(peer, 'status')
  return counters['chunk_bytes_received_total'] ?? 0
}

/** Evenly over the file, at offsets that no chunk or page begins at. */
function spread (size: number, count: number, length: number): number[] {
  const room = Math.max(0, size - length)
  return Array.from({ length: count }, (_, at) => Math.floor(room * (at + 0.5) / count))
}

async function readAt (file: FileHandle, offset: number): Promise<Buffer> {
  const { buffer, bytesRead } = await file.read(Buffer.alloc(READ_BYTES), 0, READ_BYTES, offset)
  return buffer.subarray(0, bytesRead)
}

async function writeChanges (path: string): Promise<number> {
  const file = await open(path, 'r+')
  try {
    const { size } = await file.stat()
    const length = Math.min(CHANGE_BYTES, Math.floor(size / CHANGES))
    for (const [at, offset] of spread(size, CHANGES, length).entries()) await file.write(Buffer.alloc(length, `change ${at} `), 0, length, offset)
    await file.sync()
    return CHANGES * length
  } finally {
    await file.close()
  }
}

async function copySparse (from: string, to: string, signal: AbortSignal): Promise<void> {
  const [source, target] = await Promise.all([open(from), open(to, 'w')])
  try {
    const { size } = await source.stat()
    const buffer = Buffer.alloc(SUM_BUFFER_BYTES)
    for (let at = 0; at < size;) {
      signal.throwIfAborted()
      const { bytesRead } = await source.read(buffer, 0, buffer.length, at)
      if (bytesRead === 0) break
      const part = buffer.subarray(0, bytesRead)
      if (!isZero(part)) await target.write(part, 0, part.length, at)
      at += bytesRead
    }
    await target.truncate(size)
  } finally {
    await Promise.all([source.close(), target.close()])
  }
}

async function sha256 (path: string, signal: AbortSignal): Promise<string> {
  const hash = createHash('sha256')
  const file = await open(path)
  try {
    for await (const part of file.createReadStream({ highWaterMark: SUM_BUFFER_BYTES, autoClose: false, signal })) hash.update(part as Buffer)
    return hash.digest('hex')
  } finally {
    await file.close()
  }
}

const interrupted = new AbortController()
for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => { interrupted.abort(new Error(`interrupted by ${name}`)) })
try {
  await quickstart(process.argv[2], interrupted.signal)
} catch (error) {
  console.error(`quickstart: ${(interrupted.signal.aborted ? interrupted.signal.reason as Error : error as Error).message}`)
  process.exitCode = interrupted.signal.aborted ? 130 : 1
}
