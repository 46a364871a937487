/**
 * `npm run testnet -- up [--storage 4] [--compute 2] [--folder DIR]`, `status`, `down`: a fabric that stays until it is taken
 * down. What runs is written down in `<folder>/testnet.json`; `down` ends those processes, and no others.
 */
import { existsSync, readFileSync, unlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { ControlClient } from '../src/node/control-client.ts'
import { dataDirAt } from '../src/node/data-dir.ts'
import { table } from '../src/node/output.ts'
import { type ProcessId, processIsAlive } from '../src/mirror/processes.ts'
import { formatBytes } from '../src/node/units.ts'
import { startFabric } from './fabric.ts'
import { endMounts, endProcess } from './processes.ts'

interface RunningPeer extends ProcessId {
  readonly name: string
  readonly peerId: string
  readonly data: string
  readonly control: string
  readonly addresses: readonly string[]
}

const USAGE = 'usage: testnet up [--storage N] [--compute N] [--folder DIR] | status [--folder DIR] | down [--folder DIR]'

async function main (): Promise<void> {
  const { positionals: [verb, ...rest], values } = parseArgs({
    allowPositionals: true,
    options: {
      storage: { type: 'string', default: '4' },
      compute: { type: 'string', default: '2' },
      folder: { type: 'string', default: join(tmpdir(), 'p2pvm-testnet') }
    }
  })
  const folder = resolve(values.folder)
  const state = join(folder, 'testnet.json')
  if (rest.length > 0) throw new Error(USAGE)
  switch (verb) {
    case 'up': return await up(folder, state, { storage: countOf(values.storage, 1), compute: countOf(values.compute, 0) })
    case 'status': return await status(readState(state))
    case 'down': return await down(readState(state), state)
    default: throw new Error(USAGE)
  }
}

function countOf (text: string, min: number): number {
  const count = Number(text)
  if (!Number.isInteger(count) || count < min) throw new Error(`a number of peers from ${min} on, not ${text}`)
  return count
}

function readState (path: string): RunningPeer[] {
  if (!existsSync(path)) throw new Error(`no testnet is up: ${path} is missing`)
  return JSON.parse(readFileSync(path, 'utf8')) as RunningPeer[]
}

async function up (folder: string, state: string, counts: { readonly storage: number, readonly compute: number }): Promise<void> {
  if (existsSync(state)) throw new Error(`a testnet is up in ${folder}: take it down first`)
  const fabric = await startFabric({ ...counts, folder, detached: true })
  const peers: RunningPeer[] = [...fabric.storage, ...fabric.compute].map(({ name, peerId, data, control, addresses, id }) => ({ name, peerId, data, control, addresses, ...id }))
  writeFileSync(state, `${JSON.stringify(peers, null, 2)}\n`)
  await status(peers)
}

async function status (peers: readonly RunningPeer[]): Promise<void> {
  const rows = await Promise.all(peers.map(async (peer) => {
    const { name, pid, control } = peer
    if (!await processIsAlive(peer)) return [name, pid, 'gone', null, null, null, control]
    const client = new ControlClient(control)
    try {
      const { membersUp, members, stored, cache } = await client.status()
      return [name, pid, 'up', `${membersUp}/${members}`, stored && formatBytes(stored.bytes), cache && formatBytes(cache.bytes), control]
    } catch (error) {
      return [name, pid, (error as Error).message, null, null, null, control]
    } finally {
      client.close()
    }
  }))
  console.log(table(['PEER', 'PID', 'STATE', 'MEMBERS UP', 'STORED', 'CACHE', 'CONTROL'], rows))
}

async function down (peers: readonly RunningPeer[], state: string): Promise<void> {
  for (const { name, data, ...id } of [...peers].reverse()) {
    await endMounts(dataDirAt(data).mounts)
    console.log(`${name}: ${await endProcess(id)}`)
  }
  unlinkSync(state)
}

try {
  await main()
} catch (error) {
  console.error(`testnet: ${(error as Error).message}`)
  process.exitCode = 1
}
