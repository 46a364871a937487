import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { nodeDisk } from '../../../src/dht/node-disk.ts'
import { type LogEntry, type Operation, WriteAheadLog } from '../../../src/dht/write-ahead-log.ts'

const SEED = 0x5eed
const HEADER_BYTES = 16
const put = (key: string, text: string): Operation => ({ key, value: Buffer.from(text) })

/** As the log makes it; `payload` may be anything. */
function entryOf (sequence: number, payload: Uint8Array, seed = SEED): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES + payload.length)
  bytes.writeUInt32BE(payload.length)
  bytes.writeBigUInt64BE(BigInt(sequence), 8)
  bytes.set(payload, HEADER_BYTES)
  bytes.writeUInt32BE(crc32(bytes.subarray(8), seed), 4)
  return bytes
}

/** Of one operation, with lengths of one's own. */
function payloadOf ({ key = 1, value = 1, bytes = 'kv' }: { key?: number, value?: number, bytes?: string }): Buffer {
  const payload = Buffer.alloc(6 + bytes.length)
  payload.writeUInt16BE(key)
  payload.writeUInt32BE(value, 2)
  payload.write(bytes, 6)
  return payload
}

describe('write-ahead log', () => {
  let folder: string
  let path: string
  const file = (index: 0 | 1): string => `${path}.log-${index}`
  const open = async (applied: number | undefined, seed = SEED): Promise<{ log: WriteAheadLog, before: LogEntry[], current: LogEntry[] }> =>
    await WriteAheadLog.open({ disk: nodeDisk, path, applied, seed })
  /** What is found, by its sequence. */
  const found = async (applied: number | undefined): Promise<Array<[number, ...string[]]>> => {
    const { log, before, current } = await open(applied)
    await log.close()
    return [...before, ...current].map(({ sequence, operations }) => [sequence, ...operations.map(({ key, value }) => value === null ? `${key} removed` : `${key}=${Buffer.from(value).toString()}`)])
  }
  /** Entries 1 to 3 in the first file, 4 to 6 in the second one. */
  const writeSix = async (): Promise<void> => {
    const { log } = await open(undefined)
    for (let sequence = 1; sequence <= 6; sequence++) {
      if (sequence === 4) log.turnOver()
      await log.append([put('key', `value ${sequence}`)])
    }
    await log.close()
  }
  const six = [1, 2, 3, 4, 5, 6].map((sequence) => [sequence, `key=value ${sequence}`])
  const change = async (index: 0 | 1, edit: (bytes: Buffer) => Uint8Array): Promise<void> => {
    await writeFile(file(index), edit(await readFile(file(index))))
  }
  const flip = (at: number) => (bytes: Buffer): Buffer => {
    bytes[at]! ^= 1
    return bytes
  }

  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'p2pvm-log-'))
    path = join(folder, 'records.mdb')
  })
  afterEach(async () => { await rm(folder, { recursive: true }) })

  it('finds what was appended, in order, over both files, and not what is elsewhere', async () => {
    await writeSix()
    expect(await readdir(folder)).toEqual(['records.mdb.log-0', 'records.mdb.log-1'])
    expect(await found(0)).toEqual(six)
    expect(await found(3)).toEqual(six.slice(3))
    expect(await found(6)).toEqual([])
  })

  it('keeps several operations in one entry, removed keys and empty values among them', async () => {
    const { log } = await open(undefined)
    const entry = await log.append([put('a', 'first'), { key: 'b', value: null }, put('c', '')])
    await log.close()
    expect(entry.operations).toEqual([put('a', 'first'), { key: 'b', value: null }, put('c', '')])
    expect(await found(0)).toEqual([[1, 'a=first', 'b removed', 'c=']])
  })

  it('goes on where it ended, and knows which entries lie in the file that it uses', async () => {
    await writeSix()
    const size = (await readFile(file(1))).length
    for (const [applied, earlier] of [[0, 3], [2, 1], [3, 0]] as const) {
      const { log, before, current } = await open(applied)
      expect([before.length, current.map(({ sequence }) => sequence), log.last, log.bytes]).toEqual([earlier, [4, 5, 6], 6, size])
      await log.close()
    }
    const { log } = await open(3)
    expect((await log.append([put('key', 'value 7')])).sequence).toBe(7)
    expect([log.last, log.bytes]).toEqual([7, size / 3 * 4])
    log.turnOver()
    expect(log.bytes).toBe(0)
    await log.append([put('key', 'value 8')])
    await log.close()
    expect(await found(3)).toEqual([...six.slice(3), [7, 'key=value 7'], [8, 'key=value 8']])
    expect((await open(3).then(async (one) => { await one.log.close(); return one })).before).toHaveLength(4)
  })

  it('takes the place of what it held before, and does not mistake what is left of that for entries', async () => {
    await writeSix()
    const { log, before, current } = await open(6)
    expect([before, current, log.last, log.bytes]).toEqual([[], [], 6, 0])
    await log.append([put('key', 'value 7')])
    await log.close()
    // Entry 2 lies where the next one goes.
    expect((await readFile(file(0))).length).toBeGreaterThan(log.bytes)
    const again = await open(6)
    expect([again.current.length, again.log.last, again.log.bytes]).toEqual([1, 7, log.bytes])
    await again.log.append([put('key', 'value 8')])
    await again.log.close()
    expect(await found(6)).toEqual([[7, 'key=value 7'], [8, 'key=value 8']])
  })

  it('ends where the last entry was torn, or in bytes that are none of its own', async () => {
    await writeSix()
    const whole = await readFile(file(1))
    for (let size = whole.length - 1; size > whole.length / 3 * 2; size--) {
      await writeFile(file(1), whole.subarray(0, size))
      expect(await found(0)).toEqual(six.slice(0, 5))
    }
    for (const garbage of [Buffer.alloc(5), Buffer.alloc(5000), Buffer.alloc(5000, 0xff), Buffer.from('garbage'.repeat(100))]) {
      await writeFile(file(1), Buffer.concat([whole, garbage]))
      expect(await found(0)).toEqual(six)
    }
    await writeFile(file(1), flip(whole.length - 1)(whole))
    expect(await found(0)).toEqual(six.slice(0, 5))
  })

  it.each([
    ['the first of the other file', 0, 0], ['one in the middle of it', 0, 1], ['the last of it', 0, 2],
    ['the first of the file that was used last', 1, 0], ['one in the middle of that', 1, 1]
  ] as const)('is corrupt when an entry cannot be read and later ones can: %s', async (_, index, nth) => {
    await writeSix()
    const size = (await readFile(file(index))).length / 3
    // In the length, the check, the sequence, the key and the value.
    for (const at of [2, 3, 5, 15, 24, size - 1]) {
      await change(index, flip(nth * size + at))
      await expect(open(0)).rejects.toMatchObject({ code: 'ERR_CORRUPT', fields: { entry: 3 * index + nth + 1 } })
      await change(index, flip(nth * size + at))
    }
    expect(await found(0)).toEqual(six)
  })

  it('does not need what is elsewhere', async () => {
    await writeSix()
    await change(0, () => Buffer.from('rotten'))
    expect(await found(3)).toEqual(six.slice(3))
    await change(1, () => Buffer.of())
    expect(await found(6)).toEqual([])
  })

  it('is corrupt when a file of it is gone, or entries between what is elsewhere and what is there', async () => {
    await writeSix()
    expect(await found(2)).toEqual(six.slice(2))
    await change(0, () => Buffer.of())
    await expect(open(2)).rejects.toMatchObject({ code: 'ERR_CORRUPT', fields: { entry: 3 } })
    for (const index of [0, 1] as const) {
      const kept = await readFile(file(index))
      await rm(file(index))
      await expect(open(6)).rejects.toMatchObject({ code: 'ERR_CORRUPT', message: `${file(index)} is gone, and with it what was written last` })
      await writeFile(file(index), kept)
    }
  })

  it('is corrupt where nothing was ever logged and there is a log', async () => {
    await writeSix()
    await expect(open(undefined)).rejects.toMatchObject({ code: 'ERR_CORRUPT', message: `${file(0)} is the log of another ${path}` })
    // Killed between the files' names and the first entry.
    await change(0, () => Buffer.of())
    await change(1, () => Buffer.of())
    expect(await found(undefined)).toEqual([])
  })

  it.each([
    ['a key beyond the end', payloadOf({ key: 3 })],
    ['a value beyond the end', payloadOf({ value: 2 })],
    ['no room for lengths', payloadOf({ bytes: 'kv12345' })],
    ['a key beyond the end of what is removed', payloadOf({ key: 3, value: 2 ** 32 - 1 })],
    ['the longest of all', payloadOf({ key: 2 ** 16 - 1, value: 2 ** 32 - 2 })]
  ])('is corrupt when an entry does not add up: %s', async (_, payload) => {
    await writeFile(file(0), entryOf(1, payload))
    await writeFile(file(1), '')
    await expect(open(0)).rejects.toMatchObject({ code: 'ERR_CORRUPT', message: 'an entry of the log is malformed' })
    await writeFile(file(0), entryOf(1, payloadOf({})))
    expect(await found(0)).toEqual([[1, 'k=v']])
  })

  it('takes nothing for an entry that was made without its seed', async () => {
    const forged = entryOf(2, payloadOf({}), 0)
    const { log } = await open(undefined)
    await log.append([{ key: 'a', value: forged }])
    await log.close()
    expect(await found(0)).toHaveLength(1)
    // What is left of an earlier use: the value comes to lie where the next entry would be, or somewhere behind it.
    for (const rest of [forged, Buffer.concat([Buffer.alloc(7), forged])]) {
      await writeFile(file(0), Buffer.concat([entryOf(1, payloadOf({})), rest]))
      expect(await found(0)).toEqual([[1, 'k=v']])
    }
    await writeFile(file(0), Buffer.concat([entryOf(1, payloadOf({})), entryOf(2, payloadOf({}))]))
    expect(await found(0)).toHaveLength(2)
  })

  it('appends over what could not be appended', async () => {
    let fails = false
    const disk = {
      ...nodeDisk,
      openWriteThrough: async (name: string) => {
        const opened = await nodeDisk.openWriteThrough(name)
        return {
          write: async (bytes: Uint8Array, position: number) => {
            await opened.write(fails ? bytes.subarray(0, bytes.length / 2) : bytes, position)
            if (fails) throw Object.assign(new Error('no space'), { code: 'ENOSPC' })
          },
          datasync: async () => { await opened.datasync() },
          close: async () => { await opened.close() }
        }
      }
    }
    const { log } = await WriteAheadLog.open({ disk, path, applied: undefined, seed: SEED })
    await log.append([put('a', '1')])
    fails = true
    await expect(log.append([put('a', 'a long value that is not there')])).rejects.toMatchObject({ code: 'ENOSPC' })
    expect(await found(0)).toEqual([[1, 'a=1']])
    fails = false
    await log.append([put('a', '2')])
    await log.close()
    expect(await found(0)).toEqual([[1, 'a=1'], [2, 'a=2']])
  })
})
