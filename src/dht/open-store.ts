/** The key-value store of a peer's disk: lmdb with a log in front of it. Owns no state. */
import { randomBytes } from 'node:crypto'
import { setImmediate as turn } from 'node:timers/promises'
import type { KeyValueStore } from '../protocols/seams.ts'
import { openLmdbStore } from './lmdb-store.ts'
import { LoggedStore } from './logged-store.ts'
import { nodeDisk } from './node-disk.ts'

/** Opens or creates the database at `path` and its log beside it; the folder is created and synced. ERR_CORRUPT, ERR_DISK_FULL. */
export async function openStore (path: string): Promise<KeyValueStore> {
  const store = await openLmdbStore(path)
  try {
    return await LoggedStore.open({ store, disk: nodeDisk, path, random: { bytes: randomBytes }, turn: async () => { await turn() } })
  } catch (error) {
    await store.close()
    throw error
  }
}
