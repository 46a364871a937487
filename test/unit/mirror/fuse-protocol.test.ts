import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { ERRNO, ErrnoError } from '../../../src/mirror/errno.ts'
import { describeRequest } from '../../../src/mirror/fuse/decoder.ts'
import { OPCODES } from '../../../src/mirror/fuse/opcodes.ts'
import * as wire from '../../../src/mirror/fuse/protocol.ts'
import { traceLine } from '../../../src/mirror/trace.ts'

/** Little-endian fields: [bytes, value]. */
function struct (...fields: Array<[1 | 2 | 4 | 8, number | bigint] | string | Buffer>): Buffer {
  return Buffer.concat(fields.map((field) => {
    if (typeof field === 'string') return Buffer.from(`${field}\0`)
    if (Buffer.isBuffer(field)) return field
    const bytes = Buffer.alloc(8)
    bytes.writeBigUInt64LE(BigInt(field[1]))
    return bytes.subarray(0, field[0])
  }))
}

const errnoOfThrown = (work: () => unknown): number | undefined => {
  try {
    work()
  } catch (error) {
    if (error instanceof ErrnoError) return error.errno
  }
  return undefined
}

describe('requests', () => {
  it('begin with fuse_in_header', () => {
    const bytes = struct([4, 104], [4, 15], [8, 2n ** 63n + 7n], [8, 2n ** 63n - 1n], [4, 1000], [4, 1001], [4, 4242], [4, 0])
    expect(bytes).toHaveLength(wire.IN_HEADER_BYTES)
    expect(wire.readInHeader(bytes)).toEqual({ len: 104, opcode: 15, unique: 2n ** 63n + 7n, nodeid: 2n ** 63n - 1n, uid: 1000, gid: 1001, pid: 4242 })
  })

  it('are read field by field as linux/fuse.h lays them out', () => {
    expect(wire.readLookupName(struct('debian-12'))).toBe('debian-12')
    expect(wire.readForgetIn(struct([8, 3]))).toEqual({ nlookup: 3 })
    expect(wire.readBatchForgetIn(struct([4, 2], [4, 0], [8, 11n], [8, 1], [8, 2n ** 60n], [8, 5]))).toEqual([{ nodeid: 11n, nlookup: 1 }, { nodeid: 2n ** 60n, nlookup: 5 }])
    expect(wire.readSetattrIn(struct([4, 0x28], [4, 0], [8, 1], [8, 4096], [8, 0], [8, 1], [8, 1700000000], [8, 2], [4, 3], [4, 250_000_000], [4, 0], [4, 0o644], [4, 0], [4, 0], [4, 0], [4, 0])))
      .toEqual({ valid: 0x28, size: 4096, mtimeMs: 1700000000250 })
    expect([0, 1, 2, 0o100002].map((flags) => wire.readOpenIn(struct([4, flags], [4, 0])).writes)).toEqual([false, true, true, true])
    expect(wire.readReadIn(struct([8, 7], [8, 2 ** 40 + 5], [4, 4096], [4, 0], [8, 0], [4, 0], [4, 0]))).toEqual({ fh: 7, offset: 2 ** 40 + 5, size: 4096 })
    expect(wire.readWriteIn(struct([8, 7], [8, 512], [4, 3], [4, 1], [8, 0], [4, 0], [4, 0], Buffer.from('abc')))).toEqual({ fh: 7, offset: 512, size: 3, bytes: Buffer.from('abc') })
    expect(wire.readSetxattrIn(struct([4, 3], [4, 0], 'user.p2pvm.commit', Buffer.from('web')))).toEqual({ name: 'user.p2pvm.commit', value: Buffer.from('web') })
    expect(wire.readGetxattrIn(struct([4, 64], [4, 0], 'user.x'))).toEqual({ size: 64, name: 'user.x' })
    expect(wire.readIoctlIn(struct([8, 7], [4, 0], [4, 0xc1b8e901], [8, 0x7fff0000], [4, 2], [4, 9], Buffer.from('hi')))).toEqual({ fh: 7, cmd: 0xc1b8e901, outSize: 9, bytes: Buffer.from('hi') })
    expect(wire.readFallocateIn(struct([8, 7], [8, 512], [8, 2 ** 40], [4, 3], [4, 0]))).toEqual({ fh: 7, offset: 512, length: 2 ** 40, mode: 3 })
    expect(wire.readLseekIn(struct([8, 7], [8, 2 ** 40 + 5], [4, 3], [4, 0]))).toEqual({ fh: 7, offset: 2 ** 40 + 5, whence: 3 })
    expect(wire.readLseekIn(struct([8, 7], [8, 2n ** 64n - 1n], [4, 4], [4, 0])).offset).toBeGreaterThan(Number.MAX_SAFE_INTEGER)
    expect(wire.readInterruptIn(struct([8, 2n ** 62n]))).toEqual({ unique: 2n ** 62n })
    expect(wire.readInitIn(struct([4, 7], [4, 41], [4, 131072], [4, 0xffffffff], [4, 1]))).toEqual({ major: 7, minor: 41, maxReadahead: 131072, flags: 0xffffffff, flags2: 1 })
    expect(wire.readInitIn(struct([4, 7], [4, 31], [4, 0], [4, 0xffffffff]))).toMatchObject({ flags2: 0 })
    expect(wire.readInitIn(struct([4, 7], [4, 36], [4, 0], [4, 1], [4, 1]))).toMatchObject({ flags2: 0 })
  })

  it('that say more than they carry, or numbers beyond 2^53, are EINVAL', () => {
    expect(errnoOfThrown(() => wire.readLookupName(Buffer.from('no end')))).toBe(ERRNO.EINVAL)
    expect(errnoOfThrown(() => wire.readWriteIn(struct([8, 7], [8, 0], [4, 10], [4, 0], [8, 0], [4, 0], [4, 0], Buffer.from('abc'))))).toBe(ERRNO.EINVAL)
    expect(errnoOfThrown(() => wire.readSetxattrIn(struct([4, 30], [4, 0], 'user.x', Buffer.from('abc'))))).toBe(ERRNO.EINVAL)
    expect(errnoOfThrown(() => wire.readIoctlIn(struct([8, 7], [4, 0], [4, 0], [8, 0], [4, 30], [4, 9])))).toBe(ERRNO.EINVAL)
    expect(errnoOfThrown(() => wire.readReadIn(struct([8, 7], [8, 2n ** 63n], [4, 1], [4, 0], [8, 0], [8, 0])))).toBe(ERRNO.EINVAL)
    expect(wire.readBatchForgetIn(struct([4, 1000], [4, 0], [8, 1n], [8, 1]))).toHaveLength(1)
  })

  it('have a row each, whose smallest size the readers may count on', () => {
    for (const { opcode, name, bodyBytesMin } of OPCODES.values()) {
      expect(OPCODES.get(opcode)?.name).toBe(name)
      expect(bodyBytesMin).toBeGreaterThanOrEqual(0)
    }
    expect([...OPCODES.values()].filter(({ replies }) => !replies).map(({ name }) => name)).toEqual(['FUSE_FORGET', 'FUSE_INTERRUPT', 'FUSE_BATCH_FORGET'])
    for (const { name, replies, replyBytes: [min, max], handler } of OPCODES.values()) {
      expect(max, name).toBeGreaterThanOrEqual(min)
      if (!replies || handler === 'refuse' || handler === 'unsupported') expect([min, max], `${name} answers no bytes`).toEqual([0, 0])
    }
    const smallest = (name: string): Buffer => Buffer.alloc([...OPCODES.values()].find((row) => row.name === name)?.bodyBytesMin ?? -1)
    wire.readForgetIn(smallest('FUSE_FORGET'))
    wire.readSetattrIn(smallest('FUSE_SETATTR'))
    wire.readOpenIn(smallest('FUSE_OPEN'))
    wire.readWriteIn(smallest('FUSE_WRITE'))
    wire.readIoctlIn(smallest('FUSE_IOCTL'))
    wire.readSetxattrIn(smallest('FUSE_SETXATTR'))
    wire.readInitIn(smallest('FUSE_INIT'))
    wire.readFallocateIn(smallest('FUSE_FALLOCATE'))
    wire.readLseekIn(smallest('FUSE_LSEEK'))
    wire.readBatchForgetIn(smallest('FUSE_BATCH_FORGET'))
  })
})

