/**
 * Real machines on the fabric: Debian boots in QEMU from a working copy on a peer that has never seen the image, and fetches what
 * it touches. What the machine wrote is committed as an image of its own, from which another peer's machine boots; that one is
 * committed while it runs, and what came of it is what a power cut would have left: a file system that its journal mends. It does not
 * notice that the FUSE server below its disk is killed, and the daemon.
 *
 * Once with QEMU's `cache=writeback`, where the host's page cache lies between the machine and the mount, and once with
 * `cache=none`: O_DIRECT.
 */
import { randomUUID } from 'node:crypto'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { CommitResult, ImportResult, Status, WorkingCopyRow } from '../../src/node/control-api.ts'
import type { FabricPeer } from '../../testnet/fabric.ts'
import { DEBIAN_GUEST, describeWith } from '../harness/capabilities.ts'
import { eventually } from '../harness/eventually.ts'
import { type Ended, runToEnd } from '../harness/line-process.ts'
import { LiveFabric, succeed } from '../harness/live-fabric.ts'
import { entryOf, killNow, serverOf } from '../harness/mounts.ts'
import { bootGuest, type DebianImage, debianImage, type Guest, type GuestOptions, probeAccel, startGuest } from '../harness/qemu.ts'
import { sha256Of } from '../harness/random-image.ts'

/** A boot takes 12 to 40 s under emulation, by how busy the machine is. */
const GUEST_DEADLINE_MS = 240_000
/** A whole check of 2 GiB reads some MB. */
const COMMAND_DEADLINE_MS = 120_000
/** A boot touches some 60 MB in chunks of 256 KiB, a fifth of what is not zero; an eager mount would fetch all of it. */
const FETCHED_SHARE_MAX = 0.25
/** A boot writes 2 MB, in some twenty chunks. */
const COMMITTED_SHARE_MAX = 0.1
/** Each is a write and a sync in the machine: enough of them before and after a commit to see that it goes on. */
const BEATS = 20

const SHELL_PROMPT = 'root@p2pvm-guest:~# '
// One growing file, so that any cut of it is a prefix. The quotes keep the echo of this line from looking like a beat.
const BEAT = 'beat=0; while :; do beat=$((beat + 1)); echo $beat >>/root/beats; sync; echo "BEAT" $beat; done &\n'

