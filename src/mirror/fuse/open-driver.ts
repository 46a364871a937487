/** Which driver a mount gets. Owns no state. */
import { errorCodeOf, P2pvmError } from '../../protocols/errors.ts'
import type { Driver, DriverChoice } from '../driver.ts'
import { NativeDriver } from '../fuse-native/native-driver.ts'
import { DirectDriver, type DriverComponents } from './direct-driver.ts'

export interface OpenDriverInit {
  readonly choice: DriverChoice
  readonly mountpoint: string
  /** Of the direct driver. */
  readonly workers: number
}

/**
 * Trying is the only sure way to know whether one may mount. ERR_NOT_ALLOWED, with the reasons of both, when neither can;
 * else as `mountDevice`.
 */
export async function openDriver ({ choice, mountpoint, workers }: OpenDriverInit, components: DriverComponents): Promise<Driver> {
  if (choice === 'fuse-native') return await NativeDriver.open(mountpoint, components)
  try {
    return await DirectDriver.open(mountpoint, workers, components)
  } catch (direct) {
    if (choice === 'direct' || errorCodeOf(direct) !== 'ERR_NOT_ALLOWED') throw direct
    try {
      return await NativeDriver.open(mountpoint, components)
    } catch (native) {
      if (errorCodeOf(native) !== 'ERR_NOT_ALLOWED') throw native
      throw new P2pvmError('ERR_NOT_ALLOWED', `${messageOf(direct)}; ${messageOf(native)}`, { path: mountpoint }, direct)
    }
  }
}

function messageOf (error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