const ATTRIBUTES: wire.Attributes = { ino: 2n ** 62n + 1n, size: 1025, mtimeMs: 1700000000250, mode: 0o100644, nlink: 1, uid: 3, gid: 4 }
const ATTR = struct([8, 2n ** 62n + 1n], [8, 1025], [8, 3], [8, 1700000000], [8, 1700000000], [8, 1700000000],
  [4, 250_000_000], [4, 250_000_000], [4, 250_000_000], [4, 0o100644], [4, 1], [4, 3], [4, 4], [4, 0], [4, 4096], [4, 0])

describe('the decoder', () => {
  const header = (opcode: number): wire.InHeader => ({ len: 0, opcode, unique: 12n, nodeid: 2n ** 62n, uid: 0, gid: 0, pid: 345 })
  const text = (opcode: number, body: Buffer): string => describeRequest(header(opcode), body)

  it('prints a request on one line: row, node, who asks, and the fields that matter', () => {
    const common = `unique=12 node=${2n ** 62n} pid=345`
    expect(text(1, struct('a "name"\nof two lines'))).toBe(`FUSE_LOOKUP ${common} name="a \\"name\\"\\nof two lines"`)
    expect(text(15, struct([8, 7], [8, 4096], [4, 512], [4, 0], [8, 0], [4, 0], [4, 0]))).toBe(`FUSE_READ ${common} fh=7 offset=4096 size=512`)
    expect(text(16, struct([8, 7], [8, 0], [4, 3], [4, 0], [8, 0], [4, 0], [4, 0], Buffer.from('abc')))).toBe(`FUSE_WRITE ${common} fh=7 offset=0 size=3`)
    expect(text(21, struct([4, 6], [4, 0], 'user.p2pvm.commit', Buffer.from('secret')))).toBe(`FUSE_SETXATTR ${common} name="user.p2pvm.commit" size=6`)
    expect(text(39, struct([8, 7], [4, 0], [4, 0xc1b8e901], [8, 0], [4, 2], [4, 9], Buffer.from('hi')))).toBe(`FUSE_IOCTL ${common} fh=7 cmd=0xc1b8e901 in=2 out=9`)
    expect(text(43, struct([8, 7], [8, 512], [8, 4096], [4, 3], [4, 0]))).toBe(`FUSE_FALLOCATE ${common} fh=7 offset=512 length=4096 mode=3`)
    expect(text(44, Buffer.alloc(40))).toBe(`FUSE_READDIRPLUS ${common}`)
    expect(text(999, Buffer.alloc(3))).toBe(`opcode 999 ${common}`)
    expect(traceLine('FUSE_LOOKUP', ERRNO.ENOENT, '128 bytes', 0.34)).toBe('FUSE_LOOKUP → ENOENT 340 µs')
    expect(traceLine('FUSE_LOOKUP', 0, '128 bytes', 1.5)).toBe('FUSE_LOOKUP → 128 bytes 1500 µs')
  })

  it('prints any bytes, of any row', () => {
    fc.assert(fc.property(fc.constantFrom(...OPCODES.keys(), 0, 7, 4096), fc.uint8Array({ maxLength: 200 }), (opcode, bytes) => {
      expect(text(opcode, Buffer.from(bytes))).not.toContain('\n')
    }))
  })
})

