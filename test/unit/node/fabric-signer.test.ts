import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { fabricIdOf, type FabricRecord } from '../../../src/dht/fabric.ts'
import { type DataDir, dataDirAt } from '../../../src/node/data-dir.ts'
import { loadOrCreateIdentity, signerOfIdentity } from '../../../src/node/identity.ts'
import { loadFabricSigner } from '../../../src/node/join-fabric.ts'

let dataDir: DataDir

beforeAll(async () => { dataDir = dataDirAt(await mkdtemp(join(tmpdir(), 'p2pvm-signer-'))) })
afterAll(async () => { await rm(dataDir.root, { recursive: true }) })

const fabricOf = (publicKey: Uint8Array): FabricRecord =>
  ({ id: fabricIdOf(publicKey), publicKey, versionManager: { peer: 'peer', addresses: [] }, createdMs: 0 })

test('the version manager signs with the key of its fabric, and does not start without it, or with another one', async () => {
  const { publicKey } = signerOfIdentity(await loadOrCreateIdentity(dataDir.identity))
  await expect(loadFabricSigner(dataDir, fabricOf(publicKey))).rejects.toMatchObject({ code: 'ERR_CORRUPT', fields: { path: dataDir.fabricKey } })
  const { publicKey: fabricKey } = await loadOrCreateIdentity(dataDir.fabricKey)
  expect((await loadFabricSigner(dataDir, fabricOf(fabricKey.raw))).publicKey).toEqual(new Uint8Array(fabricKey.raw))
  await expect(loadFabricSigner(dataDir, fabricOf(publicKey))).rejects.toMatchObject({ code: 'ERR_CORRUPT', message: expect.stringContaining('not that of the fabric') })
})
