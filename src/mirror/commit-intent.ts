/**
 * The publication that a commit has asked for and not seen confirmed: `<working copy>/commit.json`, replaced atomically. Each
 * working copy of a group has the whole of it, so that each can finish it. The same request again has the same outcome
 * (blobs.ts), so finishing it twice is harmless, and losing it is not.
 *
 * And what became of the last commit that was asked for under an id, `committed.json`: who has not heard the answer asks again.
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
  /** Under which the commit was asked for. */
  readonly id?: string | undefined
}

export interface CommitOutcome {
  readonly id: string
  readonly blob: string
  readonly version: number
  readonly chunks: number
  readonly bytes: number
  readonly freezeMs: number
}

interface StoredMember extends Omit<GroupMember, 'chunks'> {
  readonly chunks: ReadonlyArray<readonly [number, ChunkId | null]>
}

interface StoredIntent extends Omit<CommitIntent, 'request'> {
  readonly request: Omit<GroupRequest, 'members'> & { readonly members: readonly StoredMember[] }
}

const INTENT = 'commit.json'
const OUTCOME = 'committed.json'

export async function readCommitIntent (folder: string): Promise<CommitIntent | undefined> {
  const stored = await readJson(join(folder, INTENT)) as StoredIntent | undefined
  if (stored === undefined) return undefined
  const { request } = stored
  return { ...stored, request: { ...request, members: request.members.map((one) => ({ ...one, chunks: new Map(one.chunks) })) } }
}

/** Durable when it returns. */
export async function writeCommitIntent (folder: string, { request, ...intent }: CommitIntent): Promise<void> {
  const stored: StoredIntent = { request: { ...request, members: request.members.map((one) => ({ ...one, chunks: [...one.chunks] })) }, ...intent }
  await replaceFile(join(folder, INTENT), JSON.stringify(stored))
}

export async function clearCommitIntent (folder: string): Promise<void> {
  const path = join(folder, INTENT)
  await rm(path, { force: true })
  await syncFolder(dirname(path))
}

export async function readCommitOutcome (folder: string): Promise<CommitOutcome | undefined> {
  return await readJson(join(folder, OUTCOME)) as CommitOutcome | undefined
}

/** Durable when it returns. */
export async function writeCommitOutcome (folder: string, outcome: CommitOutcome): Promise<void> {
  await replaceFile(join(folder, OUTCOME), JSON.stringify(outcome))
}

async function readJson (path: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(path, 'utf8')) as unknown
  } catch (error) {
    if (isNodeError(error, 'ENOENT')) return undefined
    throw error
  }
}
