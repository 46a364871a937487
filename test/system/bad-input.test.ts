/**
 * What users get wrong, and what the world does to them: each ends with its exit code and one document that says what it was,
 * and leaves the fabric as good as before.
 */
import { copyFile, mkdir, readdir, truncate } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect, it } from 'vitest'
import type { CommitResult, ImportResult, Status, WorkingCopyRow } from '../../src/node/control-api.ts'
import type { FabricPeer } from '../../testnet/fabric.ts'
import { describeWith } from '../harness/capabilities.ts'
import { eventually } from '../harness/eventually.ts'
import { type Ended, runToEnd } from '../harness/line-process.ts'
import { LiveFabric, succeed, withClient } from '../harness/live-fabric.ts'
import { sha256OfMounted, writeRunsMounted } from '../harness/mounted-file.ts'
import { makeImage, randomRuns, sha256Of } from '../harness/random-image.ts'
import { SmallDisk } from '../harness/small-disk.ts'
import { Chance, testSeed } from '../harness/seed.ts'

const PROGRAM = fileURLToPath(new URL('../../bin/p2pvm', import.meta.url))
const MIB = 1024 * 1024
const IMAGE_BYTES = 8 * MIB
const DEADLINE_MS = 60_000
/** What a store leaves free on its disk (FREE_FLOOR_BYTES of peer.ts). */
const FLOOR_BYTES = 64 * MIB
/** Clones, each of some hundred bytes: more than a page has room for. */
const TWINS_MAX = 40
/** Twice what a first start waits for a bootstrap address. */
const START_DEADLINE_MS = 60_000
/** A port that nobody listens on, and a peer id that nobody has. */
const NOBODY = '/ip4/127.0.0.1/tcp/1/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp'

const chance = new Chance(testSeed())

interface Answer {
  readonly code: number | null
  readonly json: unknown
}

