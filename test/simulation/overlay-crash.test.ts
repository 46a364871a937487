/**
 * A working copy is crashed at every one of its system calls, with the disk in every state that this may leave: after a kill
 * every answered write is there, after a power cut every one that an answered fsync covers, and nothing is there that nobody
 * wrote there. Then it is crashed again while it recovers, and then it goes on.
 */
import type * as fs from 'node:fs'
import type * as fsPromises from 'node:fs/promises'
import { describe, expect, it, vi } from 'vitest'
import { PAGE_BYTES } from '../../src/mirror/page-map.ts'
import type * as systemCalls from '../../src/mirror/system-calls.ts'
import { createWorkingCopy } from '../../src/mirror/working-copy.ts'
import { Chance, testSeed } from '../harness/seed.ts'
import { CrashingFiles, type CrashingFilesInit } from './crashing-files.ts'
import { CrashingGuest, NAME, randomOf, type Surroundings, WORKING } from './crashing-guest.ts'
import { DiskModel, type Moment, SECTOR_BYTES } from './disk-model.ts'
import { ForkedFabric } from './forked-fabric.ts'
import { ROOT, runOn } from './node-fs.ts'

vi.mock('node:fs', async (original) => (await import('./node-fs.ts')).fsOver(await original<typeof fs>()))
vi.mock('node:fs/promises', async (original) => (await import('./node-fs.ts')).fsPromisesOver(await original<typeof fsPromises>()))
vi.mock('../../src/mirror/system-calls.ts', async (original) => (await import('./node-fs.ts')).systemCallsOver(await original<typeof systemCalls>()))

const CHUNK = 2 * PAGE_BYTES
/** Ends within a sector. */
const SIZE = 6 * PAGE_BYTES - 1000
const SIZE_MAX = 10 * PAGE_BYTES
const BLOB = 'abcdefghijklmnop'
/** All subsets of so many unsynced changes; of more, each of the latest alone kept, and alone lost, and some subsets by chance. */
const EXHAUSTIVE_MAX = 3
const BY_CHANCE = Number(process.env['P2PVM_CRASH_STATES'] ?? 1)
const LATEST = 2 * BY_CHANCE
/** One state in so many is crashed again while it recovers; one in so many goes on. */
const TWICE_EVERY = 30
const ON_EVERY = 8
const FAULTS_MAX = 10
const ROUNDS = 2
const OPERATIONS = 12
const PUNCHED = 8 * CHUNK
const PUNCH_FROM = 16 * CHUNK
/** Of the version. */
const HOLES = [[CHUNK, 2 * CHUNK], [5 * CHUNK, PUNCH_FROM], [PUNCH_FROM + 5 * CHUNK, Infinity]] as const

/** A system call has just returned, or (`torn`) is half done. */
interface CrashPoint {
  readonly label: string
  readonly files: CrashingFiles
  readonly fabric: ForkedFabric
  readonly moment: Moment
  readonly torn: boolean
}

class Torture {
  readonly points: CrashPoint[] = []
  readonly faults: string[] = []
  readonly #chance: Chance
  readonly #model: DiskModel
  readonly #fabric = new ForkedFabric(CHUNK)
  readonly #files: CrashingFiles
  #guest!: CrashingGuest
  #label = 'start'
  #number = 0
  states = 0
  isRecording = true

  constructor (chance: Chance, init: CrashingFilesInit, sizeMax: number, base: Uint8Array) {
    this.#chance = chance
    this.#files = new CrashingFiles(init)
    this.#model = new DiskModel(base, sizeMax)
    this.#fabric.add(BLOB, 1, base)
  }

