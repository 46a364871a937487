import { mkdtempSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { Config, type Flags, type Machine } from '../../../src/node/config.ts'

const folder = mkdtempSync(join(tmpdir(), 'p2pvm-config-'))
afterAll(() => { rmSync(folder, { recursive: true }) })

const file = (text: string): string => {
  const path = join(folder, 'config.json')
  writeFileSync(path, text)
  return path
}

const machine = (env: Machine['env'] = {}, root = false): Machine => ({ env: { XDG_CONFIG_HOME: folder, ...env }, root, home: '/home/me' })
const config = (flags: Flags, env?: Machine['env'], root?: boolean): Config => new Config(flags, machine(env, root))

describe('precedence', () => {
  test('flag > environment > file > default, and each says where it came from', () => {
    const P2PVM_CONFIG = file('{"replicas": 5, "write-quorum": "4", "data": "/from/file"}')
    const all = config({ replicas: '7' }, { P2PVM_CONFIG, P2PVM_REPLICAS: '6', P2PVM_WRITE_QUORUM: '3' })
    expect(all.row('replicas')).toEqual({ name: 'replicas', value: 7, origin: 'flag', from: '--replicas' })
    expect(all.row('write-quorum')).toEqual({ name: 'write-quorum', value: 3, origin: 'environment', from: 'P2PVM_WRITE_QUORUM' })
    expect(all.row('data')).toEqual({ name: 'data', value: '/from/file', origin: 'file', from: P2PVM_CONFIG })
    expect(all.row('log-level')).toEqual({ name: 'log-level', value: 'info', origin: 'default', from: null })
    expect(all.rows().length).toBe(13)
  })

  test('an empty variable says nothing', () => {
    expect(config({}, { P2PVM_REPLICAS: '' }).get('replicas')).toBe(3)
  })
})

describe('values', () => {
  test('lists come from several flags, commas, and JSON arrays', () => {
    expect(config({ role: ['storage', 'compute'] }).get('role')).toEqual(['storage', 'compute'])
    expect(config({}, { P2PVM_ROLE: 'storage, versions' }).get('role')).toEqual(['storage', 'versions'])
    expect(config({}, { P2PVM_CONFIG: file('{"listen": ["/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2"]}') }).get('listen')).toHaveLength(2)
  })

  test('seconds may have a fraction, and end within a day', () => {
    expect(config({}).get('miss-deadline')).toBe(30)
    expect(config({ 'miss-deadline': '0.5' }).get('miss-deadline')).toBe(0.5)
    for (const bad of ['0', '-1', '', 'soon', '86401', 'Infinity']) expect(() => config({ 'miss-deadline': bad }).get('miss-deadline'), bad).toThrow('seconds')
  })

  test('sizes have units', () => {
    expect(config({ capacity: '2TiB' }).get('capacity')).toBe(2 ** 41)
    expect(config({}, { P2PVM_CACHE_SIZE: '8MiB' }).get('cache-size')).toBe(2 ** 23)
  })

  test.each<[string, Flags, Machine['env'], RegExp]>([
    ['a role that is none', { role: 'king' }, {}, /--role: role is one of storage, versions, compute, not king/],
    ['replicas beyond all peers', {}, { P2PVM_REPLICAS: '21' }, /P2PVM_REPLICAS: .*from 1 to 20/],
    ['an address that is none', { listen: 'localhost:80' }, {}, /--listen: not an address/],
    ['a socket path that is too long', { control: `/${'x'.repeat(107)}` }, {}, /at most 107 bytes/],
    ['a capacity of nothing', { capacity: '0' }, {}, /--capacity/],
    ['a cache that does not hold two chunks', {}, { P2PVM_CACHE_SIZE: '7MiB' }, /P2PVM_CACHE_SIZE: .*at least 8 MiB/],
    ['a configuration file that is not there', {}, { P2PVM_CONFIG: '/nonexistent' }, /cannot read the configuration file/]
  ])('%s is refused, naming where it came from', (_, flags, env, message) => {
    expect(() => config(flags, env).rows()).toThrow(expect.objectContaining({ code: 'ERR_USAGE', message: expect.stringMatching(message) }))
  })

  test.each(['{', '[]', '"x"', '{"replica": 3}', '{"data": {}}', '{"data": ["/a", "/b"]}'])('the file %s is refused', (text) => {
    expect(() => config({}, { P2PVM_CONFIG: file(text) }).rows()).toThrow(expect.objectContaining({ code: 'ERR_USAGE' }))
  })
})

describe('defaults', () => {
  test('follow XDG for a user', () => {
    expect(config({}).get('data')).toBe('/home/me/.local/share/p2pvm')
    expect(config({}).get('control')).toBe('/home/me/.local/share/p2pvm/control.sock')
    expect(config({}, { XDG_RUNTIME_DIR: '/run/user/1000', XDG_DATA_HOME: '/data' }).get('control')).toBe('/run/user/1000/p2pvm/control.sock')
    expect(config({}, { XDG_DATA_HOME: '/data' }).get('data')).toBe('/data/p2pvm')
  })

  test('give the cache a tenth of the file system of the data, at least 1 GiB', () => {
    const { blocks, bsize } = statfsSync(folder)
    const tenth = Math.floor(blocks * bsize / 10)
    expect(config({ data: join(folder, 'not', 'yet') }).get('cache-size')).toBe(Math.max(2 ** 30, tenth))
    expect(config({ data: '/proc/self' }).get('cache-size')).toBe(2 ** 30) // a file system without a size
    expect(config({ data: folder }).row('cache-size')).toMatchObject({ origin: 'default', from: null })
  })

  test('are the system\'s folders for root', () => {
    const P2PVM_CONFIG = file('{}')
    expect(config({}, { P2PVM_CONFIG }, true).get('data')).toBe('/var/lib/p2pvm')
    expect(config({}, { P2PVM_CONFIG }, true).get('control')).toBe('/run/p2pvm/control.sock')
  })
})
