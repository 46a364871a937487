import type { Command } from 'commander'
import { resolve } from 'node:path'
import { EXIT } from '../exit-codes.ts'
import { fields } from '../output.ts'
import { command, DAEMON_EXITS, type Options, type Session, withDaemon } from '../session.ts'
import { formatBytes, formatDuration } from '../units.ts'

export function commitCommand ({ output, signal }: Session): Command {
  return command('commit', { description: 'make a new version of what a working copy has written', exits: [EXIT.notFound, EXIT.conflict, EXIT.integrity, ...DAEMON_EXITS] })
    .argument('<PATH>', 'the file of a working copy under a mount')
    .option('--as <NAME>', 'clone, name and commit in one step: a new image, whatever has become of the old one')
    .option('--message <TEXT>', 'what the log says about it')
    .action(async (path: string, options: Options) => {
      const result = await withDaemon(options, async (client) => await client.commit({
        path: resolve(path),
        as: options['as'] as string | undefined,
        message: options['message'] as string | undefined
      }, { signal }))
      output.result(result, () => fields([
        ['blob', result.blob],
        ['version', result.version],
        ['name', result.name],
        ['changed', `${result.chunks} chunks, ${formatBytes(result.bytes)}`],
        ['writers held for', formatDuration(result.freezeMs)],
        ['path', result.path]
      ]))
    })
}
