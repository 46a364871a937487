import type { Command } from 'commander'
import { table } from '../output.ts'
import { command, DAEMON_EXITS, type Options, type Session, withDaemon } from '../session.ts'
import { formatBytes, formatTime } from '../units.ts'

export function lsCommand ({ output, signal }: Session): Command {
  return command('ls', { description: 'list the images of the fabric', exits: DAEMON_EXITS })
    .action(async (options: Options) => {
      const images = await withDaemon(options, async (client) => await client.images({ signal }))
      output.result({ images }, () => table(
        ['NAME', 'VERSION', 'SIZE', 'WRITTEN (UTC)', 'BLOB'],
        images.map(({ name, version, size, timeMs, blob }) => [name, version, formatBytes(size), formatTime(timeMs), blob])
      ))
    })
}
