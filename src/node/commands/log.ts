import type { Command } from 'commander'
import { EXIT } from '../exit-codes.ts'
import { table } from '../output.ts'
import { command, DAEMON_EXITS, type Options, type Session, withDaemon } from '../session.ts'
import { formatBytes, formatTime } from '../units.ts'
import { changedText } from './info.ts'

export function logCommand ({ output, signal }: Session): Command {
  return command('log', { description: 'show the versions of an image or blob, oldest first', exits: [EXIT.notFound, ...DAEMON_EXITS] })
    .argument('<IMAGE>', 'name of an image, or a blob id')
    .action(async (ref: string, options: Options) => {
      const versions = await withDaemon(options, async (client) => await client.versions(ref, { signal }))
      output.result({ versions }, () => table(
        ['VERSION', 'TIME (UTC)', 'SIZE', 'CHANGED', 'WRITER', 'MESSAGE'],
        versions.map((row) => [row.version, formatTime(row.timeMs), formatBytes(row.size), changedText(row), row.writer, row.message])
      ))
    })
}