  static async begin (chance: Chance, { sizeMax = SIZE_MAX, size = SIZE, ...init }: CrashingFilesInit & { sizeMax?: number, size?: number } = {}): Promise<Torture> {
    const base = Buffer.alloc(size)
    for (let at = 0; at < size; at += SECTOR_BYTES) {
      const isHole = HOLES.some(([from, to]) => at >= from && at < to)
      if (!isHole) base.fill(`base ${at} `, at, Math.min(size, at + SECTOR_BYTES))
    }
    const torture = new Torture(chance, init, sizeMax, base)
    const around = torture.#around()
    around.files.plant(`${ROOT}/there`, new Uint8Array()) // the folder in which it all begins
    runOn(around.files, chance)
    await createWorkingCopy(WORKING, NAME, { blob: BLOB, version: 1, size, chunkSize: CHUNK }, randomOf(chance))
    around.files.onEffect = (torn) => { torture.#note(torn) }
    torture.#guest = await CrashingGuest.start(around)
    torture.#note(false)
    return torture
  }

  #around (): Surroundings {
    return { files: this.#files, fabric: this.#fabric, chance: this.#chance, model: this.#model }
  }

  #note (torn: boolean): void {
    if (!this.isRecording) return
    this.points.push({ label: this.#label, files: this.#files.fork(), fabric: this.#fabric.fork(), moment: this.#model.now(), torn })
  }

  get guest (): CrashingGuest {
    return this.#guest
  }

  get punches (): number {
    return this.#files.punches
  }

  get size (): number {
    return this.#model.size
  }

  /** One operation of the machine, and what comes while it lasts. */
  async step (label: string, work: () => Promise<unknown>): Promise<void> {
    this.#label = `${this.#number}: ${label}`
    await work()
    this.#note(false)
  }

  /** Numbered bytes, which say where they belong. */
  async write (offset: number, size: number): Promise<void> {
    const number = ++this.#number
    const bytes = Buffer.alloc(size)
    for (let at = 0; at < size;) {
      const end = Math.min(size, at + SECTOR_BYTES - (offset + at) % SECTOR_BYTES)
      bytes.fill(`write ${number} at ${offset + at} `, at, end)
      at = end
    }
    await this.#guest.write(offset, bytes)
  }

  /** Its version holds what was answered before it was asked for, and nothing else. */
  async commit (options: Parameters<CrashingGuest['commit']>[0] = {}): Promise<void> {
    const { answered } = this.#model.now()
    const version = await this.#guest.commit(options)
    this.duringFlush(async () => {})
    this.duringUpload(async () => {}) // what had nothing to upload leaves it to nobody
    if (version === undefined) return
    const now = { ...this.#model.now(), sizeAnswered: 0 }
    this.faults.push(...this.#model.faults(this.#fabric.bytesOf(version), answered, now).map((fault) => `commit: ${fault}`))
  }

  /** While a seal flushes. */
  duringFlush (work: () => Promise<void>): void {
    let done = false
    this.#guest.onFlush = async () => {
      if (done) return
      done = true
      await work()
    }
  }

  /** While a commit uploads. */
  duringUpload (work: () => Promise<void>): void {
    this.#fabric.onPut = async () => {
      this.#fabric.onPut = async () => {}
      await work()
    }
  }

  /** Crashes at every point; stops when enough is wrong. */
  async crashEverywhere (): Promise<void> {
    for (const point of this.points) {
      if (this.faults.length >= FAULTS_MAX) return
      const killed = (): CrashingFiles => point.files.killed()
      await this.#check(point, 'killed', killed, point.moment.answered)
      if (point.torn) continue // a power cut in the middle of a write is one of those after it
      for (const [name, keeps] of this.#subsets(point.files.unsynced)) {
        await this.#check(point, `power cut, ${name}`, () => point.files.powerCut(keeps), point.moment.synced)
      }
    }
  }

  * #subsets (changes: number): Generator<[string, (change: number) => boolean]> {
    if (changes <= EXHAUSTIVE_MAX) {
      for (let subset = 0; subset < 2 ** changes; subset++) yield [`subset ${subset} of ${changes}`, (change) => (subset & (1 << change)) !== 0]
      return
    }
    yield ['all kept', () => true]
    yield ['all lost', () => false]
    for (let one = Math.max(0, changes - LATEST); one < changes; one++) {
      yield [`${one} of ${changes} lost`, (change) => change !== one]
      yield [`${one} of ${changes} kept`, (change) => change === one]
    }
    for (let round = 0; round < BY_CHANCE; round++) {
      const chance = this.#chance.fork(`${this.states}/${round}`)
      const share = chance.unit()
      const kept = Array.from({ length: changes }, () => chance.unit() < share)
      yield [`chance ${round}`, (change) => kept[change] === true]
    }
  }

  async #check (point: CrashPoint, how: string, crashed: () => CrashingFiles, oldest: readonly number[]): Promise<void> {
    const state = this.states++
    const chance = this.#chance.fork(`state ${state}`)
    const where = `${point.label}, ${how}`
    try {
      const around = { files: crashed(), fabric: point.fabric.fork(), chance }
      const guest = await CrashingGuest.start(around)
      const bytes = await guest.read()
      this.#found(where, this.#model.faults(bytes, oldest, point.moment))
      if (how === 'killed') await this.#cutPowerAfterKill(where, guest, bytes, around)
      if (state % ON_EVERY === 0) await this.#goOn(where, guest, bytes, around)
      if (state % TWICE_EVERY === 0) await this.#crashAgain(where, { ...around, fabric: point.fabric.fork(), files: crashed() }, bytes, point, how === 'killed')
    } catch (error) {
      this.#found(where, [String(error)])
    }
  }

