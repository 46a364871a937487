import type { Command } from 'commander'
import { type ConfigRow, type SettingName, SETTINGS } from '../config.ts'
import { table } from '../output.ts'
import { command, configOf, type Options, type Session } from '../session.ts'

export function configCommand ({ output }: Session): Command {
  const settings = (Object.keys(SETTINGS) as SettingName[]).filter((name) => name !== 'control')
  return command('config', { description: 'show each setting and where its value came from: flag, environment, file or default', settings })
    .action((options: Options) => {
      const rows = configOf(options).rows()
      output.result({ settings: rows }, () => table(['SETTING', 'VALUE', 'FROM'], rows.map((row) => [row.name, printed(row), row.from ?? row.origin])))
    })
}

function printed ({ value }: ConfigRow): string | null {
  const text = Array.isArray(value) ? value.join(',') : String(value)
  return text === '' ? null : text
}
