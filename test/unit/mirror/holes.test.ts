/** Zeros that take no space, on a file of this disk. */
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { writeFully } from '../../../src/mirror/files.ts'
import { Holes } from '../../../src/mirror/holes.ts'
import { PAGE_BYTES } from '../../../src/mirror/page-map.ts'

const MIB = 1024 * 1024
const SIZE = 40 * MIB
const REGION = 16 * MIB

let folder: string
let path: string
let fd: number
let holes: Holes

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'p2pvm-holes-'))
  path = join(folder, 'pages')
  writeFileSync(path, '')
  truncateSync(path, SIZE)
  fd = openSync(path, 'r+')
  holes = new Holes(path, fd)
})

afterEach(() => {
  closeSync(fd)
  rmSync(folder, { recursive: true })
})

const write = (at: number, bytes: Buffer): void => { writeFully(fd, bytes, 0, bytes.length, at) }
const zero = (from: number, to: number): void => { holes.zero(from, to, to) }
/** A file system counts its own blocks for a file of many extents. */
const isAbout = (bytes: number, expected: number): boolean => Math.abs(bytes - expected) <= 4 * PAGE_BYTES
const taken = (): number => statSync(path).blocks * 512

describe('the zeros of a file', () => {
  it('are holes where they were, and written where there was anything else', () => {
    write(2 * MIB, Buffer.alloc(PAGE_BYTES, 1))
    expect(taken()).toBe(PAGE_BYTES)
    zero(MIB, 2 * MIB - 512) // nothing there
    zero(2 * MIB - 5 * 512, 2 * MIB + 512) // a sector of what is
    expect(taken()).toBe(PAGE_BYTES)
    const expected = Buffer.alloc(SIZE)
    expected.fill(1, 2 * MIB + 512, 2 * MIB + PAGE_BYTES)
    expect(readFileSync(path).equals(expected)).toBe(true)
  })

  it('are given back a region at a time, and what was written since stays', () => {
    const expected = Buffer.alloc(SIZE)
    const written = [[0, MIB], [REGION - MIB, REGION + MIB], [2 * REGION + MIB, 2 * REGION + 2 * MIB]] as const
    for (const [from, to] of written) write(from, expected.subarray(from, to).fill(1))
    expect(holes.waiting).toBe(false)
    for (let at = 0; at < MIB; at += 64 * 1024) zero(at, at + 32 * 1024)
    zero(REGION - 64 * 1024, REGION + 64 * 1024)
    write(32 * PAGE_BYTES, Buffer.alloc(512, 2)) // among the zeros, in no order with anything
    write(REGION + PAGE_BYTES, Buffer.alloc(1, 3))
    for (let at = 0; at < MIB; at += 64 * 1024) expected.fill(0, at, at + 32 * 1024)
    expected.fill(0, REGION - 64 * 1024, REGION + 64 * 1024).fill(2, 32 * PAGE_BYTES, 32 * PAGE_BYTES + 512).fill(3, REGION + PAGE_BYTES, REGION + PAGE_BYTES + 1)
    const before = taken()
    holes.dig()
    expect(isAbout(before - taken(), (16 * 8 - 1) * PAGE_BYTES + 64 * 1024)).toBe(true)
    expect(holes.waiting).toBe(true)
    holes.dig()
    expect(isAbout(before - taken(), (16 * 8 - 1) * PAGE_BYTES + 128 * 1024 - PAGE_BYTES)).toBe(true)
    expect(holes.waiting).toBe(false)
    expect(readFileSync(path).equals(expected)).toBe(true)
    holes.dig() // nothing left
    expect(readFileSync(path).equals(expected)).toBe(true)
  })

  it('to the end of the file', () => {
    truncateSync(path, SIZE - 1000)
    write(SIZE - 2 * PAGE_BYTES, Buffer.alloc(2 * PAGE_BYTES - 1000, 1))
    holes.zero(SIZE - 2 * PAGE_BYTES, SIZE - 1000, SIZE)
    holes.dig()
    expect([taken(), statSync(path).size]).toEqual([0, SIZE - 1000])
    expect(readFileSync(path).equals(Buffer.alloc(SIZE - 1000))).toBe(true)
  })

  it('are not looked for by a process whose parent was killed when it began', () => {
    write(0, Buffer.alloc(2 * MIB, 1))
    const ours = process.pid
    Object.defineProperty(process, 'pid', { value: ours + 1 }) // somebody else is the parent
    try {
      zero(0, 2 * MIB)
    } finally {
      Object.defineProperty(process, 'pid', { value: ours })
    }
    expect(taken()).toBe(2 * MIB)
    expect(readFileSync(path).equals(Buffer.alloc(SIZE))).toBe(true)
  })

  it('are zeros all the same where nobody can give them back', () => {
    rmSync(path) // fallocate(1) does not find it
    write(0, Buffer.alloc(2 * MIB, 1))
    zero(0, 2 * MIB - 512)
    expect(holes.waiting).toBe(false)
    const mine = readFileSync(`/proc/self/fd/${fd}`)
    expect(mine.equals(Buffer.alloc(SIZE).fill(1, 2 * MIB - 512, 2 * MIB))).toBe(true)
  })
})