describeWith(['root', 'fuse'], `bad input (P2PVM_TEST_SEED=${chance.seed})`, () => {
  let live: LiveFabric
  let peer: FabricPeer
  let mountpoint: string
  let image: string
  let original: ImportResult

  beforeAll(async () => {
    live = await LiveFabric.start({ storage: 2, compute: 1 })
    peer = live.compute(0)
    mountpoint = await live.mount(peer, 'mnt')
    image = await newImage('original.img', IMAGE_BYTES)
    original = await succeed<ImportResult>(peer, 'import', image, '--name', 'original')
  })

  afterAll(async () => { await live?.close() })

  const unknownRefs = {
    'an unknown image': () => ['nobody', 'nobody'],
    'an unknown version of an image': () => ['original@99', '99'],
    'an unknown blob': () => ['aaaaaaaaaaaaaaaa', 'aaaaaaaaaaaaaaaa'],
    'an unknown version of a blob': () => [`${original.blob}@99`, '99']
  } satisfies Record<string, () => [ref: string, named: string]>
  for (const [what, refOf] of Object.entries(unknownRefs)) {
    it(`${what} is not found, whatever is asked of it`, async () => {
      const [ref, named] = refOf()
      const target = join(live.folder, 'never.img')
      for (const args of [['export', ref, target], ['info', ref], ['verify', ref], ['working-copy', 'create', 'never', ref], ['clone', ref]]) {
        refused(await peer.cli(...args), 10, 'ERR_NOT_FOUND', named)
      }
      expect(await readdir(live.folder)).not.toContain('never.img')
    })
  }

  it('an unknown working copy, and a path that is no working copy, are not found', async () => {
    refused(await peer.cli('working-copy', 'rm', 'nobody'), 10, 'ERR_NOT_FOUND', 'nobody')
    refused(await peer.cli('working-copy', 'revert', 'nobody'), 10, 'ERR_NOT_FOUND', 'nobody')
    refused(await peer.cli('commit', join(mountpoint, 'working', 'nobody')), 10, 'ERR_NOT_FOUND', 'nobody')
    refused(await peer.cli('commit', image), 10, 'ERR_NOT_FOUND', image)
  })

  for (const size of ['3000', '2KiB', '8MiB', '96KiB', '0', '-4096', 'many']) {
    it(`a chunk size of ${size} is refused`, async () => {
      refused(await peer.cli('import', image, '--name', 'odd', `--chunk-size=${size}`), 2, 'ERR_USAGE', size.startsWith('-') || size === 'many' ? size : 'chunk size')
    })
  }

  for (const name of ['', 'Upper', 'with space', '-dash', 'a/b', 'caf\u00e9', 'bell\u0007', 'x'.repeat(129)]) {
    it(`the name ${JSON.stringify(name).slice(0, 20)} is refused, for an image and for a working copy`, async () => {
      refused(await peer.cli('import', image, `--name=${name}`), 2, 'ERR_USAGE', 'name')
      refused(await peer.cli('clone', 'original', `--name=${name}`), 2, 'ERR_USAGE', 'name')
      // One that begins with a dash is taken for an option.
      refused(await peer.cli('working-copy', 'create', name, 'original'), 2, 'ERR_USAGE', /name|unknown option/)
    })
  }

  it('a name that is taken is a conflict, for an import, a clone, a commit and a working copy', async () => {
    await workingCopy('taken')
    refused(await peer.cli('import', image, '--name', 'original'), 11, 'ERR_CONFLICT', 'original')
    refused(await peer.cli('clone', 'original', '--name', 'original'), 11, 'ERR_CONFLICT', 'original')
    refused(await peer.cli('commit', join(mountpoint, 'working', 'taken'), '--as', 'original'), 11, 'ERR_CONFLICT', 'original')
    refused(await peer.cli('working-copy', 'create', 'taken', 'original'), 11, 'ERR_CONFLICT', 'taken')
    expect(await latest('original')).toBe(original.version)
  })

  it('a commit to a blob that has moved on is a conflict, loses nothing, and is told to clone', async () => {
    const [first, second] = [await workingCopy('first'), await workingCopy('second')]
    for (const path of [first, second]) await writeRunsMounted(path, randomRuns(chance.fork(path), { count: 2, bytesEach: 100_000, within: IMAGE_BYTES }))
    const { version } = await succeed<CommitResult>(peer, 'commit', first)
    const sum = await sha256OfMounted(second)

    refused(await peer.cli('commit', second), 11, 'ERR_CONFLICT', /clone/)
    expect(await latest('original')).toBe(version)
    expect(await sha256OfMounted(second)).toBe(sum)
    // And the advice is good.
    await succeed(peer, 'clone', second, '--name', 'moved-on')
    await succeed(peer, 'commit', second)
    expect(await exportedSum('moved-on')).toBe(sum)
  })

  it('an immutable version cannot be committed or written to', async () => {
    const path = join(mountpoint, 'by-name', 'original', String(original.version))
    expect((await peer.cli('commit', path)).code).toBeOneOf([10, 12])
    const dd = await runToEnd('dd', ['if=/dev/zero', `of=${path}`, 'bs=4096', 'count=1', 'conv=notrunc'], DEADLINE_MS)
    expect(dd).toMatchObject({ code: 1, stderr: expect.stringContaining('Read-only file system') as string })
  })

  it('an image that shrinks while it is imported is refused, and nothing is published', async () => {
    const shrinking = await newImage('shrinking.img', 512 * MIB)
    const before = await storedBytes()
    const importing = peer.cli('import', shrinking, '--name', 'shrinking')
    await eventually('the import has begun to store chunks', DEADLINE_MS, async () => await storedBytes() > before || undefined)
    await truncate(shrinking, 0)
    refused(await importing, 1, 'ERR_SOURCE_CHANGED', shrinking)
    refused(await peer.cli('info', 'shrinking'), 10, 'ERR_NOT_FOUND', 'shrinking')
    const { images } = await succeed<{ images: Array<{ name: string }> }>(peer, 'ls')
    expect(images.map(({ name }) => name)).not.toContain('shrinking')
  })

  it('a file that is not there, or a folder, cannot be imported', async () => {
    refused(await peer.cli('import', join(live.folder, 'nowhere.img'), '--name', 'nowhere'), 10, 'ERR_NOT_FOUND', 'nowhere.img')
    refused(await peer.cli('import', live.folder, '--name', 'folder'), 2, 'ERR_USAGE', live.folder)
  })

  it('a disk that is full while an export writes to it ends the export, and leaves no half of it', async () => {
    const disk = await SmallDisk.mount(join(live.folder, 'small'), 4 * MIB)
    try {
      refused(await peer.cli('export', 'original@1', join(disk.path, 'exported.img')), 1, 'ERR_DISK_FULL', 'exported.img')
      expect(await readdir(disk.path)).toEqual([])
    } finally {
      await disk[Symbol.asyncDispose]()
    }
  })

  it('a control socket that is not there, or that nobody serves, is unavailable, and the message says what to do', async () => {
    for (const socket of [join(live.folder, 'no.sock'), image]) {
      for (const args of [['ls'], ['import', image, '--name', 'x'], ['mount', mountpoint]]) {
        const answer = await p2pvm(...args, '--json', '--control', socket)
        if (args[0] !== 'mount') refused(answer, 14, 'ERR_UNAVAILABLE', /p2pvm daemon/)
      }
      refused(await p2pvm('status', '--json', '--control', socket), 14, 'ERR_UNAVAILABLE', socket)
    }
  })

  it('a mountpoint that is busy is a conflict, one that is missing is not found, a file is none', async () => {
    refused(await peer.cli('mount', mountpoint, '--detach'), 11, 'ERR_CONFLICT', mountpoint)
    refused(await peer.cli('mount', join(live.folder, 'nowhere'), '--detach'), 10, 'ERR_NOT_FOUND', 'nowhere')
    refused(await peer.cli('mount', image, '--detach'), 2, 'ERR_USAGE', image)
    refused(await peer.cli('umount', live.folder), 10, 'ERR_NOT_FOUND', live.folder)
    // The one that was there has not noticed.
    expect(await sha256OfMounted(join(mountpoint, 'by-name', 'original', String(original.version)))).toBe(await sha256Of(image))
  })

  it('unknown commands and options are usage errors, also as a document', async () => {
    for (const args of [['imprt'], ['ls', '--frobnicate'], ['import'], ['export', 'original'], []]) {
      refused(await p2pvm(...args, '--json'), 2, 'ERR_USAGE', /./)
    }
  })

  it('a bootstrap address that does not answer ends a first start, which names it', async () => {
    const data = join(live.folder, 'lonely')
    const answer = await p2pvm('daemon', '--json', '--data', data, '--role', 'storage', '--listen', '/ip4/127.0.0.1/tcp/0',
      '--control', join(live.folder, 'lonely.sock'), '--bootstrap', NOBODY)
    refused(answer, 14, 'ERR_UNAVAILABLE', NOBODY)
  })

  it('a second daemon on a data folder in use is refused, and names the first', async () => {
    const answer = await p2pvm('daemon', '--json', '--data', peer.data, '--role', 'compute', '--listen', '/ip4/127.0.0.1/tcp/0',
      '--control', join(live.folder, 'second.sock'), '--bootstrap', NOBODY)
    refused(answer, 11, 'ERR_CONFLICT', String((await succeed<Status>(peer, 'status')).pid))
  })

  it('a data folder that lacks a file of a log is refused, which names it', async () => {
    const data = join(live.folder, 'lacking')
    await mkdir(data)
    for (const file of ['identity.key', 'fabric.cbor', 'seen.mdb', 'seen.mdb.log-0']) await copyFile(join(peer.data, file), join(data, file))
    const answer = await p2pvm('daemon', '--json', '--data', data, '--role', 'compute', '--listen', '/ip4/127.0.0.1/tcp/0',
      '--control', join(live.folder, 'lacking.sock'), '--bootstrap', NOBODY)
    refused(answer, 13, 'ERR_CORRUPT', join(data, 'seen.mdb.log-1'))
  })

  async function newImage (name: string, bytes: number): Promise<string> {
    const path = join(live.folder, name)
    await makeImage(path, bytes, randomRuns(chance.fork(name), { count: 1, bytesEach: bytes - 4096, within: bytes }))
    return path
  }

  async function workingCopy (name: string): Promise<string> {
    const { path } = await succeed<WorkingCopyRow>(peer, 'working-copy', 'create', name, `original@${await latest('original')}`)
    return path!
  }

  async function latest (name: string): Promise<number> {
    return (await succeed<{ version: number }>(peer, 'info', name)).version
  }

  async function exportedSum (ref: string): Promise<string> {
    return (await succeed<{ sha256: string }>(peer, 'export', ref, join(live.folder, 'exported.img'))).sha256
  }

  async function storedBytes (): Promise<number> {
    const { stored } = await withClient(live.storage(0), async (client) => await client.status())
    return stored?.bytes ?? 0
  }
})

