import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { PAGE_BYTES } from '../../../src/mirror/page-map.ts'
import { acquireLock, lockHolder, ownProcessId, processId, type ProcessId, processIsAlive, startTimeOf } from '../../../src/mirror/processes.ts'
import type { VersionRef } from '../../../src/mirror/source.ts'
import { unmountedSealable } from '../../../src/mirror/unmounted-copy.ts'
import {
  createWorkingCopy, listWorkingCopies, LockedCopy, readWorkingCopy, releaseInheritedLocks, removeWorkingCopy, sweepWorkingFolder, workingCopyHolder
} from '../../../src/mirror/working-copy.ts'
import { nodeRandom as random } from '../../../src/node/world.ts'

const SIZE = 8 * PAGE_BYTES
const BASE: VersionRef = { blob: 'abcdefghijklmnop', version: 3, size: SIZE, chunkSize: PAGE_BYTES }
/** The boot before this one. */
const BEFORE = '0'.repeat(32)
const signal = new AbortController().signal

let working: string

beforeEach(() => { working = mkdtempSync(join(tmpdir(), 'p2pvm-working-')) })
afterEach(() => { rmSync(working, { recursive: true }) })

const mark = (copy: LockedCopy, page: number): void => {
  const { mapFd } = copy.top.view()
  copy.top.map.mark(mapFd, page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
}

describe('working copies', () => {
  it('are made, listed with what they have written, and removed', async () => {
    await createWorkingCopy(working, 'b', BASE, random)
    const state = await createWorkingCopy(working, 'a', BASE, random, { origin: { blob: BASE.blob, version: 3 } })
    expect(await readWorkingCopy(working, 'a')).toEqual(state)
    expect(BigInt(state.ino)).toBeGreaterThan(2n ** 32n - 1n)
    expect(BigInt(state.ino)).toBeLessThan(2n ** 63n)
    const copy = await LockedCopy.open(working, 'a', random)
    mark(copy, 2)
    await copy.close()
    expect(await listWorkingCopies(working)).toEqual([
      { name: 'a', blob: BASE.blob, version: 3, size: SIZE, chunkSize: PAGE_BYTES, dirtyBytes: PAGE_BYTES },
      { name: 'b', blob: BASE.blob, version: 3, size: SIZE, chunkSize: PAGE_BYTES, dirtyBytes: 0 }
    ])
    await removeWorkingCopy(working, 'a', random)
    expect(readdirSync(working)).toEqual(['b'])
    await expect(readWorkingCopy(working, 'a')).rejects.toMatchObject({ code: 'ERR_NOT_FOUND' })
    await expect(removeWorkingCopy(working, 'a', random)).rejects.toMatchObject({ code: 'ERR_NOT_FOUND' })
  })

  it('have a name each, that is one', async () => {
    await createWorkingCopy(working, 'a', BASE, random)
    await expect(createWorkingCopy(working, 'a', BASE, random)).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    for (const name of ['', '.hidden', '../b', 'A', 'a/b', 'x'.repeat(129)]) {
      await expect(createWorkingCopy(working, name, BASE, random)).rejects.toMatchObject({ code: 'ERR_USAGE' })
    }
    expect(readdirSync(working)).toEqual(['a'])
  })

  it('that a server had open in the name of its keeper are the next one\'s, and nobody else\'s while either lives', async () => {
    await createWorkingCopy(working, 'a', BASE, random)
    const self = { pid: process.pid, startTime: await startTimeOf(process.pid) ?? '' }
    const dead = (pid: number): ProcessId => ({ pid, startTime: '1' })
    const locks = (): string[] => readdirSync(join(working, 'a')).filter((name) => name.startsWith('lock.'))
    const left = await LockedCopy.open(working, 'a', random, { ...self, server: dead(4_000_001) }) // a server that was killed
    expect(await workingCopyHolder(working, 'a')).toBe(process.pid)
    await expect(LockedCopy.open(working, 'a', random)).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    const [before] = locks()
    const next = await LockedCopy.open(working, 'a', random, { ...self, server: dead(4_000_002) })
    expect(locks()).toHaveLength(1)
    expect(locks()).not.toContain(before)
    await expect(LockedCopy.open(working, 'a', random, { ...self, server: dead(4_000_002) })).rejects.toMatchObject({ code: 'ERR_CONFLICT' }) // the same one twice
    await next.close()
    await left.close()
    expect(locks()).toEqual([])

    const orphan = await LockedCopy.open(working, 'a', random, { ...dead(4_000_003), server: self }) // the keeper was killed, the server is on its way out
    await expect(LockedCopy.open(working, 'a', random)).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    await orphan.close()
    await LockedCopy.open(working, 'a', random, { ...dead(4_000_003), server: dead(4_000_004) }) // both were
    await (await LockedCopy.open(working, 'a', random)).close()
    expect(locks()).toEqual([])

    await LockedCopy.open(working, 'a', random, { ...self, server: dead(4_000_005) })
    await releaseInheritedLocks(working, { ...self, server: dead(4_000_006) }) // the next one did not open it
    expect(locks()).toEqual([])
  })

  it('are open in one place at a time', async () => {
    await createWorkingCopy(working, 'a', BASE, random)
    const copy = await LockedCopy.open(working, 'a', random)
    await expect(LockedCopy.open(working, 'a', random)).rejects.toMatchObject({ code: 'ERR_CONFLICT', fields: { pid: process.pid } })
    await expect(removeWorkingCopy(working, 'a', random)).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    expect(await workingCopyHolder(working, 'a')).toBe(process.pid)
    await copy.close()
    expect(await workingCopyHolder(working, 'a')).toBeUndefined()
    await removeWorkingCopy(working, 'a', random)
  })

  it('have each change on disk, of several at once too', async () => {
    await createWorkingCopy(working, 'a', BASE, random)
    const copy = await LockedCopy.open(working, 'a', random)
    await Promise.all([copy.recordGrowth(SIZE + 1), copy.change({ holder: 'a mount' }), copy.recordGrowth(SIZE + 2)])
    expect(await readWorkingCopy(working, 'a')).toMatchObject({ size: SIZE + 2, baseSize: SIZE, holder: 'a mount' })
    await copy.close()
  })

  it('have the same bytes on disk before and after a cut, wherever it is interrupted', async () => {
    await createWorkingCopy(working, 'a', BASE, random)
    const copy = await LockedCopy.open(working, 'a', random)
    mark(copy, 1)
    const next = await copy.prepareCut()
    // Killed here: the next process has both, and the upper one is empty.
    expect(await listWorkingCopies(working)).toMatchObject([{ dirtyBytes: PAGE_BYTES }])
    mark(copy, 2) // still to the old one
    await copy.giveUpCut(next)
    expect(await listWorkingCopies(working)).toMatchObject([{ dirtyBytes: 2 * PAGE_BYTES }])
    expect(copy.state.sealed).toBeUndefined()
    copy.cut(await copy.prepareCut())
    mark(copy, 2)
    mark(copy, 3)
    expect(await listWorkingCopies(working)).toMatchObject([{ dirtyBytes: 3 * PAGE_BYTES }])
    await copy.close()
    const again = await LockedCopy.open(working, 'a', random)
    expect([again.sealed?.map.bytes.filter((mask) => mask !== 0).length, again.top.map.bytes.filter((mask) => mask !== 0).length]).toEqual([2, 2])
    await again.close()
  })

  it('that nobody has open are sealed, rebased, folded, reassigned and reverted on their files', async () => {
    await createWorkingCopy(working, 'a', BASE, random)
    const copy = await LockedCopy.open(working, 'a', random)
    mark(copy, 1)
    await copy.close()
    const overlays = (): number => readdirSync(join(working, 'a')).filter((name) => name.startsWith('overlay-')).length

    const sealable = unmountedSealable(working, 'a', random)
    expect(await sealable.seal(signal)).toMatchObject({ base: BASE, size: SIZE, freezeMs: 0 })
    await expect(LockedCopy.open(working, 'a', random)).rejects.toMatchObject({ code: 'ERR_CONFLICT' })
    await sealable.unseal(signal)
    expect(overlays()).toBe(1)
    expect(await listWorkingCopies(working)).toMatchObject([{ version: 3, dirtyBytes: PAGE_BYTES }])

    await sealable.seal(signal)
    await sealable.rebase({ ...BASE, version: 4 }, signal)
    expect(overlays()).toBe(1)
    expect(await listWorkingCopies(working)).toMatchObject([{ version: 4, dirtyBytes: 0 }])

    await sealable.reassign({ ...BASE, blob: 'ponmlkjihgfedcba', version: 0 }, signal)
    expect(await listWorkingCopies(working)).toMatchObject([{ blob: 'ponmlkjihgfedcba', version: 0 }])

    const dirty = await LockedCopy.open(working, 'a', random)
    mark(dirty, 5)
    await dirty.change({ holder: 'a mount' })
    await dirty.close()
    await sealable.revert(signal)
    expect(overlays()).toBe(1)
    expect(await listWorkingCopies(working)).toMatchObject([{ dirtyBytes: 0 }])
    expect((await readWorkingCopy(working, 'a')).holder).toBeUndefined() // whose kernel may have its pages
  })

  it('leave nothing behind when they are made or removed by a process that dies', async () => {
    const state = await createWorkingCopy(working, 'a', BASE, random)
    mkdirSync(join(working, 'a', 'overlay-left'))
    mkdirSync(join(working, '.new.999999999.1.00'))
    mkdirSync(join(working, `.gone.${process.pid}.${await startTimeOf(process.pid) ?? ''}.00`)) // that one is at work
    mkdirSync(join(working, `.gone.${process.pid}.${await startTimeOf(process.pid) ?? ''}.00.${BEFORE}`)) // and its namesake is not
    await sweepWorkingFolder(working)
    expect(readdirSync(working).sort()).toEqual([expect.stringMatching(/^\.gone\.\d+\.\d+\.00$/), 'a'])
    await (await LockedCopy.open(working, 'a', random)).close()
    expect(readdirSync(join(working, 'a')).sort()).toEqual([state.top, 'state.json'])
  })
})

describe('a process lock', () => {
  const TOKEN = 'ab'.repeat(8)
  const leave = (...names: string[]): void => { for (const name of names) writeFileSync(join(working, name), '') }

  it('is taken over from a process that is dead, or is another one by now', async () => {
    leave(`lock.999999999.5.${TOKEN}`, `lock.${process.ppid}.5.${TOKEN}`) // the second is alive, and started at another time
    const lock = await acquireLock(working, TOKEN)
    const { startTime, boot } = await ownProcessId()
    expect(readdirSync(working)).toEqual([`lock.${process.pid}.${startTime}.${TOKEN}${boot}`])
    expect(await lockHolder(working)).toBe(process.pid)
    await lock.release()
    expect(readdirSync(working)).toEqual([])
  })

  it('is not taken from a living one, nor from one of an older program, which did not name its boot', async () => {
    const { startTime = '', boot = '' } = await processId(process.ppid) ?? {}
    for (const token of [TOKEN, `${TOKEN}${boot}`]) {
      leave(`lock.${process.ppid}.${startTime}.${token}`)
      await expect(acquireLock(working, TOKEN)).rejects.toMatchObject({ code: 'ERR_CONFLICT', fields: { pid: process.ppid } })
      rmSync(join(working, `lock.${process.ppid}.${startTime}.${token}`))
    }
    const server = process.ppid.toString(16).padStart(8, '0') + Number(startTime).toString(16).padStart(12, '0')
    for (const token of [TOKEN, `${TOKEN}${boot}`]) {
      leave(`lock.4000007.5.${server}${token}`) // the keeper is gone, its server is not
      expect(await lockHolder(working)).toBe(4_000_007)
      rmSync(join(working, `lock.4000007.5.${server}${token}`))
    }
  })

  it('of an earlier boot is nobody\'s, whoever has its pid and start time now', async () => {
    const { startTime = '' } = await processId(process.ppid) ?? {}
    const server = process.ppid.toString(16).padStart(8, '0') + Number(startTime).toString(16).padStart(12, '0')
    leave(`lock.${process.ppid}.${startTime}.${TOKEN}${BEFORE}`, `lock.4000007.5.${server}${TOKEN}${BEFORE}`)
    expect(await lockHolder(working)).toBeUndefined()
    expect(readdirSync(working)).toEqual([])
    expect(await processIsAlive({ pid: process.ppid, startTime })).toBe(true)
    expect(await processIsAlive({ pid: process.ppid, startTime, boot: BEFORE })).toBe(false)
  })

  it('never has two holders, however many try', async () => {
    const attempts = await Promise.allSettled(Array.from({ length: 20 }, async (_, number) => await acquireLock(working, number.toString(16).padStart(16, '0'))))
    expect(attempts.filter(({ status }) => status === 'fulfilled').length).toBeLessThanOrEqual(1)
    await Promise.all(attempts.map(async (attempt) => { if (attempt.status === 'fulfilled') await attempt.value.release() }))
    await (await acquireLock(working, TOKEN)).release()
  })
})
