/** The calls themselves, on files of this disk, in this thread and in another one. */
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { addressOf, canCall, punchHole, systemCall, willNeed } from '../../../src/mirror/system-calls.ts'

const PAGE = 4096
const PAGES = 16

let folder: string
let path: string
let fd: number

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'p2pvm-calls-'))
  path = join(folder, 'file')
  writeFileSync(path, Buffer.alloc(PAGES * PAGE, 1))
  fd = openSync(path, 'r+')
})

afterEach(() => {
  closeSync(fd)
  rmSync(folder, { recursive: true })
})

const taken = (): number => statSync(path).blocks * 512

/** What `expression` is in a thread of its own, after the statement `first`. */
async function inThread (expression: string, first = ''): Promise<unknown> {
  const worker = new Worker(`${first}
    import('${new URL('../../../src/mirror/system-calls.ts', import.meta.url).href}').then(({ addressOf, canCall, punchHole, systemCall, willNeed }) => {
      require('node:worker_threads').parentPort.postMessage(${expression})
    })`, { eval: true })
  try {
    return await new Promise((resolve, reject) => { worker.once('message', resolve).once('error', reject) })
  } finally {
    await worker.terminate()
  }
}

/** A statement: whoever asks for the library gets `value`. */
const instead = (value: string): string => `const { Module } = require('node:module')
  const load = Module._load
  Module._load = (name, ...rest) => name === 'koffi' ? ${value} : load(name, ...rest)`

describe('punching a hole', () => {
  it('gives back its space, leaves zeros, and the size as it is, also past the end', () => {
    expect(taken()).toBe(PAGES * PAGE)
    expect(punchHole(fd, 2 * PAGE, 3 * PAGE)).toBe(true)
    expect(punchHole(fd, (PAGES - 1) * PAGE, 2 ** 40)).toBe(true)
    expect(taken()).toBe((PAGES - 4) * PAGE)
    expect(readFileSync(path).equals(Buffer.alloc(PAGES * PAGE, 1).fill(0, 2 * PAGE, 5 * PAGE).fill(0, (PAGES - 1) * PAGE))).toBe(true)
  })

  it('fails as calls of Node do', () => {
    const errorOf = (work: () => unknown): unknown => {
      try {
        return work()
      } catch (error) {
        return error
      }
    }
    const error = errorOf(() => punchHole(-1, 0, PAGE))
    expect(error).toBeInstanceOf(Error)
    expect(error).toMatchObject({ code: 'EBADF', errno: -constants.errno.EBADF, syscall: 'fallocate', message: 'EBADF: bad file descriptor, fallocate' })
    expect(errorOf(() => punchHole(fd, 0, 0))).toMatchObject({ code: 'EINVAL', errno: -constants.errno.EINVAL })
    const readOnly = openSync(path, 'r')
    expect(errorOf(() => punchHole(readOnly, 0, PAGE))).toMatchObject({ code: 'EBADF' })
    closeSync(readOnly)
    expect(taken()).toBe(PAGES * PAGE)
  })

  it('is false where a file system has no holes', () => {
    const proc = openSync('/proc/self/comm', 'r+')
    expect(punchHole(proc, 0, PAGE)).toBe(false)
    closeSync(proc)
  })

  it('works in threads, on the descriptors of the process', async () => {
    expect(punchHole(fd, PAGE, PAGE)).toBe(true)
    expect(await inThread(`punchHole(${fd}, 0, ${PAGE})`)).toBe(true)
    expect(taken()).toBe((PAGES - 2) * PAGE)
  })

  it('asks again when a signal came in between', async () => {
    const interrupted = instead(`({ load: () => ({ func: (declared) => declared.includes('fallocate') ? () => --left > 0 ? -1 : 0 : undefined }), errno: () => ${constants.errno.EINTR} })`)
    expect(await inThread(`[punchHole(${fd}, 0, ${PAGE}), left]`, `globalThis.left = 3; ${interrupted}`)).toEqual([true, 0])
  })
})

describe('all of them', () => {
  it.each([
    ['is not there', instead("(() => { throw new Error('not installed') })()")],
    ['is not made for this machine', instead("({ load () { throw new Error('wrong kind of file') } })")],
    ['may have another off_t', `Object.defineProperty(process, 'arch', { value: 'arm' }); ${instead('({ load: () => ({ func: () => () => 0 }) })')}`]
  ])('do nothing where the library %s', async (_, first) => {
    expect(await inThread(`[punchHole(${fd}, 0, ${PAGE}), punchHole(-1, 0, 0), willNeed(${fd}, 0, 0), canCall(), addressOf(new Uint8Array(1)), systemCall(39, 0, 0, 0, 0, 0)]`, first))
      .toEqual([false, false, undefined, false, undefined, undefined])
    expect(taken()).toBe(PAGES * PAGE)
  })
})

describe('a call by its number', () => {
  const GETPID: Readonly<Record<string, number>> = { x64: 39, arm64: 172 }
  const READ: Readonly<Record<string, number>> = { x64: 0, arm64: 63 }

  it('gives what the kernel answers, and finds bytes where they lie, in an array or shared', () => {
    expect(canCall()).toBe(true)
    expect(systemCall(GETPID[process.arch]!, 0, 0, 0, 0, 0)).toBe(process.pid)
    expect(systemCall(READ[process.arch]!, -1, 0, 0, 0, 0)).toBe(-1)
    for (const bytes of [new Uint8Array(new ArrayBuffer(PAGE)), new Uint8Array(new SharedArrayBuffer(PAGE))]) {
      expect(systemCall(READ[process.arch]!, fd, addressOf(bytes.subarray(10))!, 100, 0, 0)).toBe(100)
      expect(bytes.slice(8, 112)).toEqual(new Uint8Array(104).fill(1, 2, 102))
    }
  })
})

describe('saying what will be needed', () => {
  it('does nothing for a descriptor that is none, and changes nothing for one that is', () => {
    expect(() => { willNeed(-1, 0, 0) }).not.toThrow()
    expect(() => { willNeed(fd, 0, 0) }).not.toThrow()
    expect(readFileSync(path).equals(Buffer.alloc(PAGES * PAGE, 1))).toBe(true)
  })
})