describeWith(['root'], 'a fabric whose disks are full', () => {
  let live: LiveFabric
  const disks: SmallDisk[] = []

  beforeAll(async () => {
    live = await LiveFabric.start({ storage: 3, compute: 1 })
    // A disk of its own under each storage peer, with what the peer has by now.
    for (const peer of live.fabric.storage) {
      await peer.kill('SIGTERM')
      disks.push(await SmallDisk.mount(peer.data, FLOOR_BYTES + 48 * MIB))
      await peer.restart()
    }
    await live.whole()
  })

  afterAll(async () => {
    await live?.fabric.stop()
    for (const disk of disks) await disk[Symbol.asyncDispose]()
    await live?.close()
  })

  it('refuses an image that does not fit, keeps its daemons, and still has what it had', async () => {
    const peer = live.compute(0)
    const small = await newImage('small', 3 * MIB)
    await succeed(peer, 'import', small, '--name', 'small')
    refused(await peer.cli('import', await newImage('large', 200 * MIB), '--name', 'large'), 1, 'ERR_DISK_FULL', 'free')
    await asBefore(small)
    refused(await peer.cli('info', 'large'), 10, 'ERR_NOT_FOUND', 'large')

    // Somebody else has taken what our stores leave free, too: when the last page of a log is full, not even a version number can be written down.
    for (const disk of disks) await disk.fill()
    let answer = await peer.cli('clone', 'small', '--name', 'twin')
    for (let twins = 1; answer.code === 0 && twins < TWINS_MAX; twins++) answer = await peer.cli('clone', 'small', '--name', `twin-${twins}`)
    refused(answer, 1, 'ERR_DISK_FULL', /./)
    refused(await peer.cli('import', await newImage('other', 3 * MIB), '--name', 'other'), 1, 'ERR_DISK_FULL', /./)
    await asBefore(small)

    for (const disk of disks) await disk.empty()
    await succeed(peer, 'clone', 'small', '--name', 'other-twin')
    expect(await live.exportedSum(peer, 'other-twin')).toBe(await sha256Of(small))
  })

  async function newImage (name: string, bytes: number): Promise<string> {
    const path = join(live.folder, `${name}.img`)
    await makeImage(path, 256 * MIB, randomRuns(chance.fork(name), { count: 1, bytesEach: bytes, within: 256 * MIB }))
    return path
  }

  async function asBefore (small: string): Promise<void> {
    for (const storage of live.fabric.storage) expect((await succeed<Status>(storage, 'status')).pid).toBe(storage.pid)
    expect(await live.exportedSum(live.compute(0), 'small')).toBe(await sha256Of(small))
  }
})

