/**
 * What a FUSE server answers on the mount's socket: to the daemon, which drives commits through it, and to tests. Owns no state.
 */
import type { Mount } from '../mirror/fuse/mount.ts'
import type { VersionRef } from '../mirror/source.ts'
import { P2pvmError } from '../protocols/errors.ts'
import { json, type Route, type RoutedRequest } from './http-server.ts'

/**
 *   GET  /v1/status                          → {mountpoint, driver, pid, workingCopies, counters}
 *   POST /v1/working-copy-at      {path[]}   → {name}         path: below the mountpoint
 *   POST /v1/seal                 {names[]}  → {sealed[]}     working copies, at one moment, all or none
 *   POST /v1/leave                           → {pids[]}       of a mount that is gone here, and not in other mount namespaces: a process of each
 *   POST /v1/working-copies/NAME/VERB        → Sealed or {}   VERB: seal, rebase, unseal, reassign, revert (sealable.ts)
 *   POST /v1/test/block {ms} · /v1/test/throw                 only with P2PVM_TEST_HOOKS=1
 */
export function mountRoutes (mount: Mount): Route[] {
  const post = (pattern: string, answer: (request: RoutedRequest, body: Readonly<Record<string, unknown>>) => Promise<unknown>): Route =>
    ({ method: 'POST', pattern, handle: async (request) => json(await answer(request, await request.json())) })
  const sealable = ({ params }: RoutedRequest): ReturnType<Mount['sealable']> => mount.sealable(params['name'] ?? '')
  const copy = '/v1/working-copies/:name'
  const { testHooks } = mount

  return [
    {
      method: 'GET',
      pattern: '/v1/status',
      handle: async () => json({ mountpoint: mount.mountpoint, driver: mount.driver, pid: process.pid, workingCopies: mount.workingCopies(), counters: mount.counters() })
    },
    post('/v1/working-copy-at', async (_, body) => ({ name: await mount.workingCopyAt(namesOf(body, 'path')) })),
    post('/v1/seal', async ({ signal }, body) => ({ sealed: await mount.sealTogether(namesOf(body, 'names'), signal) })),
    post('/v1/leave', async () => ({ pids: await mount.leave() })),
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
