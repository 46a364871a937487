import { Command } from 'commander'
import type { Part } from '../../versioning/blobs.ts'
import { P2pvmError } from '../../protocols/errors.ts'
import type { ControlClient } from '../control-client.ts'
import { EXIT } from '../exit-codes.ts'
import { type ByteSink, exportToFile, exportToSink } from '../export-target.ts'
import { type ExtentSource, openExtents } from '../extent-source.ts'
import { fields, TransferProgress } from '../output.ts'
import { command, DAEMON_EXITS, type Options, type Session, withDaemon } from '../session.ts'
import { formatBytes, parseBytes } from '../units.ts'
import { versionText } from './info.ts'

const BLOB_HELP = 'its id, an unambiguous beginning of it, or the name of an image'
const REF_HELP = 'NAME, NAME@VERSION, NAME@latest, BLOB@VERSION, or a prefix of a blob id'

export function blobCommand (session: Session): Command {
  return new Command('blob').helpCommand(false).description('create, write, append, read and clone blobs: sequences of bytes with a history of versions')
    .addCommand(createCommand(session))
    .addCommand(writeCommand(session))
    .addCommand(appendCommand(session))
    .addCommand(readCommand(session))
    .addCommand(recentCommand(session))
    .addCommand(cloneCommand(session))
}

function createCommand ({ output, signal }: Session): Command {
  return command('create', { description: 'make a blob without content: version 0', exits: [EXIT.conflict, ...DAEMON_EXITS] })
    .option('--name <NAME>', 'name of it as an image: a-z 0-9 . _ -, at most 128')
    .option('--chunk-size <SIZE>', 'a power of two from 4KiB to 4MiB', '256KiB')
    .option('--fan-out <N>', 'of its segment tree: a power of two from 2 to 128', '64')
    .action(async (options: Options) => {
      const request = {
        chunkSize: parseBytes(String(options['chunkSize'])),
        fanOut: parseCount(String(options['fanOut']), '--fan-out'),
        name: options['name'] as string | undefined
      }
      const result = await withDaemon(options, async (client) => await client.createBlob(request, { signal }))
      output.result(result, () => fields([
        ['blob', result.blob],
        ['version', result.version],
        ['chunk size', formatBytes(result.chunkSize)],
        ['fan-out', result.fanOut],
        ['name', result.name]
      ]))
    })
}

function writeCommand ({ output, signal }: Session): Command {
  return writing(command('write', { description: 'make a new version: bytes at any offsets, over what was there', exits: [EXIT.notFound, EXIT.conflict, EXIT.integrity, ...DAEMON_EXITS] }))
    .argument('<BLOB>', BLOB_HELP)
    .argument('[FILE|-]', 'goes where an --at without a file says; - is standard input, which it is unless told')
    .requiredOption('--at <OFFSET[=FILE]>', 'where it goes, and what, when there are several: --at 0=head --at 1GiB=tail makes one version', collect)
    .addHelpText('after', `
Extents may come in any order but not overlap. Between the end of the blob and what is written past it lie zeros. Input of no
bytes makes a version of the same content. What is larger than memory is written too: it is stored as it comes, and published
as one version at its end. One write has at most 1048576 chunks (256 GiB in chunks of 256 KiB), 65536 extents, and 64 MiB in
chunks that it writes in part.`)
    .action(async (blob: string, file: string | undefined, options: Options) => {
      const extents = extentsOf(options['at'] as string[], file)
      const result = await withDaemon(options, async (client) =>
        await fromFiles(extents, { output, signal }, async (parts) => await client.writeBlob(requestOf(blob, options), parts, { signal })))
      output.result(result, () => fields([
        ['version', `${result.blob}@${result.version}`],
        ['size', sizeText(result.size)],
        ['written', sizeText(result.bytes)]
      ]))
    })
}

function appendCommand ({ output, signal }: Session): Command {
  return writing(command('append', { description: 'make a new version: bytes at the end, wherever other writers have moved it', exits: [EXIT.notFound, EXIT.conflict, EXIT.integrity, ...DAEMON_EXITS] }))
    .argument('<BLOB>', BLOB_HELP)
    .argument('[FILE|-]', '- is standard input, which it is unless told')
    .action(async (blob: string, file: string | undefined, options: Options) => {
      const result = await withDaemon(options, async (client) =>
        await fromFiles([{ offset: 0, file: file ?? '-' }], { output, signal }, async (parts) => await client.appendBlob(requestOf(blob, options), bytesOf(parts), { signal })))
      output.result(result, () => fields([
        ['version', `${result.blob}@${result.version}`],
        ['offset', result.offset],
        ['size', sizeText(result.size)],
        ['appended', sizeText(result.bytes)]
      ]))
    })
}

