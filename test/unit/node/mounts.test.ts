import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { ownProcessId } from '../../../src/mirror/processes.ts'
import { listMounts } from '../../../src/node/mounts.ts'

it('the registry keeps mounts whose process lives, and takes away what an earlier boot left', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'p2pvm-mounts-'))
  try {
    const { pid, startTime, boot } = await ownProcessId()
    const entries = { here: { pid, startTime, boot }, older: { pid, startTime }, rebooted: { pid, startTime, boot: '0'.repeat(32) }, ended: { pid, startTime: '1', boot } }
    for (const [id, entry] of Object.entries(entries)) {
      writeFileSync(join(folder, `${id}.json`), JSON.stringify({ ...entry, mountpoint: `/mnt/${id}` }))
      writeFileSync(join(folder, `${id}.inodes`), '')
    }
    expect((await listMounts(folder)).map(({ mountpoint }) => mountpoint)).toEqual(['/mnt/here', '/mnt/older'])
    expect(Object.keys(entries).filter((id) => existsSync(join(folder, `${id}.json`)) || existsSync(join(folder, `${id}.inodes`)))).toEqual(['here', 'older'])
  } finally {
    rmSync(folder, { recursive: true })
  }
})
