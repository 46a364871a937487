import type { Command } from 'commander'
import type { VerifyResult } from '../control-api.ts'
import { EXIT, type ExitCode } from '../exit-codes.ts'
import { fields } from '../output.ts'
import { command, DAEMON_EXITS, type Options, type Session, withDaemon } from '../session.ts'

export function verifyCommand ({ output, signal }: Session): Command {
  return command('verify', { description: 'read and hash every replica of every chunk of a version, where it lies', exits: [EXIT.partly, EXIT.notFound, EXIT.integrity, ...DAEMON_EXITS] })
    .argument('<REF>', 'NAME, NAME@VERSION, NAME@latest, BLOB@VERSION, or a prefix of a blob id')
    .addHelpText('after', '\n13 also when a bad copy was seen beside good ones; 3 when replicas are fewer than wanted or did not answer.')
    .action(async (ref: string, options: Options) => {
      const result = await withDaemon(options, async (client) => await client.verify(ref, { signal }))
      output.result(result, () => fields([
        ['version', `${result.blob}@${result.version}`],
        ['chunks', result.chunks],
        ['replicas', `${result.replicas.found} of ${result.replicas.wanted}`],
        ['missing', result.missing],
        ['degraded', result.degraded],
        ['corrupt', result.corrupt],
        ['unreachable', result.unreachable]
      ]))
      process.exitCode = verdict(result)
    })
}

function verdict ({ missing, corrupt, degraded, unreachable }: VerifyResult): ExitCode {
  if (missing > 0 || corrupt > 0) return EXIT.integrity
  return degraded > 0 || unreachable > 0 ? EXIT.partly : EXIT.done
}
