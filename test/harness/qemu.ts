/**
 * Real virtual machines for the tests: starts QEMU on a disk, watches the machine's serial console, and sees to it that
 * the QEMU process is gone afterwards, however the test ends.
 *
 * The disk comes from `debianImage()`; what such a machine does is told by words on its kernel command line: see
 * scripts/make-debian-image. This is not a way to drive a machine for long: a test that needs more than to write a file, to
 * read it, and to be alive meanwhile should add a word there.
 */
import { execFile, spawn } from 'node:child_process'
import { constants } from 'node:fs'
import { access, stat } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

const run = promisify(execFile)

/** What the guest prints once it has done all that its command line asks. */
const BOOTED = 'P2PVM-BOOTED'

/** Enough to see the end of a kernel's panic, or of a systemd that waits for something. */
const CONSOLE_TAIL_LINES = 40

/** SIGKILL is immediate, but for a process that the kernel holds in a request to a file system that does not answer. */
const KILL_TIMEOUT_MS = 10_000

/** A kernel without a root file system panics after 2 s even under emulation. */
const PROBE_TIMEOUT_MS = 10_000

export type Accel = 'kvm' | 'tcg'

export interface GuestOptions {
  /** Path of the raw disk. The machine writes to it. */
  disk: string
  /** `none` opens the disk with O_DIRECT, past the host's page cache; `writeback` goes through it. */
  cache: 'writeback' | 'none'
  kernel: string
  initrd: string
  /** More words for the kernel command line, for instance `p2pvm.print`. */
  append?: string[]
  /** More arguments of QEMU's own, for instance `-trace`. */
  qemuArgs?: readonly string[]
  /** 512 unless told. */
  memoryMiB?: number
  /** From the start until QEMU has ended. */
  timeoutMs: number
  signal?: AbortSignal
  /** Called with each piece of console output as it comes, cut anywhere. */
  onConsole?: (text: string) => void
}

export interface GuestResult {
  /** All that the machine printed, with `\n` line ends. */
  console: string
  /** From the start of QEMU until the guest said that it has booted. */
  bootMs: number
  exitCode: number
}

export interface Guest {
  readonly pid: number
  /** What the machine has printed so far. */
  console: () => string
  /** Resolves when the guest says that it has booted, with the milliseconds that took; rejects as `ended` does. */
  readonly booted: Promise<number>
  /** Resolves when a guest that had booted has powered off. Rejects with a `GuestError` otherwise, after QEMU is gone. */
  readonly ended: Promise<GuestResult>
  /** Types on the serial console. With `p2pvm.hold` a root shell listens there some seconds after `booted`. */
  type: (text: string) => void
  /** Pulls the plug; resolves when QEMU is gone. */
  kill: () => Promise<void>
}

/** `TIMEOUT`, `ABORTED`, `KILLED`: ended from outside. `ENDED`: QEMU ended by itself before the guest had booted, or crashed. */
export type GuestErrorCode = 'TIMEOUT' | 'ABORTED' | 'KILLED' | 'ENDED' | 'START'

export class GuestError extends Error {
  override readonly name = 'GuestError'
  readonly code: GuestErrorCode

  constructor (code: GuestErrorCode, message: string, options?: ErrorOptions) {
    super(message, options)
    this.code = code
  }
}

export interface DebianImage {
  image: string
  kernel: string
  initrd: string
}

let imageMade: Promise<DebianImage> | undefined

/**
 * The Debian 12 image that scripts/make-debian-image makes (a minute or two the first time on a machine, milliseconds
 * after). It belongs to everybody: no machine may write to it.
 */
export function debianImage (): Promise<DebianImage> {
  imageMade ??= makeImage().catch((error: unknown) => {
    imageMade = undefined
    throw error
  })
  return imageMade
}

async function makeImage (): Promise<DebianImage> {
  const made = run(fileURLToPath(new URL('../../scripts/make-debian-image', import.meta.url)))
  made.child.stderr?.pipe(process.stderr, { end: false })
  return JSON.parse((await made).stdout) as DebianImage
}