describeWith(['root'], 'a fabric that comes back one by one', () => {
  let live: LiveFabric

  beforeAll(async () => { live = await LiveFabric.start({ storage: 3, compute: 1 }) })
  afterAll(async () => { await live?.close() })

  it('a peer that knows its fabric starts although nobody answers, and finds the others when they come', async () => {
    const [first, ...others] = [live.storage(1), live.storage(0), live.storage(2), live.compute(0)]
    for (const peer of [first, ...others]) await peer.kill('SIGTERM')
    await first.restart()
    expect((await succeed<Status>(first, 'status')).peerId).toBe(first.peerId)
    for (const peer of others) await peer.restart()
    await live.whole()
    const image = join(live.folder, 'after.img')
    await makeImage(image, MIB, randomRuns(chance.fork('after'), { count: 1, bytesEach: MIB / 2, within: MIB }))
    await succeed(live.compute(0), 'import', image, '--name', 'after')
  })
})

/** The exit code, and the one document on stdout, whose message holds or matches `says`. */
function refused (answer: Answer, code: number, errorCode: string, says: string | RegExp): void {
  const message: unknown = typeof says === 'string' ? expect.stringContaining(says) : expect.stringMatching(says)
  expect(answer).toMatchObject({ code, json: { error: { code: errorCode, message } } })
}

/** The program itself, without a daemon's address. */
async function p2pvm (...args: string[]): Promise<Answer> {
  const { code, stdout }: Ended = await runToEnd(PROGRAM, args, START_DEADLINE_MS)
  return { code, json: JSON.parse(stdout) as unknown }
}
