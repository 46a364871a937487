import type { Command } from 'commander'
import type { VersionRow } from '../control-api.ts'
import { EXIT } from '../exit-codes.ts'
import { fields } from '../output.ts'
import { command, DAEMON_EXITS, type Options, type Session, withDaemon } from '../session.ts'
import { formatBytes, formatTime } from '../units.ts'

export function infoCommand ({ output, signal }: Session): Command {
  return command('info', { description: 'show one version', exits: [EXIT.notFound, ...DAEMON_EXITS] })
    .argument('<REF>', 'NAME, NAME@VERSION, NAME@latest, BLOB@VERSION, or a prefix of a blob id')
    .action(async (ref: string, options: Options) => {
      const row = await withDaemon(options, async (client) => await client.resolve(ref, { signal }))
      output.result(row, () => versionText(row))
    })
}

export function versionText (row: VersionRow): string {
  return fields([
    ['blob', row.blob],
    ['version', row.version],
    ['size', `${formatBytes(row.size)} (${row.size})`],
    ['chunk size', formatBytes(row.chunkSize)],
    ['changed', changedText(row)],
    ['written', `${formatTime(row.timeMs)} UTC`],
    ['writer', row.writer],
    ['parent', row.parent === null ? null : `${row.parent.blob}@${row.parent.version}`],
    ['message', row.message]
  ])
}

/** How much, or that its writer died: then it changed nothing. */
export function changedText ({ bytesChanged, aborted }: VersionRow): string {
  return aborted ? 'aborted' : formatBytes(bytesChanged)
}
