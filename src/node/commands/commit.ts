import type { Command } from 'commander'
import { resolve } from 'node:path'
import { P2pvmError } from '../../protocols/errors.ts'
import type { CommitResult } from '../control-api.ts'
import { EXIT } from '../exit-codes.ts'
import { fields, table } from '../output.ts'
import { command, DAEMON_EXITS, type Options, type Session, withDaemon } from '../session.ts'
import { formatBytes, formatDuration } from '../units.ts'

export function commitCommand ({ output, signal }: Session): Command {
  return command('commit', { description: 'make a new version of what a working copy has written', exits: [EXIT.notFound, EXIT.conflict, EXIT.integrity, ...DAEMON_EXITS] })
    .argument('<PATH...>', 'the file of a working copy under a mount')
    .option('--group', 'several, cut at one moment, and published all or none: the disks of one machine')
    .option('--as <NAME>', 'clone, name and commit in one step: a new image, whatever has become of the old one; with --group once for each PATH', collected, [])
    .option('--message <TEXT>', 'what the log says about it')
    .action(async (paths: string[], options: Options) => {
      const names = options['as'] as string[]
      const message = options['message'] as string | undefined
      const members = paths.map((path, at) => ({ path: resolve(path), as: names[at] }))
      if (names.length > 0 && names.length !== paths.length) throw new P2pvmError('ERR_USAGE', `${paths.length} working copies and ${names.length} names`)
      if (options['group'] === true) {
        const result = await withDaemon(options, async (client) => await client.commitGroup({ members, message }, { signal }))
        output.result(result, () => groupTable(result.members))
        return
      }
      const [member] = members
      if (member === undefined || members.length > 1) throw new P2pvmError('ERR_USAGE', 'several working copies are committed with --group')
      const result = await withDaemon(options, async (client) => await client.commit({ ...member, message }, { signal }))
      output.result(result, () => fields([
        ['blob', result.blob],
        ['version', result.version],
        ['name', result.name],
        ['changed', changedText(result)],
        ['writers held for', formatDuration(result.freezeMs)],
        ['path', result.path]
      ]))
    })
}

function collected (name: string, names: readonly string[]): string[] {
  return [...names, name]
}

function groupTable (members: readonly CommitResult[]): string {
  return table(['PATH', 'BLOB', 'VERSION', 'NAME', 'CHANGED', 'HELD FOR'], members.map((member) => [
    member.path, member.blob, String(member.version), member.name ?? '', changedText(member), formatDuration(member.freezeMs)
  ]))
}

function changedText ({ chunks, bytes }: CommitResult): string {
  return `${chunks} chunks, ${formatBytes(bytes)}`
}