describeWith([...DEBIAN_GUEST, 'fuse'], 'a Debian machine on the fabric', () => {
  let debian: DebianImage
  let live: LiveFabric
  let imageSum: string
  let original: ImportResult
  const mountpoints = new Map<FabricPeer, string>()

  beforeAll(async () => {
    debian = await debianImage()
    imageSum = await sha256Of(debian.image)
    live = await LiveFabric.start({ storage: 4, compute: 3 })
    const startedMs = performance.now()
    original = await succeed<ImportResult>(live.storage(0), 'import', debian.image, '--name', 'debian-12')
    say(`imported ${mib(original.size)}, ${mib(nonZeroBytes())} of it not zero, in ${seconds(performance.now() - startedMs)}, under ${await probeAccel()}`)
    for (const peer of live.fabric.compute) mountpoints.set(peer, await live.mount(peer, `mnt-${peer.name}`))
  })

  afterAll(async () => { await live?.close() })

  for (const [index, cache] of (['writeback', 'none'] as const).entries()) {
    describe(`with cache=${cache}`, () => {
      const note = `written-under-${cache}`
      const image = `debian-${cache}`

      it('boots on a peer that has never seen the image, fetching what it touches, and is committed as an image', async ({ signal }) => {
        const peer = live.compute(index)
        expect(await cacheOf(peer)).toMatchObject({ chunks: 0, bytes: 0 })
        expect(await receivedBytes(peer)).toBe(0)
        const { path, name } = await workingCopy(peer, `first-${cache}`, `debian-12@${original.version}`)

        const { bootMs, exitCode } = await bootGuest({ ...machine(path, cache, signal), append: [`p2pvm.write=${note}`] })
        expect(exitCode).toBe(0)
        const [fetched, received] = [(await cacheOf(peer))!.bytes, await receivedBytes(peer)]
        const { dirtyBytes } = await rowOf(peer, name)
        const commit = await succeed<CommitResult>(peer, 'commit', path, '--as', image)

        say(`cache=${cache}: booted in ${seconds(bootMs)} on a peer that fetched ${mib(fetched)}, ${percent(fetched / nonZeroBytes())} of what is not zero, as ${mib(received)}; ` +
          `wrote ${mib(dirtyBytes)}, committed ${mib(commit.bytes)} in ${commit.chunks} chunks, writers held for ${commit.freezeMs.toFixed(1)} ms`)
        expect(received).toBeGreaterThan(0)
        expect(fetched).toBeGreaterThan(received)
        expect(fetched).toBeLessThan(FETCHED_SHARE_MAX * nonZeroBytes())
        expect(dirtyBytes).toBeGreaterThan(0)
        expect(commit).toMatchObject({ name: image, path })
        expect(commit.blob).not.toBe(original.blob)
        expect(commit.bytes).toBeGreaterThan(0)
        expect(commit.bytes).toBeLessThan(COMMITTED_SHARE_MAX * nonZeroBytes())
        expect(await rowOf(peer, name)).toMatchObject({ blob: commit.blob, version: commit.version, dirtyBytes: 0, path })

        await exported(image, async (file) => {
          await isWhole(file)
          expect(await fileInImage(file, '/root/p2pvm-note')).toBe(`${note}\n`)
        })
        expect(await live.exportedSum(live.storage(0), `debian-12@${original.version}`)).toBe(imageSum)
      })

      it('boots on another peer from what was committed, is committed while it boots and while it runs, and outlives FUSE server and daemon', async ({ signal }) => {
        const peer = live.compute(2)
        const { path, name } = await workingCopy(peer, `second-${cache}`, image)
        const guest = await startGuest({ ...machine(path, cache, signal), append: ['p2pvm.print', 'p2pvm.hold'] })
        const cuts: Array<{ when: string, commit: CommitResult, beats: number }> = []
        try {
          await observed(guest, 'it has mounted its disk', async () => (await rowOf(peer, name)).dirtyBytes > 0 || undefined)
          cuts.push({ when: 'while it boots', commit: await succeed<CommitResult>(peer, 'commit', path), beats: 0 })
          const bootMs = await guest.booted
          expect(guest.console()).toContain(`P2PVM-NOTE: ${note}\n`)

          await observed(guest, 'its shell is there', async () => guest.console().includes(SHELL_PROMPT) || undefined)
          guest.type(BEAT)
          const before = await beatBeyond(guest, BEATS)
          cuts.push({ when: 'while it runs', commit: await succeed<CommitResult>(peer, 'commit', path), beats: before })
          const after = lastBeat(guest)
          await beatBeyond(guest, after + BEATS)

          const entry = await entryOf(peer, mountpoints.get(peer)!)
          const server = await serverOf(entry)
          const startedMs = performance.now()
          killNow(server)
          await observed(guest, 'another FUSE server serves it', async () => (await serverOf(entry)).pid !== server.pid || undefined)
          await beatBeyond(guest, lastBeat(guest) + 1)
          const pausedMs = performance.now() - startedMs
          await peer.kill('SIGKILL')
          await peer.start()
          const last = await beatBeyond(guest, lastBeat(guest) + BEATS)
          expect(guest.console()).not.toMatch(/I\/O error|EXT4-fs (?:error|warning)|read-only/i)
          say(`cache=${cache}: its FUSE server was killed, and its machine wrote on after ${pausedMs.toFixed(0)} ms at most; then its daemon`)
          say(`cache=${cache}: another peer's machine booted in ${seconds(bootMs)} and printed the note; ${after - before} beats during a commit, ${last} in all`)
          guest.type('systemctl poweroff\n')
          expect(await guest.ended).toMatchObject({ exitCode: 0 })
        } finally {
          await guest.kill()
        }

        await isWhole(path)
        for (const { when, commit, beats } of cuts) {
          await exported(`${commit.blob}@${commit.version}`, async (file) => {
            const kept = await mended(file, beats)
            expect(await fileInImage(file, '/root/p2pvm-note')).toBe(`${note}\n`)
            say(`cache=${cache}: committed ${mib(commit.bytes)} ${when}, writers held for ${commit.freezeMs.toFixed(1)} ms; its journal mends it` +
              (beats === 0 ? '' : `, ${kept} beats are in it, ${beats} were synced before`))
          })
        }
        expect(await live.exportedSum(live.storage(0), `debian-12@${original.version}`)).toBe(imageSum)
      })
    })
  }

  function machine (disk: string, cache: GuestOptions['cache'], signal: AbortSignal): GuestOptions {
    return { disk, cache, kernel: debian.kernel, initrd: debian.initrd, timeoutMs: GUEST_DEADLINE_MS, signal }
  }

  /** In whole chunks: what an eager mount would fetch. */
  function nonZeroBytes (): number {
    return original.chunks * original.chunkSize
  }

  async function workingCopy (peer: FabricPeer, name: string, ref: string): Promise<{ path: string, name: string }> {
    const { path } = await succeed<WorkingCopyRow>(peer, 'working-copy', 'create', name, ref)
    expect(path).toBe(join(mountpoints.get(peer)!, 'working', name))
    return { path: path!, name }
  }

  async function exported (ref: string, use: (path: string) => Promise<void>): Promise<void> {
    const path = join(live.folder, `${randomUUID()}.img`)
    try {
      await succeed(live.storage(0), 'export', ref, path)
      await use(path)
    } finally {
      await rm(path, { force: true })
    }
  }
})

