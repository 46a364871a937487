/**
 * The kernel's requests as text, for whoever debugs (`p2pvm mount --trace`): the row's name, the node, who asks, and the fields
 * that matter. Bytes of files and of attributes are only counted. Owns no state.
 */
import { type HandlerName, OPCODES } from './opcodes.ts'
import * as wire from './protocol.ts'

type Fields = Readonly<Record<string, string | number | bigint>>

const FIELDS: Readonly<Partial<Record<HandlerName, (body: Buffer) => Fields>>> = {
  lookup: (body) => ({ name: quoted(wire.readLookupName(body)) }),
  forget: wire.readForgetIn,
  batchForget: (body) => ({ count: wire.readBatchForgetIn(body).length }),
  setattr: (body) => {
    const { valid, size } = wire.readSetattrIn(body)
    return { valid: `0x${valid.toString(16)}`, ...(valid & wire.FATTR_SIZE) === 0 ? {} : { size } }
  },
  open: (body) => ({ flags: `0o${body.readUInt32LE(0).toString(8)}` }),
  read: wire.readReadIn,
  write: wire.readReadIn, // its fields lie in the same places
  release: (body) => ({ fh: wire.readFh(body) }),
  fsync: (body) => ({ fh: wire.readFh(body) }),
  flush: (body) => ({ fh: wire.readFh(body) }),
  setxattr: (body) => {
    const { name, value } = wire.readSetxattrIn(body)
    return { name: quoted(name), size: value.length }
  },
  getxattr: (body) => {
    const { name, size } = wire.readGetxattrIn(body)
    return { name: quoted(name), size }
  },
  listxattr: wire.readListxattrIn,
  init: (body) => {
    const { major, minor, flags } = wire.readInitIn(body)
    return { major, minor, flags: `0x${flags.toString(16)}` }
  },
  readdir: wire.readReadIn,
  releasedir: (body) => ({ fh: wire.readFh(body) }),
  interrupt: wire.readInterruptIn,
  ioctl: (body) => {
    const { fh, cmd, bytes, outSize } = wire.readIoctlIn(body)
    return { fh, cmd: `0x${cmd.toString(16)}`, in: bytes.length, out: outSize }
  },
  lseek: wire.readLseekIn,
  fallocate: (body) => ({ ...wire.readFallocateIn(body) })
}

/** Names are whatever somebody typed. */
function quoted (name: string): string {
  return JSON.stringify(name)
}

/** One line, whatever the bytes are. */
export function describeRequest ({ opcode, unique, nodeid, pid }: wire.InHeader, body: Buffer): string {
  const row = OPCODES.get(opcode)
  const words = [row?.name ?? `opcode ${opcode}`, `unique=${unique}`, `node=${nodeid}`, `pid=${pid}`]
  const read = row === undefined ? undefined : FIELDS[row.handler as HandlerName]
  try {
    if (read !== undefined) words.push(...Object.entries(read(body)).map(([name, value]) => `${name}=${value}`))
  } catch {
    words.push(`malformed (${body.length} bytes)`)
  }
  return words.join(' ')
}
