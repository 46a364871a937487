import type { Command } from 'commander'
import { P2pvmError } from '../../protocols/errors.ts'
import type { DaemonConfig } from '../config.ts'
import { EXIT } from '../exit-codes.ts'
import { command, configOf, DAEMON_EXITS, type Options, type Session } from '../session.ts'

export function daemonCommand (session: Session): Command {
  return command('daemon', {
    description: 'run one peer, until SIGTERM or SIGINT; prints one line of JSON when it is ready',
    exits: [EXIT.conflict, ...DAEMON_EXITS],
    settings: ['data', 'role', 'listen', 'bootstrap', 'capacity', 'cache-size', 'replicas', 'write-quorum', 'member-list', 'log-level']
  })
    .addHelpText('after', '\nThe first peer with the role versions, on an empty --data and without --bootstrap, makes the fabric.')
    .action(async (options: Options) => {
      const config = daemonConfig(options, session)
      const { runDaemon } = await import('../daemon.ts')
      await runDaemon(config)
    })
}

function daemonConfig (options: Options, { output, signal }: Session): DaemonConfig {
  const config = configOf(options)
  const replicas = config.get('replicas')
  const writeQuorum = config.get('write-quorum')
  if (writeQuorum > replicas) throw new P2pvmError('ERR_USAGE', `a write cannot wait for ${writeQuorum} of ${replicas} replicas`)
  const roles = [...new Set(config.get('role'))]
  if (roles.length === 0) throw new P2pvmError('ERR_USAGE', 'a peer needs a role')
  return {
    dataDir: config.get('data'),
    roles,
    listen: config.get('listen'),
    bootstrap: config.get('bootstrap'),
    control: config.get('control'),
    capacityBytes: config.get('capacity'),
    cacheBytesMax: config.get('cache-size'),
    replicas,
    writeQuorum,
    memberList: config.get('member-list') === 'on',
    logLevel: config.get('log-level'),
    onReady (ready) { output.result(ready, () => JSON.stringify(ready)) },
    signal
  }
}
