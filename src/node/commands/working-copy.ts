import { Command } from 'commander'
import type { WorkingCopyRow } from '../control-api.ts'
import { EXIT } from '../exit-codes.ts'
import { fields, table } from '../output.ts'
import { command, DAEMON_EXITS, type Options, type Session, withDaemon } from '../session.ts'
import { formatBytes } from '../units.ts'

export function workingCopyCommand (session: Session): Command {
  return new Command('working-copy').helpCommand(false).description('make, list, drop and revert working copies: the disks of virtual machines')
    .addCommand(createCommand(session))
    .addCommand(lsCommand(session))
    .addCommand(rmCommand(session))
    .addCommand(revertCommand(session))
}

function createCommand ({ output, signal }: Session): Command {
  return command('create', { description: 'make a working copy of a version', exits: [EXIT.notFound, EXIT.conflict, ...DAEMON_EXITS] })
    .argument('<NAME>', 'its name: under a mount it is the file working/NAME')
    .argument('<REF>', 'the version that it starts from')
    .action(async (name: string, ref: string, options: Options) => {
      const row = await withDaemon(options, async (client) => await client.createWorkingCopy({ name, ref }, { signal }))
      output.result(row, () => printed(row))
    })
}

function lsCommand ({ output, signal }: Session): Command {
  return command('ls', { description: 'list the working copies on this machine', exits: DAEMON_EXITS })
    .action(async (options: Options) => {
      const workingCopies = await withDaemon(options, async (client) => await client.workingCopies({ signal }))
      output.result({ workingCopies }, () => table(
        ['NAME', 'BASE', 'SIZE', 'WRITTEN', 'PATH'],
        workingCopies.map(({ name, blob, version, size, dirtyBytes, path }) => [name, `${blob}@${version}`, formatBytes(size), formatBytes(dirtyBytes), path])
      ))
    })
}

function rmCommand ({ output, signal }: Session): Command {
  return command('rm', { description: 'drop a working copy and all that it has written', exits: [EXIT.notFound, EXIT.conflict, ...DAEMON_EXITS] })
    .argument('<NAME>')
    .action(async (name: string, options: Options) => {
      await withDaemon(options, async (client) => { await client.removeWorkingCopy(name, { signal }) })
      output.result({ name }, () => `removed ${name}`)
    })
}

function revertCommand ({ output, signal }: Session): Command {
  return command('revert', { description: 'throw away what a working copy has written since its base', exits: [EXIT.notFound, EXIT.conflict, ...DAEMON_EXITS] })
    .argument('<NAME>')
    .action(async (name: string, options: Options) => {
      const row = await withDaemon(options, async (client) => await client.revertWorkingCopy(name, { signal }))
      output.result(row, () => printed(row))
    })
}

function printed (row: WorkingCopyRow): string {
  return fields([
    ['name', row.name],
    ['base', `${row.blob}@${row.version}`],
    ['size', formatBytes(row.size)],
    ['written', formatBytes(row.dirtyBytes)],
    ['path', row.path]
  ])
}
