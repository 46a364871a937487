/**
 * The process `p2pvm mount`: one FUSE server, its entry in the registry of mounts, and the socket by which the daemon and
 * `umount` drive it. It has no libp2p in it, and goes on without its daemon with what is local.
 */
import { randomBytes } from 'node:crypto'
import { unlink } from 'node:fs/promises'
import { join } from 'node:path'
import { replaceFile } from '../mirror/files.ts'
import { guardProcess } from '../mirror/fuse/exits.ts'
import { type Mount, startMount } from '../mirror/fuse/mount.ts'
import type { VersionRef } from '../mirror/source.ts'
import { P2pvmError } from '../protocols/errors.ts'
import type { MountConfig } from './config.ts'
import { ControlClient } from './control-client.ts'
import { json, type Route, type RoutedRequest, serveOnSocket } from './http-server.ts'
import { mirrorSource } from './mirror-source.ts'
import type { MountEntry } from './mounts.ts'
import { startTimeOf } from '../mirror/processes.ts'
import { createLog, nodeClock, nodeRandom } from './world.ts'

/** Returns when the mount has ended. ERR_UNAVAILABLE when no daemon answers at the control socket; else as startMount. */
export async function runMount (config: MountConfig): Promise<void> {
  const log = createLog({ level: config.logLevel, stream: process.stderr })
  const client = new ControlClient(config.control)
  const folders = await client.folders({ signal: config.signal })
  const mount = await startMount({
    mountpoint: config.mountpoint,
    source: mirrorSource(client),
    folders,
    clock: nodeClock,
    random: nodeRandom,
    log,
    driver: config.driver,
    trace: config.trace ? (line) => { process.stderr.write(`${line}\n`) } : undefined
  })
  guardProcess(mount, log)
  try {
    config.signal.throwIfAborted() // a signal that came before the guard was there
    const path = join(folders.mounts, randomBytes(4).toString('hex'))
    const server = await serveOnSocket(`${path}.sock`, mountRoutes(mount), log)
    await announce(`${path}.json`, mount, `${path}.sock`)
    config.onReady({ mountpoint: mount.mountpoint, pid: process.pid, driver: mount.driver })
    await mount.closed
    await unlink(`${path}.json`)
    await server.close()
  } catch (error) {
    mount.abort()
    throw error
  } finally {
    client.close()
  }
}

async function announce (path: string, { mountpoint, driver }: Mount, socket: string): Promise<void> {
  const entry: Omit<MountEntry, 'id'> = { pid: process.pid, startTime: await startTimeOf(process.pid) ?? '', mountpoint, driver, socket }
  await replaceFile(path, JSON.stringify(entry))
}

/**
 *   GET  /v1/status                          → {mountpoint, driver, workingCopies, counters}
 *   POST /v1/working-copy-at      {path[]}   → {name}         path: below the mountpoint
 *   POST /v1/seal                 {names[]}  → {sealed[]}     working copies, at one moment, all or none
 *   POST /v1/working-copies/NAME/VERB        → Sealed or {}   VERB: seal, rebase, unseal, reassign, revert (sealable.ts)
 *   POST /v1/test/block {ms} · /v1/test/throw                 only with P2PVM_TEST_HOOKS=1
 */
function mountRoutes (mount: Mount): Route[] {
  const post = (pattern: string, answer: (request: RoutedRequest, body: Readonly<Record<string, unknown>>) => Promise<unknown>): Route =>
    ({ method: 'POST', pattern, handle: async (request) => json(await answer(request, await request.json())) })
  const sealable = ({ params }: RoutedRequest): ReturnType<Mount['sealable']> => mount.sealable(params['name'] ?? '')
  const copy = '/v1/working-copies/:name'
  const { testHooks } = mount

  return [
    {
      method: 'GET',
      pattern: '/v1/status',
      handle: async () => json({ mountpoint: mount.mountpoint, driver: mount.driver, workingCopies: mount.workingCopies(), counters: mount.counters() })
    },
    post('/v1/working-copy-at', async (_, body) => ({ name: await mount.workingCopyAt(namesOf(body, 'path')) })),
    post('/v1/seal', async ({ signal }, body) => ({ sealed: await mount.sealTogether(namesOf(body, 'names'), signal) })),
    post(`${copy}/seal`, async (request) => await sealable(request).seal(request.signal)),
    post(`${copy}/rebase`, async (request, body) => { await sealable(request).rebase(versionOf(body), request.signal); return {} }),
    post(`${copy}/unseal`, async (request) => { await sealable(request).unseal(request.signal); return {} }),
    post(`${copy}/reassign`, async (request, body) => { await sealable(request).reassign(versionOf(body), request.signal); return {} }),
    post(`${copy}/revert`, async (request) => { await sealable(request).revert(request.signal); return {} }),
    ...testHooks === undefined
      ? []
      : [
          post('/v1/test/block', async (_, { ms }) => { testHooks.blockMainThread(Number(ms)); return {} }),
          post('/v1/test/throw', async () => { testHooks.throwInMainThread(); return {} })
        ]
  ]
}

function namesOf (body: Readonly<Record<string, unknown>>, field: string): string[] {
  const names = body[field]
  if (Array.isArray(names) && names.every((name): name is string => typeof name === 'string')) return names
  throw new P2pvmError('ERR_USAGE', `${field} must be a list of names`)
}

function versionOf ({ blob, version, size, chunkSize }: Readonly<Record<string, unknown>>): VersionRef {
  if (typeof blob === 'string' && [version, size, chunkSize].every(Number.isSafeInteger)) {
    return { blob, version: version as number, size: size as number, chunkSize: chunkSize as number }
  }
  throw new P2pvmError('ERR_USAGE', 'a version is {blob, version, size, chunkSize}')
}
