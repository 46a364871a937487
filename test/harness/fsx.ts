/**
 * Random operations on a mounted working copy, each compared with a file in memory, in the manner of Apple's fsx: reads, writes,
 * O_DIRECT, mmap, growth, holes, fsync, and what only a working copy has: commits, clones, new mounts, a killed server.
 *
 * Operations, bytes and events follow from the seed.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import { LineProcess } from './line-process.ts'
import { BLOB, type MountProcess, type MountWorld } from './mount-process.ts'
import type { VersionRef } from '../../src/mirror/source.ts'
import { bytesOf } from './random-image.ts'
import type { Chance } from './seed.ts'

export interface FsxInit {
  /** What the files of this driver cannot do. */
  readonly lacks: readonly OperationName[]
}

export type OperationName = 'read' | 'read direct' | 'read mapped' | 'write' | 'write direct' | 'write mapped' | 'msync' | 'truncate' | 'punch' | 'zero' | 'fsync' | 'reopen'
type Operation = readonly [name: OperationName | 'close', offset: number, size: number, at: number]

const KIB = 1024
const SECTOR_BYTES = 512
const PAGE_BYTES = 4096
const HOLE_BYTES = 64 * KIB
const FSX_SIZE = 2 * KIB * KIB + 1234
const SIZE_MAX = 4 * KIB * KIB
const NOISE_BYTES = 1024 * KIB
const WORKING_COPY = 'vm1'
/** Sent at once; each is answered. */
const BATCH = 40
const ANSWER_DEADLINE_MS = 60_000
/** How often each is drawn, compared with the others. */
const WEIGHTS: ReadonlyArray<readonly [OperationName, number]> = [
  ['read', 6], ['read direct', 4], ['read mapped', 4], ['write', 6], ['write direct', 5], ['write mapped', 4],
  ['msync', 1], ['truncate', 1], ['punch', 2], ['zero', 2], ['fsync', 1], ['reopen', 1]
]
/** Between the batches; most are followed by none. */
const EVENTS = ['commit', 'commit', 'commit', 'failed commit', 'clone', 'remount', 'kill', 'check', ...Array.from({ length: 24 }, () => 'nothing' as const)] as const

/** Random bytes, holes of whole chunks among them. */
export function fsxImage (chance: Chance): Buffer {
  const image = bytesOf({ offset: 0, size: FSX_SIZE, key: `${chance.seed}/image` })
  for (let at = 0; at < FSX_SIZE; at += HOLE_BYTES) if (chance.below(4) === 0) image.fill(0, at, Math.min(FSX_SIZE, at + HOLE_BYTES))
  return image
}

export interface FsxResult {
  readonly operations: number
  readonly commits: number
  readonly mounts: number
}

export class Fsx {
  readonly #world: MountWorld
  readonly #chance: Chance
  readonly #noise: Buffer
  readonly #names: OperationName[]
  readonly #model: Buffer
  #size: number
  #mount: MountProcess
  readonly #process: LineProcess
  #number = 0
  #blob = BLOB
  /** What the version holds that the working copy lies on. */
  #committed: Buffer
  #commits = 0
  #mounts = 1

