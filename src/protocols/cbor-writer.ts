/**
 * CBOR of what nearly every message is made of, written straight into one buffer: null, booleans, integers, text, bytes, arrays and plain
 * objects, deterministically (RFC 8949, 4.2.1). cborg, which can do the rest, makes an object of each value first, and takes four times as
 * long; the two are compared byte by byte in the tests. State it owns: the buffer.
 */

/** Larger ones are rare, and encoding is then the least of what they cost. */
const BUFFER_BYTES = 32 * 1024
/** A head: the major type and an argument of at most eight bytes. */
const HEAD_BYTES_MAX = 9
/** Beyond it, sorting is left to a better algorithm. */
const INSERTED_KEYS_MAX = 32

const UINT = 0x00
const NEGATIVE = 0x20
const BYTES = 0x40
const TEXT = 0x60
const ARRAY = 0x80
const MAP = 0xa0
const FALSE = 0xf4
const TRUE = 0xf5
const NULL = 0xf6

const buffer = Buffer.allocUnsafeSlow(BUFFER_BYTES)

/** undefined: there is something in it that this does not write, or it is too large. Properties that are undefined are left out. */
export function writeCbor (value: unknown): Uint8Array | undefined {
  const end = write(value, 0)
  return end < 0 ? undefined : new Uint8Array(buffer.subarray(0, end))
}

/** Where the value ends; -1: not written. */
function write (value: unknown, at: number): number {
  if (typeof value === 'string') return writeText(value, at)
  if (typeof value === 'number') return writeInteger(value, at)
  if (at >= BUFFER_BYTES) return -1
  if (value === null) return writeByte(NULL, at)
  if (typeof value === 'boolean') return writeByte(value ? TRUE : FALSE, at)
  if (typeof value !== 'object') return -1
  if (Array.isArray(value)) return writeArray(value, at)
  if (value instanceof Uint8Array) return writeBytes(value, at)
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === Object.prototype || prototype === null ? writeMap(value as Record<string, unknown>, at) : -1
}

function writeByte (byte: number, at: number): number {
  buffer[at] = byte
  return at + 1
}

/** The shortest form. */
function writeHead (major: number, argument: number, at: number): number {
  if (at + HEAD_BYTES_MAX > BUFFER_BYTES) return -1
  if (argument < 24) return writeByte(major | argument, at)
  if (argument < 0x100) {
    buffer[at] = major | 24
    return writeByte(argument, at + 1)
  }
  if (argument < 0x10000) {
    buffer[at] = major | 25
    return buffer.writeUInt16BE(argument, at + 1)
  }
  if (argument < 0x100000000) {
    buffer[at] = major | 26
    return buffer.writeUInt32BE(argument, at + 1)
  }
  buffer[at] = major | 27
  buffer.writeUInt32BE(Math.floor(argument / 0x100000000), at + 1)
  return buffer.writeUInt32BE(argument % 0x100000000, at + 5)
}

function writeInteger (value: number, at: number): number {
  if (!Number.isSafeInteger(value) || Object.is(value, -0)) return -1
  return value >= 0 ? writeHead(UINT, value, at) : writeHead(NEGATIVE, -1 - value, at)
}

function writeText (text: string, at: number): number {
  const { length } = text
  const start = writeHead(TEXT, length, at)
  if (start < 0 || start + length > BUFFER_BYTES) return -1
  for (let index = 0; index < length; index++) {
    const unit = text.charCodeAt(index)
    if (unit >= 0x80) return writeBytes(Buffer.from(text), at, TEXT)
    buffer[start + index] = unit
  }
  return start + length
}

function writeBytes (bytes: Uint8Array, at: number, major = BYTES): number {
  const start = writeHead(major, bytes.length, at)
  if (start < 0 || start + bytes.length > BUFFER_BYTES) return -1
  buffer.set(bytes, start)
  return start + bytes.length
}

function writeArray (items: readonly unknown[], at: number): number {
  let end = writeHead(ARRAY, items.length, at)
  for (let index = 0; index < items.length && end >= 0; index++) end = write(items[index], end)
  return end
}

function writeMap (map: Readonly<Record<string, unknown>>, at: number): number {
  const keys = sortedKeys(map)
  let end = writeHead(MAP, keys.length, at)
  for (const key of keys) {
    const start = end
    end = start < 0 ? -1 : writeText(key, start)
    // The order of keys is that of their bytes for ASCII alone; other characters take more bytes than units.
    if (end < 0 || end - start > headBytes(key.length) + key.length) return -1
    end = write(map[key], end)
  }
  return end
}

/** Of what is not undefined. A message has few keys, and its sender names them in nearly the same order each time: inserting is fast. */
function sortedKeys (map: Readonly<Record<string, unknown>>): string[] {
  const keys: string[] = []
  for (const key of Object.keys(map)) {
    if (map[key] === undefined) continue
    if (keys.length === INSERTED_KEYS_MAX) return Object.keys(map).filter((one) => map[one] !== undefined).sort((a, b) => comesBefore(a, b) ? -1 : 1)
    let at = keys.length
    for (; at > 0 && comesBefore(key, keys[at - 1]!); at--) keys[at] = keys[at - 1]!
    keys[at] = key
  }
  return keys
}

/** A shorter key has a smaller head. */
function comesBefore (a: string, b: string): boolean {
  return a.length === b.length ? a < b : a.length < b.length
}

function headBytes (argument: number): number {
  return argument < 24 ? 1 : argument < 0x100 ? 2 : argument < 0x10000 ? 3 : 5
}
