/**
 * A mount in a process of its own, over local image files: a test that touches a mount served by its own process would wait
 * for itself. Told over the IPC channel: {id, call, args} is answered {id, result} or {id, error}.
 */
import type { DriverName } from '../../src/mirror/driver.ts'
import { guardProcess } from '../../src/mirror/fuse/exits.ts'
import { startMount, type Mount } from '../../src/mirror/fuse/mount.ts'
import type { VersionRef } from '../../src/mirror/source.ts'
import { createWorkingCopy, listWorkingCopies, removeWorkingCopy } from '../../src/mirror/working-copy.ts'
import { createLog, nodeClock as clock, nodeRandom as random } from '../../src/node/world.ts'
import { errorCodeOf } from '../../src/protocols/errors.ts'
import { FileSource, type FileSourceInit } from './file-source.ts'

export interface MountChildInit extends FileSourceInit {
  readonly mountpoint: string
  readonly driver: DriverName
  readonly missDeadlineMs?: number
}

const init = JSON.parse(process.argv[2] ?? '{}') as MountChildInit
const source = new FileSource(init)
const log = createLog({ level: process.env.P2PVM_TEST_LOG === '1' ? 'debug' : 'error', stream: process.stderr })
let mount: Mount | undefined

const calls = {
  createWorkingCopy: async (name: string, version: number) => await createWorkingCopy(init.folders.working, name, await source.resolve(`${init.blob}@${version}`), random),
  removeWorkingCopy: async (name: string) => { await removeWorkingCopy(init.folders.working, name, random) },
  listWorkingCopies: async () => await listWorkingCopies(init.folders.working),
  set: async (changes: Partial<FileSource>) => { Object.assign(source, changes) },
  fetched: async () => source.fetched,
  asked: async () => source.asked,
  lastFreezeMs: async () => source.lastFreezeMs,
  fileOf: async (blob: string, version: number) => source.fileOf(blob, version),
  counters: async () => mount?.counters(),
  workingCopies: async () => mount?.workingCopies(),
  workingCopyAt: async (path: string[]) => await mount?.workingCopyAt(path),
  commit: async (name: string) => await source.commit(name, {}, AbortSignal.timeout(60_000)),
  clone: async (name: string, as: string) => await source.clone(name, { name: as }, AbortSignal.timeout(60_000)),
  seal: async (name: string) => await mount?.sealable(name).seal(AbortSignal.timeout(60_000)),
  unseal: async (name: string) => { await mount?.sealable(name).unseal(AbortSignal.timeout(60_000)) },
  rebase: async (name: string, version: VersionRef) => { await mount?.sealable(name).rebase(version, AbortSignal.timeout(60_000)) },
  revert: async (name: string) => { await mount?.sealable(name).revert(AbortSignal.timeout(60_000)) },
  unmount: async (force: boolean) => { await mount?.unmount({ force }) },
  blockMainThread: async (ms: number) => { process.send?.({ event: 'blocking' }, () => { mount?.testHooks?.blockMainThread(ms) }) },
  throwInMainThread: async () => { mount?.testHooks?.throwInMainThread() }
}

const answering = new Set<Promise<void>>()

async function answer ({ id, call, args }: { id: number, call: keyof typeof calls, args: unknown[] }): Promise<void> {
  try {
    const result = await (calls[call] as (...args: unknown[]) => Promise<unknown>)(...args)
    process.send?.({ id, result })
  } catch (error) {
    process.send?.({ id, error: { code: errorCodeOf(error), message: String(error) } })
  }
}

process.on('message', (message: Parameters<typeof answer>[0]) => {
  const answered = answer(message).finally(() => { answering.delete(answered) })
  answering.add(answered)
})

try {
  mount = await startMount({ ...init, source, clock, random, log })
  source.sealable = (name) => { if (mount === undefined) throw new Error('no mount'); return mount.sealable(name) }
  guardProcess(mount, log)
  process.send?.({ event: 'ready', pid: process.pid })
  await mount.closed
  await Promise.all(answering)
  process.disconnect()
} catch (error) {
  process.send?.({ event: 'failed', code: errorCodeOf(error), message: String(error) }, () => { process.exit(1) })
}
