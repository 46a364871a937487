/** The Debian packages that a benchmark uses, installed by name when they are missing; nothing is started when none is. */
import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const SCRIPT = fileURLToPath(new URL('../../scripts/install-debian-packages', import.meta.url))

export function installPackages (group: 'test' | 'bench'): void {
  execFileSync(SCRIPT, [group], { stdio: ['ignore', 'inherit', 'inherit'] })
}
