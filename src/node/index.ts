/**
 * The library: `import { connect } from 'p2pvm'`. A client of a running daemon, with what the commands can do.
 *
 *   const fabric = await connect({ control: '/run/p2pvm/control.sock' })
 *   for (const { name, version } of await fabric.images()) console.log(`${name}@${version}`)
 *   fabric.close()
 */
import { type CallOptions, ControlClient } from './control-client.ts'
import { Config } from './config.ts'

export interface ConnectInit extends CallOptions {
  /** The daemon's socket. Without it: P2PVM_CONTROL, the configuration file, or the default of this user. */
  readonly control?: string
}

/** ERR_UNAVAILABLE when no daemon answers there. */
export async function connect (init: ConnectInit = {}): Promise<ControlClient> {
  const client = new ControlClient(new Config({ control: init.control }).get('control'))
  try {
    await client.status({ signal: init.signal })
    return client
  } catch (error) {
    client.close()
    throw error
  }
}

export { P2pvmError } from '../protocols/errors.ts'
export type { ErrorCode } from '../protocols/errors.ts'
export type { CallOptions, ControlClient } from './control-client.ts'
export type { SparseItem } from '../versioning/image-import.ts'
export type * from './control-api.ts'