describe('replies', () => {
  it('are written field by field as linux/fuse.h lays them out', () => {
    expect(wire.entryOut(ATTRIBUTES, { entrySeconds: 1, attrSeconds: 3600 })).toEqual(Buffer.concat([struct([8, 2n ** 62n + 1n], [8, 0], [8, 1], [8, 3600], [4, 0], [4, 0]), ATTR]))
    expect(wire.attrOut(ATTRIBUTES, 60)).toEqual(Buffer.concat([struct([8, 60], [4, 0], [4, 0]), ATTR]))
    expect(wire.openOut(9, wire.FOPEN_KEEP_CACHE)).toEqual(struct([8, 9], [4, 2], [4, 0]))
    expect(wire.writeOut(4096)).toEqual(struct([4, 4096], [4, 0]))
    expect(wire.statfsOut({ blocks: 1, bfree: 2, bavail: 3, files: 4, ffree: 5, bsize: 4096 }))
      .toEqual(struct([8, 1], [8, 2], [8, 3], [8, 4], [8, 5], [4, 4096], [4, 255], [4, 4096], [4, 0], Buffer.alloc(24)))
    expect(wire.lseekOut(2 ** 40 + 5)).toEqual(struct([8, 2 ** 40 + 5]))
    expect(wire.notifyInvalInode(2n ** 62n, 4096, 12288)).toEqual(struct([4, 40], [4, 2], [8, 0], [8, 2n ** 62n], [8, 4096], [8, 8192]))
    expect(wire.ioctlOut(-16, Buffer.from('out'))).toEqual(Buffer.concat([struct([4, 2 ** 32 - 16], [4, 0], [4, 0], [4, 0]), Buffer.from('out')]))
    expect(wire.reply(5n, 0, Buffer.from('abc'))).toEqual(struct([4, 19], [4, 0], [8, 5], Buffer.from('abc')))
    expect(wire.reply(5n, ERRNO.EIO, Buffer.from('abc'))).toEqual(struct([4, 16], [4, 2 ** 32 - ERRNO.EIO], [8, 5]))
  })

  it('say of every file that it may have holes: fewer blocks than bytes, but some', () => {
    const blocks = (size: number): number => wire.attrOut({ ...ATTRIBUTES, size }, 60).readUInt32LE(16 + 16)
    expect([0, 1, 512, 4096, 4097, 1024 * 1024].map(blocks)).toEqual([0, 1, 1, 8, 1, 2040])
  })

  it('tell the size of an extended attribute, or give it, or say ERANGE', () => {
    expect(wire.xattrOut(Buffer.from('value'), 0)).toEqual(struct([4, 5], [4, 0]))
    expect(wire.xattrOut(Buffer.from('value'), 5)).toEqual(Buffer.from('value'))
    expect(errnoOfThrown(() => wire.xattrOut(Buffer.from('value'), 4))).toBe(ERRNO.ERANGE)
  })

  it('list as many names as fit, and go on where they ended', () => {
    const entries = [{ ino: 1n, name: '.', directory: true }, { ino: 2n, name: 'eightxyz', directory: false }, { ino: 3n, name: 'c', directory: false }]
    const first = struct([8, 1], [8, 1], [4, 1], [4, 4], Buffer.from('.\0\0\0\0\0\0\0'))
    const second = struct([8, 2], [8, 2], [4, 8], [4, 8], Buffer.from('eightxyz'))
    const third = struct([8, 3], [8, 3], [4, 1], [4, 8], Buffer.from('c\0\0\0\0\0\0\0'))
    expect(wire.direntsOut(entries, 0, 64)).toEqual(Buffer.concat([first, second]))
    expect(wire.direntsOut(entries, 0, 95)).toEqual(Buffer.concat([first, second]))
    expect(wire.direntsOut(entries, 2, 4096)).toEqual(third)
    expect(wire.direntsOut(entries, 3, 4096)).toHaveLength(0)
  })

  it('answer INIT with what both sides can do', () => {
    const out = wire.initOut({ major: 7, minor: 41, maxReadahead: 131072, flags: 0xffffffff, flags2: 0xffffffff }, { resend: false })
    expect(out).toHaveLength(64)
    expect([out.readUInt32LE(0), out.readUInt32LE(4), out.readUInt32LE(8), out.readUInt32LE(20), out.readUInt16LE(28)]).toEqual([7, 38, wire.READ_AHEAD_BYTES, 1024 * 1024, 256])
    expect(wire.initOut({ major: 7, minor: 41, maxReadahead: 2 ** 22, flags: 0, flags2: 0 }, { resend: false }).readUInt32LE(8)).toBe(2 ** 22)
    const flags = out.readUInt32LE(12)
    for (const bit of [0, 5, 15, 16, 18, 22, 28]) expect(flags & (1 << bit), `flag ${bit}`).not.toBe(0)
    expect(wire.initOut({ major: 7, minor: 33, maxReadahead: 0, flags: 1 << 16, flags2: 0 }, { resend: true }).readUInt32LE(12)).toBe(1 << 16)
    expect(wire.initOut({ major: 7, minor: 33, maxReadahead: 0, flags: 0, flags2: 0 }, { resend: true }).readUInt32LE(4)).toBe(33)
    expect(errnoOfThrown(() => wire.initOut({ major: 7, minor: 12, maxReadahead: 0, flags: 0, flags2: 0 }, { resend: true }))).toBe(ERRNO.EPROTO)
  })

  it('ask the kernel to keep what is not answered where that is wanted and offered, and to send it again', () => {
    const init = { major: 7, minor: 41, maxReadahead: 0, flags: 0xffffffff, flags2: 0xffffffff }
    const extended = (flags2: number, resend: boolean): [boolean, number] => {
      const out = wire.initOut({ ...init, flags2 }, { resend })
      return [(out.readUInt32LE(12) & (1 << 30)) !== 0, out.readUInt32LE(32)]
    }
    expect(extended(0xffffffff, true)).toEqual([true, 1 << 7])
    expect(extended(0xffffffff, false)).toEqual([false, 0])
    expect(extended(0xffffff7f, true)).toEqual([false, 0])
    expect([init, { ...init, flags2: 0x7f }].map(wire.offersResend)).toEqual([true, false])
    expect(wire.notifyResend()).toEqual(struct([4, 16], [4, 7], [8, 0]))
    expect([5n, 2n ** 63n + 5n].map(wire.isResent)).toEqual([false, true])
    expect([5n, 2n ** 63n + 5n].map(wire.originalUnique)).toEqual([5n, 5n])
  })
})
