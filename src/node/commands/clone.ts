import type { Command } from 'commander'
import { resolve } from 'node:path'
import { EXIT } from '../exit-codes.ts'
import { fields } from '../output.ts'
import { command, DAEMON_EXITS, type Options, type Session, withDaemon } from '../session.ts'

export function cloneCommand ({ output, signal }: Session): Command {
  return command('clone', { description: 'make a new blob that shares everything with a version, or with a working copy', exits: [EXIT.notFound, EXIT.conflict, ...DAEMON_EXITS] })
    .argument('<REF|PATH>', 'a version, or the file of a working copy (with a slash in it), which then belongs to the new blob')
    .option('--name <NAME>', 'name of the new image')
    .action(async (source: string, options: Options) => {
      const name = options['name'] as string | undefined
      // No REF holds a slash.
      const request = source.includes('/') ? { path: resolve(source), name } : { ref: source, name }
      const result = await withDaemon(options, async (client) => await client.clone(request, { signal }))
      output.result(result, () => fields([
        ['blob', result.blob],
        ['version', result.version],
        ['name', result.name],
        ['path', result.path]
      ]))
    })
}
