import type { Command } from 'commander'
import { EXIT } from '../exit-codes.ts'
import { command, configOf, type Options, type Session } from '../session.ts'

export function doctorCommand ({ output, signal }: Session): Command {
  return command('doctor', { description: 'say what this machine can and cannot do, and how to mend it', exits: [EXIT.partly], settings: ['data'] })
    .addHelpText('after', '\n3 when something is missing that a storage or compute peer needs.')
    .action(async (options: Options) => {
      const { examine } = await import('../doctor.ts')
      const config = configOf(options)
      const checks = await examine({ dataDir: config.get('data'), control: config.get('control'), signal })
      output.result({ checks }, () => checks.map(({ name, ok, needed, found, mend }) => {
        const mark = ok ? 'ok' : needed ? 'NO' : '--'
        return `${mark}  ${name.padEnd(NAME_WIDTH)}  ${found}${ok || mend === null ? '' : `\n${' '.repeat(NAME_WIDTH + 6)}${mend}`}`
      }).join('\n'))
      if (checks.some(({ ok, needed }) => !ok && needed)) process.exitCode = EXIT.partly
    })
}

const NAME_WIDTH = 12