async function rowOf (peer: FabricPeer, name: string): Promise<WorkingCopyRow> {
  const { workingCopies } = await succeed<{ workingCopies: WorkingCopyRow[] }>(peer, 'working-copy', 'ls')
  return workingCopies.find((row) => row.name === name)!
}

/** As they travelled, packed. */
async function receivedBytes (peer: FabricPeer): Promise<number> {
  return (await succeed<Status>(peer, 'status')).counters['chunk_bytes_received_total'] ?? 0
}

async function cacheOf (peer: FabricPeer): Promise<Status['cache']> {
  return (await succeed<Status>(peer, 'status')).cache
}

/** Waits for something that the running machine does. Throws at once when the machine has ended. */
async function observed<T> (guest: Guest, what: string, ask: () => Promise<T | undefined>): Promise<T> {
  const ended = guest.ended.then(() => { throw new Error(`the machine powered off before ${what}`) })
  const { answer } = await Promise.race([eventually(what, GUEST_DEADLINE_MS, ask), ended])
  return answer
}

async function beatBeyond (guest: Guest, beat: number): Promise<number> {
  return await observed(guest, `beat ${beat}`, async () => {
    const last = lastBeat(guest)
    return last > beat ? last : undefined
  })
}

/** What the machine has written and synced, as far as it has said so. */
function lastBeat (guest: Guest): number {
  return Number(guest.console().match(/BEAT (\d+)\n/g)?.at(-1)?.split(' ')[1] ?? 0)
}

/** A file system that was left in order: nothing to mend in it. */
async function isWhole (path: string): Promise<void> {
  expect(await runToEnd('e2fsck', ['-fn', path], COMMAND_DEADLINE_MS)).toMatchObject({ code: 0 })
}

/** A file system that was cut off: its journal is all that it takes to mend it, and keeps every beat that was synced. Returns how many. */
async function mended (path: string, beatsMin: number): Promise<number> {
  const { code, stdout } = await runToEnd('e2fsck', ['-p', path], COMMAND_DEADLINE_MS)
  expect(stdout).toContain('recovering journal')
  expect(code, stdout).toBeOneOf([0, 1])
  await isWhole(path)
  if (beatsMin === 0) return 0
  const beats = (await fileInImage(path, '/root/beats')).trimEnd().split('\n')
  expect(beats).toEqual(beats.map((_, index) => String(index + 1)))
  expect(beats.length).toBeGreaterThanOrEqual(beatsMin)
  return beats.length
}

async function fileInImage (image: string, path: string): Promise<string> {
  const ended: Ended = await runToEnd('debugfs', ['-R', `cat ${path}`, image], COMMAND_DEADLINE_MS)
  expect(ended).toMatchObject({ code: 0 })
  return ended.stdout
}

function say (text: string): void {
  console.log(text)
}

function mib (bytes: number): string {
  return `${(bytes / 1024 / 1024).toFixed(1)} MiB`
}

function seconds (ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`
}

function percent (share: number): string {
  return `${(share * 100).toFixed(1)} %`
}
