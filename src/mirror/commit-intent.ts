/**
 * The publication that a commit has asked for and not seen confirmed: `<working copy>/commit.json`, replaced atomically. Each
 * working copy of a group has the whole of it, so that each can finish it. The same request again has the same outcome
 * (blobs.ts), so finishing it twice is harmless, and losing it is not.
 */
import { readFile, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { ChunkId } from '../protocols/cid.ts'
import type { GroupMember, GroupRequest } from '../versioning/blobs.ts'
import { isNodeError, replaceFile, syncFolder } from './files.ts'

export interface CommitIntent {
  readonly request: GroupRequest
  /** Which of its members this working copy is. */
  readonly member: number
}

interface StoredMember extends Omit<GroupMember, 'chunks'> {
  readonly chunks: ReadonlyArray<readonly [number, ChunkId | null]>
}

interface StoredIntent {
  readonly request: Omit<GroupRequest, 'members'> & { readonly members: readonly StoredMember[] }
  readonly member: number
}

export async function readCommitIntent (folder: string): Promise<CommitIntent | undefined> {
  try {
    const { request, member } = JSON.parse(await readFile(pathIn(folder), 'utf8')) as StoredIntent
    return { request: { ...request, members: request.members.map((one) => ({ ...one, chunks: new Map(one.chunks) })) }, member }
  } catch (error) {
    if (isNodeError(error, 'ENOENT')) return undefined
    throw error
  }
}

/** Durable when it returns. */
export async function writeCommitIntent (folder: string, { request, member }: CommitIntent): Promise<void> {
  const stored: StoredIntent = { request: { ...request, members: request.members.map((one) => ({ ...one, chunks: [...one.chunks] })) }, member }
  await replaceFile(pathIn(folder), JSON.stringify(stored))
}

export async function clearCommitIntent (folder: string): Promise<void> {
  await rm(pathIn(folder), { force: true })
  await syncFolder(dirname(pathIn(folder)))
}

function pathIn (folder: string): string {
  return join(folder, 'commit.json')
}
