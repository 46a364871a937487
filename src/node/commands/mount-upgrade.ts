/** `p2pvm mount --upgrade DIR`: asks the keeper of a running mount to serve it with the program that is on disk now. */
import { P2pvmError } from '../../protocols/errors.ts'
import { requestJson } from '../http-json.ts'
import { canonicalMountpoint } from '../mountpoints.ts'
import { listMounts } from '../mounts.ts'
import { fields } from '../output.ts'
import type { Options, Session } from '../session.ts'
import { registryOf } from './umount.ts'

/** The keeper's own deadlines, for loading and for taking over, and something for itself. */
const UPGRADE_DEADLINE_MS = 90_000

/** ERR_NOT_FOUND when this peer has nothing mounted there; else what the keeper says. */
export async function upgradeMount (folder: string, options: Options, { output, signal }: Session): Promise<void> {
  const mountpoint = await canonicalMountpoint(folder)
  const mount = (await listMounts(await registryOf(options, signal))).find((entry) => entry.mountpoint === mountpoint)
  if (mount === undefined) throw new P2pvmError('ERR_NOT_FOUND', `p2pvm has nothing mounted at ${mountpoint}`, { mountpoint })
  if (mount.keeper === null) throw new P2pvmError('ERR_NOT_ALLOWED', `the mount at ${mountpoint} has no keeper: its driver is ${mount.driver}`, { mountpoint })
  const { before, after } = await requestJson<{ before: string, after: string }>(mount.keeper, 'POST', '/v1/upgrade', { body: {}, deadlineMs: UPGRADE_DEADLINE_MS, signal })
  output.result({ mountpoint, pid: mount.pid, before, after }, () => fields([['mountpoint', mountpoint], ['pid', mount.pid], ['served by', `p2pvm ${after}`], ['before', `p2pvm ${before}`]]))
}
