/**
 * Configuration: each setting's flag, environment variable, place in the file, default, and how to read it. The first of
 * flag > P2PVM_* > file > default that names a value wins, and `p2pvm config` shows which one it was.
 *
 * The file is JSON, `{"capacity": "2TiB", "bootstrap": ["/ip4/…"]}`, keys as the flags. Not for: what a single command
 * takes (`--name`, `--json`), which is in that command's file.
 */
import { readFileSync, statfsSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import type { Role } from '../dht/membership.ts'
import { DRIVER_CHOICES, type DriverChoice, type DriverName } from '../mirror/driver.ts'
import { CHUNK_BYTES_MAX } from '../protocols/cid.ts'
import { P2pvmError } from '../protocols/errors.ts'
import { formatBytes, parseBytes } from './units.ts'
import { LOG_LEVELS, type LogLevel } from './world.ts'

/** All that one peer is told from outside. */
export interface DaemonConfig {
  /** Identity, membership, chunks, records, working copies and the registry of mounts; absolute. */
  readonly dataDir: string
  readonly roles: readonly Role[]
  /** Multiaddrs to listen on; port 0 lets the system choose. */
  readonly listen: readonly string[]
  /** Multiaddrs with /p2p/PEER. Empty on the peer that makes the fabric, and where membership is remembered. */
  readonly bootstrap: readonly string[]
  /** Path of the control socket; absolute. */
  readonly control: string
  /** What a storage peer offers: its weight in placement. */
  readonly capacityBytes: number
  /** What the files of the chunk cache may take. */
  readonly cacheBytesMax: number
  readonly replicas: number
  readonly writeQuorum: number
  /** False: place and find by kad-dht lookups only. */
  readonly memberList: boolean
  readonly logLevel: LogLevel
  /** To be called once, when requests are served; the command prints it as the one line on stdout. */
  readonly onReady: (ready: DaemonReady) => void
  /** Aborts on SIGTERM and SIGINT: the peer stops, and `runDaemon` returns when it has. */
  readonly signal: AbortSignal
}

export interface DaemonReady {
  readonly peerId: string
  readonly addresses: readonly string[]
  readonly control: string
}

/** All that one mount is told from outside; its folders it learns from the daemon behind `control`. */
export interface MountConfig {
  /** Absolute, an existing folder. */
  readonly mountpoint: string
  readonly control: string
  readonly logLevel: LogLevel
  /** A read that waits for the fabric gets EIO after this. */
  readonly missDeadlineMs: number
  /** A line to stderr per request that the main thread has answered. */
  readonly trace: boolean
  /** To be called once, when the kernel's requests are served. */
  readonly onReady: (ready: MountReady) => void
  /** Aborts on SIGTERM and SIGINT: it unmounts, and `runMount` returns when it has. */
  readonly signal: AbortSignal
}

export interface MountReady {
  readonly mountpoint: string
  readonly pid: number
  readonly driver: DriverName
}

export type Origin = 'flag' | 'environment' | 'file' | 'default'

interface One<T> {
  readonly help: string
  readonly read: (text: string) => T
  readonly fallback: (machine: Machine, dataDir: () => string) => T
}

/** Given as several flags, a JSON array, or separated by commas. */
interface List<T> {
  readonly help: string
  readonly list: true
  readonly read: (text: string) => T // each
  readonly fallback: (machine: Machine) => readonly T[]
}

/** Where a process runs: all that defaults depend on. */
export interface Machine {
  readonly env: Readonly<Record<string, string | undefined>>
  readonly root: boolean
  readonly home: string
}

/** Equal for all who do not say otherwise: then chunks spread evenly. */
const CAPACITY_BYTES_DEFAULT = 100 * 2 ** 30
/** Any two chunks fit. */
const CACHE_BYTES_MIN = 2 * CHUNK_BYTES_MAX
const CACHE_BYTES_DEFAULT_MIN = 2 ** 30
const CACHE_SHARE_DEFAULT = 1 / 10
/** Who waits longer than a day is not told of anything. */
const SECONDS_MAX = 24 * 3600
const ROLES: readonly Role[] = ['storage', 'versions', 'compute']
/** linux/un.h: sun_path has 108 bytes, the last is NUL. */
const SOCKET_PATH_BYTES_MAX = 107

const one = <T>(definition: One<T>): One<T> => definition
const list = <T>(definition: Omit<List<T>, 'list'>): List<T> => ({ ...definition, list: true })

/** Keys are the long flags; the environment variable of `log-level` is P2PVM_LOG_LEVEL. */
export const SETTINGS = {
  control: one({ help: 'path of the daemon\'s control socket', read: readSocketPath, fallback: defaultControl }),
  data: one({ help: 'folder of this peer\'s state', read: (text) => resolve(text), fallback: defaultData }),
  role: list<Role>({ help: 'storage, versions and compute, any of them', read: oneOf('role', ROLES), fallback: () => ['storage'] }),
  listen: list({ help: 'address to listen on (multiaddr)', read: readMultiaddr, fallback: () => ['/ip4/0.0.0.0/tcp/4190'] }),
  bootstrap: list({ help: 'address of a peer of the fabric (multiaddr with /p2p/PEER)', read: readMultiaddr, fallback: () => [] }),
  capacity: one({ help: 'what a storage peer offers: its weight in placement', read: readCapacity, fallback: () => CAPACITY_BYTES_DEFAULT }),
  'cache-size': one({
    help: 'what the chunk cache may take; unless told, a tenth of the file system of --data, at least 1 GiB',
    read: readCacheSize,
    fallback: (_, dataDir) => Math.max(CACHE_BYTES_DEFAULT_MIN, Math.floor(fileSystemBytes(dataDir()) * CACHE_SHARE_DEFAULT))
  }),
  replicas: one({ help: 'copies of each chunk, R', read: readCount, fallback: () => 3 }),
  'write-quorum': one({ help: 'copies on disk before a write is acknowledged, W', read: readCount, fallback: () => 2 }),
  'member-list': one<'on' | 'off'>({ help: 'on: hold the whole member list; off: find peers by lookups only', read: oneOf('member-list', ['on', 'off']), fallback: () => 'on' }),
  driver: one<DriverChoice>({
    help: 'what a mount talks to the kernel with: direct (needs root), fuse-native, or auto: the first of them that can mount',
    read: oneOf('driver', DRIVER_CHOICES),
    fallback: () => 'auto'
  }),
  'miss-deadline': one({ help: 'seconds that a read of a mount waits for what is not here; then it fails (EIO)', read: readSeconds, fallback: () => 30 }),
  'log-level': one<LogLevel>({ help: LOG_LEVELS.join(', '), read: oneOf('log-level', LOG_LEVELS), fallback: () => 'info' })
}

export type SettingName = keyof typeof SETTINGS
export type SettingValue<N extends SettingName> =
  (typeof SETTINGS)[N] extends List<infer T> ? readonly T[] : (typeof SETTINGS)[N] extends One<infer T> ? T : never

export interface ConfigRow {
  readonly name: SettingName
  readonly value: unknown
  readonly origin: Origin
  /** The variable or the file that named it. */
  readonly from: string | null
}

/** Values as the command line gave them, by flag name; undefined where it did not. */
export type Flags = Readonly<Partial<Record<SettingName, string | readonly string[] | undefined>>>

export class Config {
  readonly #flags: Flags
  readonly #machine: Machine
  readonly #file: { readonly path: string, readonly values: Readonly<Record<string, unknown>> }

  /** ERR_USAGE when the file cannot be understood. */
  constructor (flags: Flags, machine: Machine = thisMachine()) {
    this.#flags = flags
    this.#machine = machine
    this.#file = readConfigFile(machine)
  }

  /** ERR_USAGE, naming where the value came from, when it cannot be understood. */
  get<N extends SettingName> (name: N): SettingValue<N> {
    return this.row(name).value as SettingValue<N>
  }

  row (name: SettingName): ConfigRow {
    const flag = this.#flags[name]
    if (flag !== undefined) return { name, value: read(name, flag, `--${name}`), origin: 'flag', from: `--${name}` }
    const variable = variableOf(name)
    const fromEnvironment = this.#machine.env[variable]
    if (fromEnvironment !== undefined && fromEnvironment !== '') {
      return { name, value: read(name, fromEnvironment, variable), origin: 'environment', from: variable }
    }
    const fromFile = this.#file.values[name]
    if (fromFile !== undefined) return { name, value: read(name, fromFile, this.#file.path), origin: 'file', from: this.#file.path }
    return { name, value: SETTINGS[name].fallback(this.#machine, () => this.get('data')), origin: 'default', from: null }
  }

  rows (): ConfigRow[] {
    return (Object.keys(SETTINGS) as SettingName[]).map((name) => this.row(name))
  }
}

function read (name: SettingName, raw: unknown, from: string): unknown {
  const setting: One<unknown> | List<unknown> = SETTINGS[name]
  const texts = (Array.isArray(raw) ? raw : [raw]).map((item: unknown) => {
    if (typeof item === 'string' || typeof item === 'number') return String(item)
    throw new P2pvmError('ERR_USAGE', `${from}: ${name} must be text or a number`)
  })
  try {
    if (!('list' in setting)) {
      if (texts.length !== 1) throw new P2pvmError('ERR_USAGE', `${name} takes one value`)
      return setting.read(texts[0] ?? '')
    }
    return texts.flatMap((text) => text.split(',')).map((text) => text.trim()).filter((text) => text !== '').map(setting.read)
  } catch (error) {
    if (error instanceof P2pvmError) throw new P2pvmError(error.code, `${from}: ${error.message}`, error.fields, error)
    throw error
  }
}

function readConfigFile ({ env, root, home }: Machine): { path: string, values: Record<string, unknown> } {
  const folder = root ? '/etc' : env['XDG_CONFIG_HOME'] ?? join(home, '.config')
  const path = env['P2PVM_CONFIG'] ?? join(folder, 'p2pvm', 'config.json')
  let text
  try {
    text = readFileSync(path, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT' && env['P2PVM_CONFIG'] === undefined) return { path, values: {} }
    throw new P2pvmError('ERR_USAGE', `cannot read the configuration file ${path}: ${(error as Error).message}`, { path }, error)
  }
  let values: unknown
  try {
    values = JSON.parse(text)
  } catch (error) {
    throw new P2pvmError('ERR_USAGE', `${path} is not JSON: ${(error as Error).message}`, { path }, error)
  }
  if (typeof values !== 'object' || values === null || Array.isArray(values)) throw new P2pvmError('ERR_USAGE', `${path} must hold one JSON object`, { path })
  const unknown = Object.keys(values).filter((key) => !(key in SETTINGS))
  if (unknown.length > 0) {
    throw new P2pvmError('ERR_USAGE', `${path}: no such setting: ${unknown.join(', ')}; there are ${Object.keys(SETTINGS).join(', ')}`, { path })
  }
  return { path, values: values as Record<string, unknown> }
}

export function variableOf (name: SettingName): string {
  return `P2PVM_${name.toUpperCase().replaceAll('-', '_')}`
}

function thisMachine (): Machine {
  return { env: process.env, root: process.getuid?.() === 0, home: homedir() }
}

function defaultData ({ env, root, home }: Machine): string {
  return root ? '/var/lib/p2pvm' : join(env['XDG_DATA_HOME'] ?? join(home, '.local', 'share'), 'p2pvm')
}

function defaultControl (machine: Machine): string {
  if (machine.root) return '/run/p2pvm/control.sock'
  const runtime = machine.env['XDG_RUNTIME_DIR']
  return join(runtime === undefined ? defaultData(machine) : join(runtime, 'p2pvm'), 'control.sock')
}

function readSocketPath (text: string): string {
  const path = resolve(text)
  if (Buffer.byteLength(path) > SOCKET_PATH_BYTES_MAX) {
    throw new P2pvmError('ERR_USAGE', `a socket's path has at most ${SOCKET_PATH_BYTES_MAX} bytes, this one is longer: ${path}`, { path })
  }
  return path
}

/** Only the shape: libp2p reads the rest, and says what is wrong with it. */
function readMultiaddr (text: string): string {
  if (!/^(\/[^/\s]+)+$/.test(text)) throw new P2pvmError('ERR_USAGE', `not an address (say /ip4/192.0.2.1/tcp/4190): ${text}`)
  return text
}

function readCapacity (text: string): number {
  const bytes = parseBytes(text)
  if (bytes === 0) throw new P2pvmError('ERR_USAGE', 'a capacity of nothing: leave the role storage away instead')
  return bytes
}

function readCacheSize (text: string): number {
  const bytes = parseBytes(text)
  if (bytes < CACHE_BYTES_MIN) throw new P2pvmError('ERR_USAGE', `a cache takes at least ${formatBytes(CACHE_BYTES_MIN)}, not ${text}`)
  return bytes
}

/** Of the one that the folder is on, or will be. */
function fileSystemBytes (folder: string): number {
  try {
    const { blocks, bsize } = statfsSync(folder)
    return blocks * bsize
  } catch (error) {
    if (folder === dirname(folder)) throw error
    return fileSystemBytes(dirname(folder))
  }
}

/** R and W are asked of the 20 nearest members; more than that cannot be placed. */
const REPLICAS_MAX = 20

function readCount (text: string): number {
  const count = Number(text)
  if (!Number.isInteger(count) || count < 1 || count > REPLICAS_MAX) throw new P2pvmError('ERR_USAGE', `a number of replicas from 1 to ${REPLICAS_MAX}, not ${text}`)
  return count
}

function readSeconds (text: string): number {
  const seconds = Number(text)
  if (text.trim() === '' || !Number.isFinite(seconds) || seconds <= 0 || seconds > SECONDS_MAX) throw new P2pvmError('ERR_USAGE', `seconds, more than 0 and at most ${SECONDS_MAX}, not ${text}`)
  return seconds
}

function oneOf<const T extends string> (name: string, values: readonly T[]): (text: string) => T {
  return (text) => {
    const found = values.find((value) => value === text)
    if (found === undefined) throw new P2pvmError('ERR_USAGE', `${name} is one of ${values.join(', ')}, not ${text}`)
    return found
  }
}
