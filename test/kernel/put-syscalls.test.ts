/** Durability as the kernel sees it: the system calls of one put, in their order, before the acknowledgement. */
import { execFile } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { describeWith } from '../harness/capabilities.ts'

/** One system call: where its line begins and where it ends in the trace (other threads' lines may lie between). */
interface Call {
  readonly name: string
  readonly text: string
  readonly begin: number
  readonly end: number
}

const TRACED = 'openat,write,pwrite64,pwritev,writev,fdatasync,fsync,sync_file_range,msync,rename,renameat,renameat2'

async function trace (kind: 'chunk' | 'record', folder: string): Promise<Call[]> {
  const script = join(import.meta.dirname, 'put-once.ts')
  const output = join(folder, 'trace')
  await new Promise<void>((resolve) => {
    // It ends by a signal of its own, which execFile reports as an error.
    execFile('strace', ['-f', '-y', '-s', '40', '-e', `trace=${TRACED}`, '-o', output, process.execPath, script, kind, join(folder, 'store')],
      { env: { ...process.env, UV_USE_IO_URING: '0' } }, () => { resolve() })
  })
  const calls = parse(await readFile(output, 'utf8'))
  const begin = calls.findIndex(({ name, text }) => name === 'write' && text.includes('"begin\\n"'))
  const end = calls.findIndex(({ name, text }) => name === 'write' && text.includes('"acknowledged\\n"'))
  expect(begin, 'the script began').toBeGreaterThan(0)
  expect(end, 'the put was acknowledged').toBeGreaterThan(begin)
  return calls.slice(begin + 1, end + 1)
}

/** Joins `<unfinished ...>` with its `<... resumed>` line, by thread. */
function parse (text: string): Call[] {
  const open = new Map<string, Omit<Call, 'end'>>()
  const calls: Call[] = []
  text.split('\n').forEach((line, index) => {
    const [, thread = '', rest = ''] = /^(\d+)\s+(.*)$/.exec(line) ?? []
    const resumed = /^<\.\.\. (\w+) resumed>(.*)$/.exec(rest)
    const begun = /^(\w+)\(/.exec(rest)
    if (resumed !== null) {
      const call = open.get(thread)
      if (call !== undefined) calls.push({ ...call, text: call.text + (resumed[2] ?? ''), end: index })
      open.delete(thread)
    } else if (begun !== null) {
      const call = { name: begun[1] ?? '', text: rest, begin: index }
      if (rest.endsWith('<unfinished ...>')) open.set(thread, call)
      else calls.push({ ...call, end: index })
    }
  })
  return calls.sort((a, b) => a.begin - b.begin)
}

/** Asserts that there is a call for each, and that each ended before the next began. */
function expectOrder (calls: readonly Call[], steps: ReadonlyArray<[string, (call: Call) => boolean]>): void {
  let after = -1
  for (const [what, matches] of steps) {
    const call = calls.find((one) => one.begin > after && matches(one))
    expect(call, `${what}, after line ${after} of\n${calls.map(({ begin, text }) => `${begin} ${text}`).join('\n')}`).toBeDefined()
    expect(call?.text).not.toMatch(/= -1/)
    after = call?.end ?? after
  }
}

describeWith(['strace'], 'the system calls of a put', () => {
  let folder: string
  beforeEach(async () => { folder = await mkdtemp(join(tmpdir(), 'p2pvm-strace-')) })
  afterEach(async () => { await rm(folder, { recursive: true }) })

  it('of a chunk: write aside, fdatasync, rename, fsync of the folder, acknowledgement', async () => {
    const calls = await trace('chunk', folder)
    const aside = /\/store\/tmp\/bafkrei\w+\.0/
    expectOrder(calls, [
      ['the bytes are written aside', ({ name, text }) => name === 'pwrite64' && aside.test(text)],
      ['the file is synced', ({ name, text }) => name === 'fdatasync' && aside.test(text)],
      ['it gets its name', ({ name, text }) => name.startsWith('rename') && aside.test(text) && /\/store\/chunks\/.\/bafkrei\w+"\)/.test(text)],
      ['the folder is synced', ({ name, text }) => name === 'fsync' && /\/store\/chunks\/.>\)/.test(text)],
      ['the put is acknowledged', ({ text }) => text.includes('acknowledged')]
    ])
    const writes = calls.filter(({ name, text }) => name.includes('write') && aside.test(text))
    const sync = calls.find(({ name, text }) => name === 'fdatasync' && aside.test(text))
    expect(writes.every(({ end }) => end < (sync?.begin ?? 0)), 'nothing is written after the sync').toBe(true)
  })

  it('of a record: one write to the log, through a descriptor that is synced, acknowledgement', async () => {
    const calls = await trace('record', folder)
    const log = /records\.lmdb\.log-[01]/
    const isAppend = ({ name, text }: Call): boolean => name.includes('write') && log.test(text)
    expectOrder(calls, [
      ['the entry is written', isAppend],
      ['the put is acknowledged', ({ text }) => text.includes('acknowledged')]
    ])
    const [append, ...others] = calls.filter(({ name, text }) => name !== 'openat' && text.includes('records.lmdb'))
    expect(others.map(({ text }) => text), 'nothing else is done for it').toEqual([])
    // It holds all of the record, and it returned when that was on disk.
    expect(Number(/= (\d+)$/.exec(append?.text ?? '')?.[1])).toBeGreaterThan(4096)
    const whole = parse(await readFile(join(folder, 'trace'), 'utf8'))
    const opened = whole.filter(({ name, text }) => name === 'openat' && /records\.lmdb\.log-0", [^)]*O_DSYNC/.test(text)).map(({ text }) => /= (\d+)</.exec(text)?.[1])
    expect(opened).toContain(/write\w*\((\d+)</.exec(append?.text ?? '')?.[1])
  })

  it('of a database: its names are on disk before the put is begun', async () => {
    await trace('record', folder)
    const whole = parse(await readFile(join(folder, 'trace'), 'utf8'))
    expectOrder(whole, [
      ['the log is created', ({ name, text }) => name === 'openat' && /records\.lmdb\.log-1", [^)]*O_CREAT/.test(text)],
      ['the folder is synced', ({ name, text }) => name === 'fsync' && /\/store>\)/.test(text)],
      ['lmdb is synced, with the mark', ({ name, text }) => name === 'fdatasync' && text.includes('records.lmdb>')],
      // lmdb opens the file a second time with O_DSYNC for its meta page: that write returns when it is on disk.
      ['the meta page is written through', ({ name, text }) => name.includes('write') && text.includes('records.lmdb>')],
      ['the put is begun', ({ text }) => text.includes('"begin\\n"')]
    ])
  })
})