function readCommand ({ output, signal }: Session): Command {
  return command('read', { description: 'read bytes of a version; holes are zeros', exits: [EXIT.notFound, EXIT.integrity, ...DAEMON_EXITS] })
    .argument('<REF>', REF_HELP)
    .option('--at <OFFSET>', 'of the first byte', '0')
    .option('--size <SIZE>', 'how many at most; to the end of the version unless told')
    .option('-o, --output <FILE|->', 'replaced when it exists, and only by all of it; - is standard output', '-')
    .addHelpText('after', '\nPast the end of the version there is nothing: what is read is cut there. --json needs --output FILE.')
    .action(async (ref: string, options: Options) => {
      const file = String(options['output'])
      if (file === '-' && options['json'] === true) throw new P2pvmError('ERR_USAGE', 'standard output cannot carry the bytes and a document: name a file with --output')
      const range = { offset: parseBytes(String(options['at'])), size: options['size'] === undefined ? undefined : parseBytes(String(options['size'])) }
      const result = await withDaemon(options, async (client) => {
        const { version, items } = await client.readBlob(ref, range, { signal })
        const progress = new TransferProgress(output, Math.max(0, Math.min(range.size ?? Infinity, version.size - range.offset)))
        const init = { signal, onProgress: (doneBytes: number) => { progress.update(doneBytes) } }
        const stdout: ByteSink = process.stdout
        const size = file === '-' ? await exportToSink(items, stdout, init) : await exportToFile(items, file, init)
        return { blob: version.blob, version: version.version, offset: range.offset, size }
      })
      if (file !== '-') output.result(result, () => fields([
        ['version', `${result.blob}@${result.version}`],
        ['offset', result.offset],
        ['size', sizeText(result.size)]
      ]))
    })
}

function recentCommand ({ output, signal }: Session): Command {
  return command('recent', { description: 'show the latest version of a blob', exits: [EXIT.notFound, ...DAEMON_EXITS] })
    .argument('<BLOB>', BLOB_HELP)
    .action(async (blob: string, options: Options) => {
      const row = await withDaemon(options, async (client) => await client.recent(blob, { signal }))
      output.result(row, () => versionText(row))
    })
}

function cloneCommand ({ output, signal }: Session): Command {
  return command('clone', { description: 'make a new blob whose version 0 shares everything with a version', exits: [EXIT.notFound, EXIT.conflict, ...DAEMON_EXITS] })
    .argument('<REF>', REF_HELP)
    .option('--name <NAME>', 'name of the new image')
    .action(async (ref: string, options: Options) => {
      const { blob, version, name } = await withDaemon(options, async (client) => await client.clone({ ref, name: options['name'] as string | undefined }, { signal }))
      output.result({ blob, version, name }, () => fields([
        ['blob', blob],
        ['version', version],
        ['name', name]
      ]))
    })
}

function writing (built: Command): Command {
  return built
    .option('--expected-base <N>', 'a conflict (11) when the latest version is not this one')
    .option('--message <TEXT>', 'what the log says about it')
    .option('--request-id <ID>', '8 to 64 of A-Z a-z 0-9 _ -: the same again, with the same bytes, is the same version')
}

function requestOf (ref: string, options: Options): Parameters<ControlClient['writeBlob']>[0] {
  const base = options['expectedBase'] as string | undefined
  return {
    ref,
    expectedBase: base === undefined ? undefined : parseCount(base, '--expected-base'),
    message: options['message'] as string | undefined,
    requestId: options['requestId'] as string | undefined
  }
}

function collect (value: string, before: readonly string[] = []): string[] {
  return [...before, value]
}

/** `OFFSET` takes the argument, or standard input; `OFFSET=FILE` names its own. */
function extentsOf (places: readonly string[], file: string | undefined): ExtentSource[] {
  const bare = places.filter((place) => !place.includes('='))
  if (bare.length > 1) throw new P2pvmError('ERR_USAGE', `one --at can go without its file, not ${bare.length}: say --at OFFSET=FILE`)
  if (bare.length === 0 && file !== undefined) throw new P2pvmError('ERR_USAGE', `where does ${file} go? Every --at names a file of its own`)
  return places.map((place) => {
    const [offset = '', ...rest] = place.split('=')
    return { offset: parseBytes(offset), file: rest.length === 0 ? file ?? '-' : rest.join('=') }
  })
}

async function fromFiles<T> (extents: readonly ExtentSource[], { output, signal }: Session, write: (parts: AsyncIterable<Part>) => Promise<T>): Promise<T> {
  const source = await openExtents(extents, { signal, stdin: process.stdin })
  try {
    return await write(shown(source.parts, new TransferProgress(output, undefined)))
  } finally {
    await source.close()
  }
}

async function * shown (parts: AsyncIterable<Part>, progress: TransferProgress): AsyncGenerator<Part> {
  let done = 0
  for await (const part of parts) {
    yield part
    progress.update(done += part.bytes.length)
  }
}

async function * bytesOf (parts: AsyncIterable<Part>): AsyncGenerator<Uint8Array> {
  for await (const { bytes } of parts) yield bytes
}

function parseCount (text: string, option: string): number {
  const count = Number(text)
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(count)) throw new P2pvmError('ERR_USAGE', `${option} takes a whole number, not ${JSON.stringify(text)}`)
  return count
}

function sizeText (bytes: number): string {
  return `${formatBytes(bytes)} (${bytes})`
}
