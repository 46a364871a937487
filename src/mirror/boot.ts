/** Which boot of this machine it is: what a process left in memory, or in the page cache, is there in that boot and no other. */
import { readFileSync } from 'node:fs'

/** A UUID, as the kernel writes it. */
export function bootId (): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
}