let accelProbed: Promise<Accel> | undefined

/**
 * What can run a guest here, asked once per process. `/dev/kvm` being there says little: inside some virtual machines
 * QEMU dies of a register that it may not set, or, with another processor model, real-mode code runs and Linux hangs.
 * So a Linux kernel is started, without a root file system, and we use KVM if it gets as far as its panic.
 * `P2PVM_QEMU_ACCEL` (kvm, tcg) overrules this.
 */
export function probeAccel (): Promise<Accel> {
  accelProbed ??= probe()
  return accelProbed
}

async function probe (): Promise<Accel> {
  const told = process.env.P2PVM_QEMU_ACCEL
  if (told === 'kvm' || told === 'tcg') return told
  try {
    await access('/dev/kvm', constants.R_OK | constants.W_OK)
  } catch {
    return 'tcg'
  }
  const { kernel } = await debianImage()
  return (await reachesPanic('kvm', kernel)) ? 'kvm' : 'tcg'
}

async function reachesPanic (accel: Accel, kernel: string): Promise<boolean> {
  const args = [...machineArgs(accel, 256), '-kernel', kernel, '-append', 'console=ttyS0 panic=-1']
  try {
    const { stdout } = await run('setpriv', args, { timeout: PROBE_TIMEOUT_MS, killSignal: 'SIGKILL' })
    return stdout.includes('Kernel panic')
  } catch {
    return false
  }
}

// setpriv becomes QEMU (same pid) after it has asked the kernel to kill it when the thread that started it dies: a test
// runner that is killed leaves no machine behind. Without -nodefaults the guest probes a CD drive and a floppy drive.
// Under emulation `max`, the newest processor, takes a fifth longer to boot than the oldest one that Debian runs on.
function machineArgs (accel: Accel, memoryMiB: number): string[] {
  return [
    ...['--pdeathsig', 'KILL', '--', 'qemu-system-x86_64', '-nodefaults', '-no-reboot', '-machine', 'q35'],
    ...(accel === 'kvm' ? ['-accel', 'kvm', '-cpu', 'max'] : ['-accel', 'tcg,thread=multi', '-cpu', 'qemu64']),
    ...['-m', String(memoryMiB), '-net', 'none', '-display', 'none', '-monitor', 'none', '-serial', 'stdio']
  ]
}

/** Starts a machine and waits until it has powered off. @throws GuestError, with the end of the console in its message */
export async function bootGuest (options: GuestOptions): Promise<GuestResult> {
  return await (await startGuest(options)).ended
}

