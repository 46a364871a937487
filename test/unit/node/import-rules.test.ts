import { ESLint } from 'eslint'
import { beforeAll, expect, test } from 'vitest'

const eslint = new ESLint({ cwd: new URL('../../..', import.meta.url).pathname })

/** The rules that a file of ours would break if it held this. */
async function broken (filePath: string, text: string): Promise<string[]> {
  const [result] = await eslint.lintText(text, { filePath })
  return (result?.messages ?? []).map(({ ruleId, message }) => ruleId ?? message)
}

// The first one loads all our types: slow on a busy machine.
beforeAll(async () => { await broken('src/protocols/cid.ts', '\n') }, 60_000)

const uses = (specifier: string): string => `import * as it from '${specifier}'\n\nexport const kept = it\n`

test.each([
  ['src/protocols/cid.ts', '../dht/chunks.ts'],
  ['src/dht/chunks.ts', '../versioning/blobs.ts'],
  ['src/versioning/blobs.ts', '../mirror/source.ts'],
  ['src/mirror/source.ts', '../node/control-api.ts'],
  ['src/mirror/fuse/protocol.ts', '../../node/control-api.ts'],
  ['src/dht/chunks.ts', 'libp2p'],
  ['src/mirror/source.ts', '@libp2p/kad-dht'],
  ['src/protocols/cid.ts', '@multiformats/multiaddr'],
  ['src/versioning/blobs.ts', 'node:fs/promises'],
  ['src/protocols/cid.ts', 'node:fs'],
  ['src/dht/chunks.ts', 'lmdb']
])('%s may not import %s', async (file, specifier) => {
  expect(await broken(file, uses(specifier))).toContain('no-restricted-imports')
})

test.each([
  ['src/node/control-api.ts', '../protocols/cid.ts'],
  ['src/mirror/source.ts', '../versioning/blobs.ts'],
  ['src/mirror/source.ts', 'node:fs'],
  ['src/versioning/blobs.ts', '../dht/chunks.ts'],
  ['src/dht/chunks.ts', '../protocols/cid.ts'],
  ['src/dht/node-disk.ts', 'node:fs/promises']
])('%s may import %s', async (file, specifier) => {
  expect(await broken(file, uses(specifier))).not.toContain('no-restricted-imports')
})

test.each([
  ['no-restricted-properties', 'export const now = Date.now()\n'],
  ['no-restricted-properties', 'export const chance = Math.random()\n'],
  ['no-restricted-globals', 'setTimeout(() => {}, 1)\n'],
  ['no-restricted-globals', 'export const timer = setInterval(() => {}, 1)\n'],
  ['no-restricted-syntax', 'export const now = new Date()\n'],
  ['no-restricted-syntax', 'export function leave (x: Disposable): void {\n  using kept = x\n}\n'],
  ['@typescript-eslint/no-floating-promises', 'Promise.reject(new Error())\n']
])('%s is broken in a domain room by: %s', async (rule, text) => {
  for (const file of ['src/protocols/cid.ts', 'src/dht/chunks.ts', 'src/versioning/blobs.ts', 'src/mirror/source.ts']) {
    expect(await broken(file, text)).toContain(rule)
  }
})
