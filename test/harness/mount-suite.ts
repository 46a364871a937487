/**
 * One suite over every driver of a mount, in the manner of the chunk stores' suite: what is written once is run for each, and
 * what a driver cannot do is data here. Where one cannot, its suite has a test of what happens instead.
 */
import { describe } from 'vitest'
import type { DriverName } from '../../src/mirror/driver.ts'
import { type Capability, describeWith } from './capabilities.ts'

export interface DriverUnderTest {
  readonly name: DriverName
  readonly needs: readonly Capability[]
  /** Clone and commit as ioctls. */
  readonly ioctl: boolean
  /** The kernel keeps what was written to itself until it likes. */
  readonly writeback: boolean
  /** SEEK_DATA and SEEK_HOLE know holes. */
  readonly lseek: boolean
  /** fallocate(2) in any mode. */
  readonly fallocate: boolean
  /** What is cached is read without the main thread. */
  readonly workers: boolean
}

const DRIVERS: readonly DriverUnderTest[] = [
  { name: 'direct', needs: ['root', 'fuse', 'python3'], ioctl: true, writeback: true, lseek: true, fallocate: true, workers: true },
  { name: 'fuse-native', needs: ['root', 'fuse', 'python3', 'fuse-native'], ioctl: false, writeback: false, lseek: false, fallocate: false, workers: false }
]

/** `describe` for each driver; `tests` is told which. `needs`: besides what the driver does. */
export function mountSuite (name: string, tests: (driver: DriverUnderTest) => void, needs: readonly Capability[] = []): void {
  describe.each(DRIVERS)('driver $name', (driver) => {
    describeWith([...driver.needs, ...needs], name, () => { tests(driver) })
  })
}