/** Starts a machine. The caller ends it: by letting it power off, with `kill()`, or with the signal. */
export async function startGuest (options: GuestOptions): Promise<Guest> {
  const { disk, cache, kernel, initrd, append = [], qemuArgs = [], memoryMiB = 512, timeoutMs, signal, onConsole } = options
  for (const word of append) {
    // The guest splits its command line at spaces, and knows no quotes.
    if (!/^[\x21-\x7e]+$/.test(word)) throw new GuestError('START', `not a word for a kernel command line: '${word}'`)
  }
  if (((await stat(disk)).mode & 0o222) === 0) {
    throw new GuestError('START', `${disk} is read-only, as shared images are: copy it for a machine to write to`)
  }
  const accel = await probeAccel()
  if (signal?.aborted) throw new GuestError('ABORTED', 'guest was aborted before it started', { cause: signal.reason })

  const startedAt = performance.now()
  const child = spawn('setpriv', [
    ...machineArgs(accel, memoryMiB),
    ...qemuArgs,
    // QEMU takes a comma for the end of the path, two for one.
    ...['-drive', `file=${disk.replaceAll(',', ',,')},format=raw,if=virtio,cache=${cache}`],
    ...['-kernel', kernel, '-initrd', initrd],
    // panic=1: reboot on a panic, in the initrd too, which is the end because of -no-reboot. The mitigations protect nobody here.
    ...['-append', ['root=/dev/vda rw console=ttyS0 quiet panic=1 mitigations=off', ...append].join(' ')]
  ])
  const booted = Promise.withResolvers<number>()
  const ended = Promise.withResolvers<GuestResult>()
  // Whoever waits for one of the two need not wait for the other.
  booted.promise.catch(() => undefined)
  ended.promise.catch(() => undefined)

  let console = ''
  let qemuSays = ''
  let bootMs: number | undefined
  let stopped: { code: GuestErrorCode; why: string; cause?: unknown } | undefined
  let killTimer: NodeJS.Timeout | undefined
  let over = false

  const fail = (code: GuestErrorCode, why: string, cause?: unknown) => {
    const tail = console.trimEnd().split('\n').slice(-CONSOLE_TAIL_LINES).join('\n')
    const printed = tail === '' ? 'its console printed nothing' : `the end of its console:\n${tail}`
    const said = qemuSays === '' ? '' : `\nQEMU said: ${qemuSays.trimEnd()}`
    const message = `${why} (${disk}, ${accel})${said}\n${printed}`
    const error = new GuestError(code, message, cause === undefined ? {} : { cause })
    booted.reject(error)
    ended.reject(error)
  }
  const stop = (code: GuestErrorCode, why: string, cause?: unknown) => {
    if (over || stopped !== undefined) return
    stopped = { code, why, cause }
    child.kill('SIGKILL')
    killTimer = setTimeout(() => {
      fail(code, `${why}; process ${child.pid} could not be killed: is its disk on a mount that does not answer?`, cause)
    }, KILL_TIMEOUT_MS)
  }
  const onAbort = () => {
    stop('ABORTED', 'guest was aborted', signal?.reason)
  }
  const timer = setTimeout(() => {
    stop('TIMEOUT', `guest was not done after ${timeoutMs} ms (${bootMs === undefined ? 'not booted' : 'booted'})`)
  }, timeoutMs)
  signal?.addEventListener('abort', onAbort)
  const settle = () => {
    over = true
    clearTimeout(timer)
    clearTimeout(killTimer)
    signal?.removeEventListener('abort', onAbort)
  }

  child.stdout.setEncoding('utf8').on('data', (raw: string) => {
    // The marker may come in two pieces, but never begins before the last line that is not complete.
    const from = console.lastIndexOf('\n') + 1
    const text = raw.replaceAll('\r', '')
    console += text
    onConsole?.(text)
    if (bootMs === undefined && console.includes(`${BOOTED}\n`, from)) {
      bootMs = performance.now() - startedAt
      booted.resolve(bootMs)
    }
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    qemuSays += text
  })
  // What is typed as the machine goes away is lost, as on a real one.
  child.stdin.on('error', () => undefined)
  child.on('error', (error) => {
    settle()
    fail('START', 'could not start setpriv', error)
  })
  // `close`, not `exit`: by then all that was printed has been read.
  child.on('close', (exitCode, killedBy) => {
    settle()
    if (stopped !== undefined) {
      fail(stopped.code, stopped.why, stopped.cause)
    } else if (bootMs === undefined || exitCode === null) {
      fail('ENDED', `QEMU ended (${killedBy ?? `exit code ${exitCode}`}), ${bootMs === undefined ? 'not ' : ''}booted`)
    } else {
      ended.resolve({ console, bootMs, exitCode })
    }
  })

  return {
    pid: child.pid ?? 0,
    console: () => console,
    booted: booted.promise,
    ended: ended.promise,
    type: (text) => {
      child.stdin.write(text)
    },
    kill: async () => {
      stop('KILLED', 'guest was killed')
      // Whether it had ended before, and how, is for those who wait for `ended`; but a process that stays is an error here.
      await ended.promise.catch((error: unknown) => {
        if (child.exitCode === null && child.signalCode === null && child.pid !== undefined) throw error
      })
    }
  }
}
