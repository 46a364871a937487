/**
 * The publication that a commit has asked for and not seen confirmed: `<working copy>/commit.json`, replaced atomically.
 * The same request again has the same outcome (blobs.ts), so finishing it twice is harmless, and losing it is not.
 */
import { readFile, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { ChunkId } from '../protocols/cid.ts'
import type { PublishRequest } from '../versioning/blobs.ts'
import { isNodeError, replaceFile, syncFolder } from './files.ts'

interface StoredIntent extends Omit<PublishRequest, 'chunks'> {
  readonly chunks: ReadonlyArray<readonly [number, ChunkId | null]>
}

export async function readCommitIntent (folder: string): Promise<PublishRequest | undefined> {
  try {
    const stored = JSON.parse(await readFile(pathIn(folder), 'utf8')) as StoredIntent
    return { ...stored, chunks: new Map(stored.chunks) }
  } catch (error) {
    if (isNodeError(error, 'ENOENT')) return undefined
    throw error
  }
}

/** Durable when it returns. */
export async function writeCommitIntent (folder: string, request: PublishRequest): Promise<void> {
  const stored: StoredIntent = { ...request, chunks: [...request.chunks] }
  await replaceFile(pathIn(folder), JSON.stringify(stored))
}

export async function clearCommitIntent (folder: string): Promise<void> {
  await rm(pathIn(folder), { force: true })
  await syncFolder(dirname(pathIn(folder)))
}

function pathIn (folder: string): string {
  return join(folder, 'commit.json')
}