  #found (where: string, faults: string[]): void {
    this.faults.push(...faults.map((fault) => `${where}: ${fault}`))
  }

  /** What is shown after a kill is durable from the next fsync on, also what another process wrote: whatever survives of the two. */
  async #cutPowerAfterKill (where: string, guest: CrashingGuest, shown: Buffer, { files, fabric, chance }: Surroundings): Promise<void> {
    await guest.fsync()
    for (const keeps of [() => false, (_: number, process: number) => process === files.process, (_: number, process: number) => process !== files.process]) {
      const after = await CrashingGuest.start({ files: files.powerCut(keeps), fabric: fabric.fork(), chance })
      if (Buffer.compare(await after.read(), shown) !== 0) this.#found(where, ['an fsync of the next process does not cover what that showed'])
    }
    runOn(files, chance)
  }

  /** It can be written to, synced and committed, and that is durable. */
  async #goOn (where: string, guest: CrashingGuest, before: Buffer, { files, fabric, chance }: Surroundings): Promise<void> {
    const expected = Buffer.from(before)
    expected.fill('after the crash', SECTOR_BYTES, 4 * SECTOR_BYTES)
    await guest.write(SECTOR_BYTES, expected.subarray(SECTOR_BYTES, 4 * SECTOR_BYTES))
    const version = await guest.commit()
    const same = (what: string, bytes: Uint8Array): void => { if (Buffer.compare(bytes, expected) !== 0) this.#found(where, [`${what} is not what was read`]) }
    if (version !== undefined) same('the version of a commit after it', fabric.bytesOf(version))
    expected.fill('once more', 0, SECTOR_BYTES)
    await guest.write(0, expected.subarray(0, SECTOR_BYTES))
    await guest.fsync()
    const after = await CrashingGuest.start({ files: files.powerCut(() => false), fabric, chance })
    same('the file after another power cut', await after.read())
  }

  /** Crashes at each system call of the recovery. What it has shown it shows again; after a power cut, what was synced. */
  async #crashAgain (where: string, around: Surroundings, shown: Buffer, point: CrashPoint, killed: boolean): Promise<void> {
    const { fabric, chance } = around
    const halfway: CrashingFiles[] = []
    around.files.onEffect = () => { halfway.push(around.files.fork()) }
    await CrashingGuest.start(around)
    for (const [at, files] of halfway.entries()) {
      const keeps = [() => false, () => true, () => chance.unit() < 0.5]
      for (const [how, again] of [files.killed(), ...keeps.map((one) => files.powerCut(one))].entries()) {
        const guest = await CrashingGuest.start({ files: again, fabric: fabric.fork(), chance: chance.fork(`${at}/${how}`) })
        const bytes = await guest.read()
        const place = `${where}, and again after ${at + 1} calls of the recovery (${how === 0 ? 'killed' : 'power cut'})`
        if (!killed || how === 0) this.#found(place, Buffer.compare(bytes, shown) === 0 ? [] : ['is not what the first recovery showed'])
        else this.#found(place, this.#model.faults(bytes, point.moment.synced, point.moment))
      }
    }
  }
}

