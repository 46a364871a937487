/** The member list of the last run, `members.cbor`: a peer that starts again needs no bootstrap address. */
import { readFile } from 'node:fs/promises'
import type { StoredMembers } from '../dht/member-list.ts'
import { decodeCbor, encodeCbor } from '../protocols/codec.ts'
import { boolean, record } from '../protocols/decode.ts'
import { decodeStoredRows, encodeRow } from '../protocols/member-protocol.ts'
import type { DataDir } from './data-dir.ts'
import { replaceFile } from '../mirror/files.ts'

const decodeStored = record({ rows: decodeStoredRows, complete: boolean })

/** undefined on a first start, and when the file cannot be understood: it is only a memory. */
export async function loadMembers ({ members }: DataDir): Promise<StoredMembers | undefined> {
  try {
    return decodeStored(decodeCbor(await readFile(members)))
  } catch {
    return undefined
  }
}

export async function saveMembers ({ members }: DataDir, { rows, complete }: StoredMembers): Promise<void> {
  await replaceFile(members, encodeCbor({ rows: rows.map(encodeRow), complete }))
}