  /** `image` is what the working copy `vm1` of the mounted world holds. */
  constructor (world: MountWorld, mount: MountProcess, image: Buffer, chance: Chance, { lacks }: FsxInit) {
    this.#world = world
    this.#mount = mount
    this.#chance = chance
    this.#committed = Buffer.from(image)
    this.#model = Buffer.alloc(SIZE_MAX)
    image.copy(this.#model)
    this.#size = image.length
    this.#noise = bytesOf({ offset: 0, size: NOISE_BYTES, key: `${chance.seed}/noise` })
    writeFileSync(join(world.root, 'noise'), this.#noise)
    this.#names = WEIGHTS.filter(([name]) => !lacks.includes(name)).flatMap(([name, weight]) => Array.from({ length: weight }, () => name))
    this.#process = LineProcess.python('file-operations.py', world.path('working', WORKING_COPY), join(world.root, 'noise'))
  }

  /** Throws at the first difference, saying what it came after. */
  async run (operations: number): Promise<FsxResult> {
    await this.#perform([['reopen', 0, 0, 0]])
    while (this.#number < operations) {
      await this.#perform(this.#draws(1 + this.#chance.below(BATCH)))
      await this.#happen(this.#chance.pick(EVENTS))
    }
    await this.#happen('commit')
    await this.#happen('remount')
    await this.#happen('check')
    return { operations: this.#number, commits: this.#commits, mounts: this.#mounts }
  }

  /** To be called in any case. */
  async end (): Promise<void> {
    await this.#process.kill()
  }

  /** Each fits the file that the ones before it leave. */
  * #draws (count: number): Generator<Operation> {
    for (let drawn = 0; drawn < count; drawn++) yield this.#draw()
  }

  #draw (): Operation {
    const name = this.#chance.pick(this.#names)
    const chance = this.#chance
    if (name === 'truncate') return [name, 0, Math.min(SIZE_MAX, this.#size + chance.below(20 * KIB)), 0]
    if (name === 'fsync' || name === 'msync' || name === 'reopen') return [name, 0, 0, 0]
    const discards = name === 'punch' || name === 'zero'
    // Small ones as often as large ones; what O_DIRECT reads is in sectors.
    const unit = name === 'read direct' ? chance.pick([SECTOR_BYTES, PAGE_BYTES]) : chance.pick([1, 1, SECTOR_BYTES, PAGE_BYTES])
    const most = 2 ** chance.below(discards && chance.below(8) === 0 ? 22 : 18)
    const mayGrow = name === 'write' || name === 'write direct'
    const room = mayGrow ? Math.min(SIZE_MAX, this.#size + (chance.below(20) === 0 ? 8 * KIB : 0)) : this.#size
    const offset = Math.floor(chance.below(room) / unit) * unit
    const size = Math.max(unit, Math.floor((1 + chance.below(most)) / unit) * unit)
    const cut = name === 'read' || name === 'read direct' ? size : Math.min(size, room - offset)
    return [name, offset, cut, chance.below(NOISE_BYTES - Math.min(NOISE_BYTES, cut))]
  }

  /** What the answer must be; the model has the operation behind it then. */
  #expected ([name, offset, size, at]: Operation): string {
    const end = offset + size
    if (name.startsWith('read')) return String(crc32(this.#model.subarray(offset, Math.min(end, this.#size))))
    if (name === 'truncate') this.#size = size
    if (name.startsWith('write')) {
      this.#noise.copy(this.#model, offset, at, at + size)
      this.#size = Math.max(this.#size, end)
    }
    if (name === 'punch' || name === 'zero') this.#model.fill(0, offset, end)
    return 'ok'
  }

  async #perform (operations: Iterable<Operation>): Promise<void> {
    const expected = new Map<string, { operation: Operation, answer: string, size: number }>()
    const from = this.#process.lines.length
    for (const operation of operations) {
      this.#process.send(JSON.stringify([++this.#number, ...operation]))
      expected.set(String(this.#number), { operation, answer: this.#expected(operation), size: this.#size })
    }
    await this.#process.line((line) => line.startsWith(`${this.#number} `), ANSWER_DEADLINE_MS)
    for (const line of this.#process.lines.slice(from)) {
      const [number = '', answer] = line.split(' ')
      const one = expected.get(number)
      if (answer !== one?.answer) throw new Error(`operation ${number}, ${one?.operation.join(' ')} (file of ${one?.size} bytes after it): ${answer}, not ${one?.answer}`)
    }
  }

  async #happen (event: (typeof EVENTS)[number]): Promise<void> {
    if (event === 'nothing') return
    if (event === 'check') return await this.#perform([['read', 0, 0, 0], ...this.#wholeFile()])
    if (event === 'commit') return await this.#commit()
    if (event === 'failed commit') return await this.#failToCommit()
    if (event === 'clone') return await this.#clone()
    await this.#perform([...event === 'kill' ? [['fsync', 0, 0, 0] as const] : [], ['close', 0, 0, 0]])
    if (event === 'kill') await this.#mount.kill('SIGKILL')
    else {
      await this.#mount.call('unmount', false)
      await this.#mount.exited
    }
    this.#mount = await this.#world.start() // also over a mount that is dead
    this.#mounts++
    await this.#perform([['reopen', 0, 0, 0], ...this.#wholeFile()])
  }

  #wholeFile (): Operation[] {
    return Array.from({ length: Math.ceil(this.#size / NOISE_BYTES) }, (_, index) => ['read', index * NOISE_BYTES, NOISE_BYTES, 0])
  }

  async #commit (): Promise<void> {
    const version = await this.#mount.call('commit', WORKING_COPY) as VersionRef
    this.#committed = Buffer.from(this.#model.subarray(0, this.#size))
    this.#commits++
    await this.#compare(version)
  }

  async #failToCommit (): Promise<void> {
    await this.#mount.call('set', { failCommits: true })
    const outcome = await this.#mount.call('commit', WORKING_COPY).catch((error: unknown) => error)
    if (!(outcome instanceof Error)) throw new Error('a commit was to fail')
    await this.#mount.call('set', { failCommits: false })
  }

  /** The new blob is what the last commit made; the file stays as it is. */
  async #clone (): Promise<void> {
    const name = `clone${String.fromCharCode(97 + this.#mounts % 26)}${String.fromCharCode(97 + this.#number % 26)}${String.fromCharCode(97 + this.#commits % 26)}`
    const version = await this.#mount.call('clone', WORKING_COPY, name) as VersionRef
    if (version.blob === this.#blob) return
    this.#blob = version.blob
    await this.#compare(version)
  }

  async #compare ({ blob, version }: VersionRef): Promise<void> {
    const file = await this.#mount.call('fileOf', blob, version) as string
    const bytes = readFileSync(file)
    if (bytes.equals(this.#committed)) return
    const at = bytes.findIndex((byte, index) => byte !== this.#committed[index])
    throw new Error(`${blob}@${version}, after operation ${this.#number}: ${bytes.length} bytes instead of ${this.#committed.length}, or another byte at ${at}`)
  }
}
