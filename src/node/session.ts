/**
 * What every command shares: how one is declared (its options, its help with the exit codes), and what it is handed when it
 * runs. Not for: what a command does, which is in `commands/`, one file each.
 */
import { Command } from 'commander'
import { P2pvmError } from '../protocols/errors.ts'
import { Config, type Flags, type SettingName, SETTINGS, variableOf } from './config.ts'
import { ControlClient } from './control-client.ts'
import { EXIT, EXIT_MEANINGS, type ExitCode } from './exit-codes.ts'
import type { Output } from './output.ts'

/** One run of the program. */
export interface Session {
  readonly output: Output
  /** Aborts on SIGINT and SIGTERM. */
  readonly signal: AbortSignal
}

interface CommandInit {
  readonly description: string
  /** Beyond done, failed, usage and interrupted. */
  readonly exits?: readonly ExitCode[]
  /** Settings that this command takes as flags, beyond --control. */
  readonly settings?: readonly SettingName[]
}

/** What a command that asks a daemon can always end with. */
export const DAEMON_EXITS: readonly ExitCode[] = [EXIT.notAllowed, EXIT.unavailable]

export function command (name: string, { description, exits = [], settings = [] }: CommandInit): Command {
  const built = new Command(name).description(description).option('--json', 'print one JSON document on stdout, on errors too')
  for (const setting of ['control' as const, ...settings]) addSetting(built, setting)
  const codes = [EXIT.done, EXIT.failed, EXIT.usage, ...exits, EXIT.interrupted].sort((a, b) => a - b)
  return built.addHelpText('after', `\nExit codes:\n${codes.map((code) => `  ${String(code).padStart(3)}  ${EXIT_MEANINGS[code]}`).join('\n')}`)
}

function addSetting (built: Command, name: SettingName): void {
  const { help } = SETTINGS[name]
  const list = 'list' in SETTINGS[name]
  built.option(`--${name} <${PLACEHOLDERS[name]}${list ? '...' : ''}>`, `${help} (${variableOf(name)})`)
}

const PLACEHOLDERS: Readonly<Record<SettingName, string>> = {
  control: 'SOCKET',
  data: 'DIR',
  role: 'ROLE',
  listen: 'ADDR',
  bootstrap: 'ADDR',
  capacity: 'SIZE',
  'cache-size': 'SIZE',
  replicas: 'R',
  'write-quorum': 'W',
  'member-list': 'on|off',
  driver: 'DRIVER',
  'miss-deadline': 'SECONDS',
  'log-level': 'LEVEL'
}

/** Options as commander names them: `writeQuorum` for --write-quorum. */
export type Options = Readonly<Record<string, unknown>>

export function configOf (options: Options): Config {
  const camelCased = (name: string): string => name.replace(/-(.)/g, (_, letter: string) => letter.toUpperCase())
  const flags = Object.keys(SETTINGS).map((name) => [name, options[camelCased(name)]])
  return new Config(Object.fromEntries(flags) as Flags)
}

/** Runs `work` with a client of the daemon that the options, the environment or the file name. */
export async function withDaemon<T> (options: Options, work: (client: ControlClient, config: Config) => Promise<T>): Promise<T> {
  const config = configOf(options)
  const client = new ControlClient(config.get('control'))
  try {
    return await work(client, config)
  } catch (error) {
    // Nobody at the socket, as opposed to a daemon that says so of its peers.
    if (error instanceof P2pvmError && error.fields['socket'] === client.socket && error.fields['errno'] !== undefined) {
      throw new P2pvmError(error.code, `no daemon answers at ${client.socket}: start one with 'p2pvm daemon', or name its socket with --control or P2PVM_CONTROL`, error.fields, error)
    }
    throw error
  } finally {
    client.close()
  }
}