/** All that a working copy does, one after the other. */
async function everything (torture: Torture): Promise<void> {
  const { guest } = torture
  const step = torture.step.bind(torture)
  const write = torture.write.bind(torture)
  await step('write a page', async () => { await write(0, PAGE_BYTES) })
  await step('write a sector', async () => { await write(PAGE_BYTES + 3 * SECTOR_BYTES, SECTOR_BYTES) })
  await step('fsync', async () => { await guest.fsync() })
  await step('overwrite across pages', async () => { await write(PAGE_BYTES - SECTOR_BYTES, 3 * SECTOR_BYTES) })
  await step('write a part of a sector', async () => { await write(3 * PAGE_BYTES + 700, 100) })
  await step('write to the end', async () => { await write(SIZE - SIZE % SECTOR_BYTES - SECTOR_BYTES, SIZE % SECTOR_BYTES + SECTOR_BYTES) })
  await step('write during an fsync', async () => { await Promise.all([guest.fsync(), write(2 * PAGE_BYTES, 2 * SECTOR_BYTES), guest.fsync(), write(0, SECTOR_BYTES)]) })
  await step('write all the time during an fsync', async () => {
    const syncing = guest.fsync()
    for (let sector = 0; sector < 8; sector++) await write(4 * PAGE_BYTES + sector * SECTOR_BYTES, SECTOR_BYTES)
    await syncing
  })
  await step('zero', async () => { await guest.zero(SECTOR_BYTES + 100, PAGE_BYTES + 700) })
  await step('zero pages', async () => { await guest.zero(2 * PAGE_BYTES, 5 * PAGE_BYTES) })
  await step('write to one of them again', async () => { await write(3 * PAGE_BYTES + SECTOR_BYTES, SECTOR_BYTES) })
  await step('grow', async () => { await guest.grow(SIZE + 1500) })
  await step('write past the end', async () => { await write(SIZE + 2000, SECTOR_BYTES) })
  await step('fsync', async () => { await guest.fsync() })
  await step('commit', async () => {
    torture.duringFlush(async () => { await write(5 * SECTOR_BYTES, 2 * SECTOR_BYTES) })
    torture.duringUpload(async () => { await write(4 * PAGE_BYTES, SECTOR_BYTES); await guest.fsync(); await write(0, 2 * SECTOR_BYTES) })
    await torture.commit()
  })
  await step('write after a commit', async () => { await write(PAGE_BYTES, 2 * PAGE_BYTES) })
  await step('zero during an fsync', async () => { await Promise.all([guest.fsync(), guest.zero(PAGE_BYTES, 2 * PAGE_BYTES)]) })
  await step('commit that fails', async () => {
    torture.duringUpload(async () => { await write(PAGE_BYTES + SECTOR_BYTES, SECTOR_BYTES) })
    await torture.commit({ fate: 'unavailable' })
  })
  await step('write after it', async () => { await write(2 * PAGE_BYTES, SECTOR_BYTES) })
  await step('fsync', async () => { await guest.fsync() })
  await step('commit whose answer is lost', async () => { await torture.commit({ fate: 'answer lost' }) })
  await step('write after it', async () => { await write(0, SECTOR_BYTES) })
  await step('remount', async () => { await guest.remount() })
  await step('commit that finishes it, with nobody having it open', async () => { await torture.commit({ unmounted: true }) })
  await step('write', async () => { await write(SIZE, PAGE_BYTES) })
  await step('clone', async () => { await guest.clone() })
  await step('commit, and grow meanwhile', async () => {
    torture.duringUpload(async () => { await write(torture.size + 100, 1000) })
    await torture.commit()
  })
  await step('write', async () => { await write(100, 3000) })
  await step('fsync', async () => { await guest.fsync() })
  await step('revert', async () => { await guest.revert() })
  await step('write after it', async () => { await write(PAGE_BYTES, SECTOR_BYTES) })
  await step('commit whose answer is lost', async () => { await torture.commit({ fate: 'answer lost' }) })
  await step('revert', async () => { await guest.revert() })
  await step('commit', async () => { await torture.commit() })
}

