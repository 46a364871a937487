import type { Command } from 'commander'
import { fields } from '../output.ts'
import { command, DAEMON_EXITS, type Options, type Session, withDaemon } from '../session.ts'
import { formatBytes, formatDuration } from '../units.ts'

export function statusCommand ({ output, signal }: Session): Command {
  return command('status', { description: 'show what this peer is and holds', exits: DAEMON_EXITS })
    .action(async (options: Options) => {
      const status = await withDaemon(options, async (client) => await client.status({ signal }))
      const holding = (held: { chunks: number, bytes: number } | null): string | null => held && `${held.chunks} chunks, ${formatBytes(held.bytes)}`
      output.result(status, () => fields([
        ['peer', status.peerId],
        ['fabric', status.fabric],
        ['roles', status.roles.join(', ')],
        ['addresses', status.addresses.join(' ')],
        ['members', `${status.membersUp} up of ${status.members}${status.memberListComplete ? '' : ' (list not complete)'}`],
        ['stored', holding(status.stored)],
        ['records', status.stored?.records ?? null],
        ['cache', status.cache && `${holding(status.cache)} of ${formatBytes(status.cache.bytesMax)}`],
        ['mounts', status.mounts.map(({ mountpoint, pid, driver }) => `${mountpoint} (pid ${pid}, ${driver})`).join(', ') || null],
        ['data', status.dataDir],
        ['process', `pid ${status.pid}, p2pvm ${status.version}, up ${formatDuration(status.uptimeMs)}`]
      ]))
    })
}
