/**
 * The command `p2pvm`: finds the command's file, loads only that, runs it, and turns the outcome into an exit code. The one
 * place where signals, stdout and the process's end are handled.
 */
import { Command, CommanderError } from 'commander'
import { P2pvmError } from '../protocols/errors.ts'
import { EXIT, type ExitCode, exitCodeOf } from './exit-codes.ts'
import { PROGRAM_VERSION } from './program-version.ts'
import { Output } from './output.ts'
import type { Session } from './session.ts'

type Build = (session: Session) => Command

/** In the order of the help. Each is loaded when it is asked for: `p2pvm ls` does not wait for libp2p. */
const COMMANDS: Readonly<Record<string, () => Promise<Build>>> = {
  import: async () => (await import('./commands/import.ts')).importCommand,
  export: async () => (await import('./commands/export.ts')).exportCommand,
  ls: async () => (await import('./commands/ls.ts')).lsCommand,
  log: async () => (await import('./commands/log.ts')).logCommand,
  info: async () => (await import('./commands/info.ts')).infoCommand,
  mount: async () => (await import('./commands/mount.ts')).mountCommand,
  umount: async () => (await import('./commands/umount.ts')).umountCommand,
  'working-copy': async () => (await import('./commands/working-copy.ts')).workingCopyCommand,
  clone: async () => (await import('./commands/clone.ts')).cloneCommand,
  commit: async () => (await import('./commands/commit.ts')).commitCommand,
  blob: async () => (await import('./commands/blob.ts')).blobCommand,
  verify: async () => (await import('./commands/verify.ts')).verifyCommand,
  status: async () => (await import('./commands/status.ts')).statusCommand,
  peers: async () => (await import('./commands/peers.ts')).peersCommand,
  doctor: async () => (await import('./commands/doctor.ts')).doctorCommand,
  daemon: async () => (await import('./commands/daemon.ts')).daemonCommand,
  config: async () => (await import('./commands/config.ts')).configCommand
}

async function main (args: readonly string[]): Promise<ExitCode> {
  const json = args.includes('--json')
  const output = new Output({ json, stdout: process.stdout, stderr: process.stderr, env: process.env })
  const session: Session = { output, signal: abortOnSignals() }
  try {
    const program = await build(session, args)
    await program.parseAsync(args, { from: 'user' })
    return (process.exitCode ?? EXIT.done) as ExitCode
  } catch (error) {
    if (error instanceof CommanderError) return usage(error, output, json)
    output.failure(error)
    return exitCodeOf(error)
  }
}

async function build (session: Session, args: readonly string[]): Promise<Command> {
  const program = new Command('p2pvm')
    .description('A peer-to-peer, content-addressed fabric for virtual-machine images')
    .version(PROGRAM_VERSION)
    .helpCommand(false)
  const asked = COMMANDS[args[0] ?? '']
  for (const load of asked === undefined ? Object.values(COMMANDS) : [asked]) program.addCommand((await load())(session))
  quiet(program, args.includes('--json'))
  return program
}

/** Errors are thrown, and printed in one place; under --json nothing but the document is written. */
function quiet (command: Command, json: boolean): void {
  command.exitOverride()
  if (json) command.configureOutput({ writeErr: () => {} })
  for (const sub of command.commands) quiet(sub, json)
}

function usage (error: CommanderError, output: Output, json: boolean): ExitCode {
  if (error.exitCode === 0) return EXIT.done // --help, --version
  if (json) output.failure(new P2pvmError('ERR_USAGE', error.code === 'commander.help' ? 'a command is missing; see p2pvm --help' : error.message.replace(/^error: /, '')))
  return EXIT.usage
}

/** The first signal asks to stop; a second one finds no listener, and the system ends the process. */
function abortOnSignals (): AbortSignal {
  const stop = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM'] as const) {
    process.once(name, () => { stop.abort(new P2pvmError('ERR_ABORTED', `interrupted by ${name}`)) })
  }
  return stop.signal
}

// `p2pvm ls | head -1`: the reader has what it wanted.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  process.exit(error.code === 'EPIPE' ? EXIT.done : EXIT.failed)
})

const code = await main(process.argv.slice(2))
// What is written to a pipe is still on its way when this line runs; then nothing that lingers may hold the process.
process.exitCode = code
process.stdout.write('', () => { process.stderr.write('', () => { process.exit(code) }) })