/** The same things in any order. */
async function anything (torture: Torture, chance: Chance, operations: number): Promise<void> {
  const { guest } = torture
  const write = async (): Promise<void> => {
    const unit = chance.pick([1, SECTOR_BYTES, SECTOR_BYTES, PAGE_BYTES])
    const offset = chance.below(Math.floor(torture.size / unit)) * unit
    const size = unit * (1 + chance.below(unit === 1 ? 2000 : unit === PAGE_BYTES ? 2 : 10))
    await torture.write(offset, Math.min(size, SIZE_MAX - offset))
  }
  const kinds: Array<[string, () => Promise<unknown>]> = [
    ['write', write], ['write', write], ['write', write],
    ['fsync', async () => { await guest.fsync() }],
    ['writes during fsyncs', async () => { await Promise.all([guest.fsync(), write().then(async () => { await guest.fsync() })]) }],
    ['zero', async () => {
      const from = chance.below(torture.size)
      await guest.zero(from, Math.min(torture.size, from + 1 + chance.below(3 * PAGE_BYTES)))
    }],
    ['grow', async () => { await guest.grow(Math.min(SIZE_MAX, torture.size + chance.below(2000))) }],
    ['remount', async () => { await guest.remount() }],
    ['revert', async () => { await guest.revert() }],
    ['clone', async () => { await guest.clone() }],
    ['commit', async () => {
      torture.duringFlush(write)
      torture.duringUpload(async () => { await write(); await guest.fsync(); await write() })
      await torture.commit({ fate: chance.pick(['answered', 'answered', 'unavailable', 'answer lost']) })
    }],
    ['commit with nobody having it open', async () => { await torture.commit({ fate: chance.pick(['answered', 'unavailable']), unmounted: true }) }]
  ]
  for (let operation = 0; operation < operations; operation++) await torture.step(...chance.pick(kinds))
}

describe('a working copy, crashed at every system call', () => {
  const seed = testSeed()
  const chance = new Chance(seed)

  it(`keeps what it promised, through all that it can do (P2PVM_TEST_SEED=${seed})`, async () => {
    const torture = await Torture.begin(chance.fork('everything'))
    await everything(torture)
    expect(torture.punches).toBeGreaterThan(1)
    await torture.crashEverywhere()
    expect(torture.faults).toEqual([])
    expect(torture.states).toBeGreaterThan(2500)
  })

  it(`and in any order, also on a disk that has no holes (P2PVM_TEST_SEED=${seed})`, async () => {
    for (let round = 0; round < ROUNDS; round++) {
      const drawn = chance.fork(`round ${round}`)
      const torture = await Torture.begin(drawn, { hasHoles: round % 2 === 0 })
      await anything(torture, drawn.fork('operations'), OPERATIONS)
      await torture.crashEverywhere()
      expect(torture.faults, `round ${round}`).toEqual([])
    }
  })

  it('gives back the space of a discard, and it is zeros whatever survives', async () => {
    const torture = await Torture.begin(chance.fork('punch'), { size: PUNCH_FROM + PUNCHED, sizeMax: PUNCH_FROM + PUNCHED })
    torture.isRecording = false
    await torture.write(PUNCH_FROM - PAGE_BYTES, 8 * PAGE_BYTES)
    await torture.guest.fsync()
    torture.isRecording = true
    await torture.step('punch', async () => { await torture.guest.zero(PUNCH_FROM - SECTOR_BYTES, PUNCH_FROM + PUNCHED - SECTOR_BYTES) })
    await torture.step('fsync', async () => { await torture.guest.fsync() })
    expect(torture.punches).toBe(1)
    await torture.crashEverywhere()
    expect(torture.faults).toEqual([])
  })

  it.each(['file', 'folder'] as const)('would not, if syncs of a %s were forgotten', async (forgets) => {
    const torture = await Torture.begin(chance.fork(forgets), { forgets })
    await everything(torture)
    await torture.crashEverywhere()
    expect(torture.faults.length).toBeGreaterThan(0)
  })
})
