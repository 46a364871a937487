import { createHash } from 'node:crypto'
import type { Command } from 'commander'
import { type ByteSink, exportToFile, exportToSink } from '../export-target.ts'
import { EXIT } from '../exit-codes.ts'
import { fields, percent, TransferProgress } from '../output.ts'
import { command, DAEMON_EXITS, type Options, type Session, withDaemon } from '../session.ts'
import { formatBytes } from '../units.ts'

export function exportCommand ({ output, signal }: Session): Command {
  return command('export', { description: 'write a version to a sparse file, a device or a pipe', exits: [EXIT.notFound, EXIT.integrity, ...DAEMON_EXITS] })
    .argument('<REF>', 'NAME, NAME@VERSION, NAME@latest, BLOB@VERSION, or a prefix of a blob id')
    .argument('<FILE|->', 'replaced when it exists, and only by the whole image; - is standard output, and the result goes to stderr')
    .action(async (ref: string, file: string, options: Options) => {
      const { exported, summary } = await withDaemon(options, async (client) => {
        const { version, items } = await client.export(ref, { signal })
        const progress = new TransferProgress(output, version.size)
        const hash = createHash('sha256')
        const init = { signal, hash, onProgress: (doneBytes: number) => { progress.update(doneBytes, percent(doneBytes, version.size)) } }
        const stdout: ByteSink = process.stdout
        const size = file === '-' ? await exportToSink(items, stdout, init) : await exportToFile(items, file, init)
        return { exported: { blob: version.blob, version: version.version, size, sha256: hash.digest('hex') }, summary: progress.summary(size) }
      })
      const text = (): string => fields([
        ['version', `${exported.blob}@${exported.version}`],
        ['size', `${formatBytes(exported.size)} (${exported.size}); ${summary}`],
        ['sha256', exported.sha256]
      ])
      if (file === '-') output.resultBeside(exported, text)
      else output.result(exported, text)
    })
}
