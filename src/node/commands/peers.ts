import type { Command } from 'commander'
import { table } from '../output.ts'
import { command, DAEMON_EXITS, type Options, type Session, withDaemon } from '../session.ts'
import { formatBytes } from '../units.ts'

export function peersCommand ({ output, signal }: Session): Command {
  return command('peers', { description: 'list the members of the fabric that this peer knows', exits: DAEMON_EXITS })
    .action(async (options: Options) => {
      const members = await withDaemon(options, async (client) => await client.peers({ signal }))
      output.result({ members }, () => table(
        ['PEER', 'STATE', 'ROLES', 'CAPACITY', 'ADDRESSES'],
        members.map(({ peerId, state, roles, capacityBytes, addresses, self }) =>
          [self ? `${peerId} (this)` : peerId, state, roles.join(','), formatBytes(capacityBytes), addresses.join(' ')])
      ))
    })
}
