/**
 * Records what a real machine does with its disk: boots the Debian image of the tests in QEMU, on a copy, and takes QEMU's own
 * trace of what reaches the block layer, which is what would reach a working copy with `cache=none`.
 */
import { execFile } from 'node:child_process'
import { chmod, mkdtemp, open, readFile, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { isZero } from '../../src/protocols/cid.ts'
import { debianImage, probeAccel, startGuest } from '../../test/harness/qemu.ts'
import { type DataRun, type TimedAccess, type Trace, ZERO_UNIT_BYTES } from './trace.ts'

const run = promisify(execFile)

/** A boot takes 12 to 60 s under emulation, by how busy the machine is; the work after it as long again. */
const GUEST_DEADLINE_MS = 300_000
const SHELL_PROMPT = 'root@p2pvm-guest:~# '
const UNITS_PER_READ = 256

export interface Errand {
  readonly what: string
  /** Typed at the machine's shell once it has booted; without it the machine writes a note and powers off by itself. */
  readonly work?: string
}

export async function record ({ what, work }: Errand): Promise<Trace> {
  const { image, kernel, initrd } = await debianImage()
  const folder = await mkdtemp(join(tmpdir(), 'p2pvm-trace-'))
  try {
    const disk = join(folder, 'disk.raw')
    const log = join(folder, 'qemu.log')
    await run('cp', ['--sparse=always', image, disk])
    await chmod(disk, 0o600)
    let console = ''
    let typed = false
    const guest = await startGuest({
      disk,
      cache: 'none',
      kernel,
      initrd,
      append: work === undefined ? ['p2pvm.write=traced'] : ['p2pvm.hold'],
      qemuArgs: ['-msg', 'timestamp=on', '-trace', 'enable=blk_co_preadv', '-trace', 'enable=blk_co_pwritev', '-D', log],
      timeoutMs: GUEST_DEADLINE_MS,
      onConsole (text) {
        console += text
        if (work === undefined || typed || !console.includes(SHELL_PROMPT)) return
        typed = true
        guest.type(`${work}; sync; poweroff\n`)
      }
    })
    await guest.ended
    return {
      what: `${what} (${(await run('qemu-system-x86_64', ['--version'])).stdout.split('\n')[0]}, ${await probeAccel()}, cache=none)`,
      size: (await stat(image)).size,
      data: await dataRuns(image),
      accesses: parseQemuLog(await readFile(log, 'utf8'))
    }
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** `4321@1700000000.123456:blk_co_preadv blk 0x… bs 0x… offset 4096 bytes 8192 flags 0x0` */
const LINE = /^\d+@(\d+)\.(\d{6}):blk_co_p(read|write)v .* offset (\d+) bytes (\d+) /

export function parseQemuLog (text: string): TimedAccess[] {
  const accesses: TimedAccess[] = []
  let firstUs: number | undefined
  for (const line of text.split('\n')) {
    const match = LINE.exec(line)
    if (match === null) continue
    const [, seconds, micros, kind, offset, size] = match
    const us = Number(seconds) * 1e6 + Number(micros)
    firstUs ??= us
    // Several threads write that log, each when it comes to it.
    const later = Math.max(us - firstUs, accesses.at(-1)?.us ?? 0)
    if (Number(size) > 0) accesses.push({ kind: kind === 'read' ? 'read' : 'write', offset: Number(offset), size: Number(size), us: later })
  }
  if (accesses.length === 0) throw new Error("QEMU's trace has no access to the disk: was it built with the log back end?")
  return accesses
}

async function dataRuns (path: string): Promise<DataRun[]> {
  const runs: Array<{ from: number, to: number }> = []
  const file = await open(path, 'r')
  const buffer = Buffer.alloc(UNITS_PER_READ * ZERO_UNIT_BYTES)
  try {
    for (let unit = 0; ;) {
      const { bytesRead } = await file.read(buffer, 0, buffer.length, unit * ZERO_UNIT_BYTES)
      if (bytesRead === 0) return runs
      for (let at = 0; at < bytesRead; at += ZERO_UNIT_BYTES, unit++) {
        if (isZero(buffer.subarray(at, Math.min(at + ZERO_UNIT_BYTES, bytesRead)))) continue
        const last = runs.at(-1)
        if (last?.to === unit) last.to++
        else runs.push({ from: unit, to: unit + 1 })
      }
    }
  } finally {
    await file.close()
  }
}
