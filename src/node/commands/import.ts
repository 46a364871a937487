import type { Command } from 'commander'
import { CHUNK_BYTES_DEFAULT, checkChunkSize } from '../../protocols/cid.ts'
import type { SparseItem } from '../../versioning/image-import.ts'
import type { ImportResult } from '../control-api.ts'
import { EXIT } from '../exit-codes.ts'
import { openImportSource } from '../import-source.ts'
import { fields, type Output, percent, TransferProgress } from '../output.ts'
import { command, DAEMON_EXITS, type Options, type Session, withDaemon } from '../session.ts'
import { formatBytes, parseBytes } from '../units.ts'

export function importCommand ({ output, signal }: Session): Command {
  return command('import', { description: 'put an image on the fabric, as version 1 of a new blob with a name', exits: [EXIT.notFound, EXIT.conflict, ...DAEMON_EXITS] })
    .argument('<FILE|->', 'a raw image, a block device, - for standard input; qcow2 and the like when qemu-img is installed')
    .requiredOption('--name <NAME>', 'name of the image: a-z 0-9 . _ -, at most 128')
    .option('--chunk-size <SIZE>', 'a power of two from 4KiB to 4MiB', '256KiB')
    .option('--message <TEXT>', 'what the log says about it')
    .action(async (file: string, options: Options) => {
      const chunkSize = checkChunkSize(parseBytes(String(options['chunkSize'] ?? CHUNK_BYTES_DEFAULT)))
      const request = { name: String(options['name']), chunkSize, message: options['message'] as string | undefined }
      const result = await withDaemon(options, async (client) => {
        const source = await openImportSource(file, { chunkSize, signal, stdin: process.stdin })
        try {
          const shown = new ImportShown(output, source.size)
          const imported = await client.import(request, shown.counted(source.items()), { signal, onProgress: (progress) => { shown.alreadyThere(progress.alreadyThere, progress.chunks) } })
          return { ...imported, summary: shown.summary() }
        } finally {
          await source.close()
        }
      })
      const { summary, ...document } = result
      output.result(document, () => printed(document, summary))
      const { wanted, degradedChunks } = document.replicas
      if (degradedChunks > 0) output.note(`${degradedChunks} chunks have fewer than ${wanted} replicas: peers were down or full`)
    })
}

/** Progress as both ends know it: how far it was read here, what was there already on the fabric. */
class ImportShown {
  readonly #progress: TransferProgress
  #readBytes = 0
  #sentBytes = 0
  #alreadyThere = ''

  constructor (output: Output, size: number | undefined) {
    this.#progress = new TransferProgress(output, size)
  }

  async * counted (items: AsyncIterable<SparseItem>): AsyncGenerator<SparseItem> {
    for await (const item of items) {
      this.#readBytes = 'size' in item ? item.size : item.offset + item.bytes.length
      if ('bytes' in item) this.#sentBytes += item.bytes.length
      this.#progress.update(this.#readBytes, `${percent(this.#readBytes - this.#sentBytes, this.#readBytes)} holes`, this.#alreadyThere)
      yield item
    }
  }

  alreadyThere (chunks: number, of: number): void {
    this.#alreadyThere = `${percent(chunks, of)} already there`
  }

  summary (): string {
    return this.#progress.summary(this.#readBytes)
  }
}

function printed (result: ImportResult, summary: string): string {
  const { chunks, holes, newChunks, replicas } = result
  return fields([
    ['image', `${result.name} (${result.blob}@${result.version})`],
    ['size', summary],
    ['chunks', `${chunks} of ${formatBytes(result.chunkSize)}, ${holes} holes (${percent(holes, chunks + holes)})`],
    ['new', `${newChunks} chunks, ${formatBytes(result.storedBytes)} (${percent(chunks - newChunks, chunks)} were there already)`],
    ['sent', `${formatBytes(result.sentBytes)} to ${replicas.wanted} replicas`]
  ])
}
