/** PROTOCOL.md tells the truth: the numbers, kinds, codes and operations in it are those of the code. */
import { expect, test } from 'vitest'
import { LEASE_MS as CHUNK_LEASE_MS } from '../../../src/dht/chunk-store.ts'
import { LEASE_GRANULARITY_MS } from '../../../src/dht/disk-chunk-store.ts'
import { MEMBERS_MAX } from '../../../src/dht/member-table.ts'
import { CLOSEST_COUNT, DOWN_AFTER_MS } from '../../../src/dht/membership.ts'
import { RECORD_LEASE_GRANULARITY_MS } from '../../../src/dht/record-store.ts'
import { RECORD_BYTES_MAX, RECORD_NAME_BYTES_MAX } from '../../../src/dht/records.ts'
import { ACKNOWLEDGEMENTS_DEFAULT, REPLICAS_DEFAULT } from '../../../src/dht/replication.ts'
import { ByteBudget } from '../../../src/protocols/byte-budget.ts'
import { AnswerChannel, type Duplex, type DuplexEvents, RequestChannel, REQUESTS_IN_FLIGHT_MAX } from '../../../src/protocols/channel.ts'
import { AUDIT_IDS_MAX, HAVE_IDS_MAX } from '../../../src/protocols/chunk-protocol.ts'
import { CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN } from '../../../src/protocols/cid.ts'
import type { ErrorCode } from '../../../src/protocols/errors.ts'
import { FABRIC_RECORD_BYTES_MAX } from '../../../src/protocols/fabric-protocol.ts'
import { BODY_BYTES_MAX, encodeFrameHeader, ERROR_BYTES_MAX, FRAME, FRAME_HEADER_BYTES } from '../../../src/protocols/frame.ts'
import { ADDRESSES_MAX, EXCHANGE_KEYS_MAX, ROWS_MAX } from '../../../src/protocols/member-protocol.ts'
import { encodeMessage } from '../../../src/protocols/message-codec.ts'
import { DATA_BYTES_MAX } from '../../../src/protocols/payload-sender.ts'
import { RECORD_BATCH_BYTES, RECORDS_MAX } from '../../../src/protocols/record-protocol.ts'
import { FRAME_BYTES_MAX, PAYLOAD_BYTES_MAX } from '../../../src/protocols/transport.ts'
import {
  GROUP_EXTENTS_MAX, GROUP_IN_FLIGHT_EXTENTS_MAX, GROUP_IN_FLIGHT_VERSIONS_MAX, GROUP_MEMBERS_MAX, HEADER_BYTES_MAX, IN_FLIGHT_EXTENTS_MAX, IN_FLIGHT_VERSIONS_MAX,
  LEASE_MS, MESSAGE_CHARACTERS_MAX, PAGE_ROWS_MAX, RENEW_MS, type VersionOperation, WAIT_MS_MAX
} from '../../../src/protocols/version-protocol.ts'
import { EXCEPTIONS_MAX } from '../../../src/versioning/attempts.ts'
import { FAN_OUT_DEFAULT } from '../../../src/versioning/blobs.ts'
import { EXTENTS_MAX } from '../../../src/versioning/extents.ts'
import { BLOB_BYTES_MAX, FAN_OUT_MAX, FAN_OUT_MIN } from '../../../src/versioning/tree-names.ts'
import { DocumentedExamples } from '../../harness/documented.ts'
import { settle } from '../../harness/fake-clock.ts'
import { KeptLog, PlainCounters } from '../../harness/quiet.ts'

const documented = new DocumentedExamples('PROTOCOL.md')

/** Counts the payload bytes that are sent while nobody grants any. */
class SilentDuplex implements Duplex {
  payloadBytes = 0
  #events: DuplexEvents | undefined

  open (events: DuplexEvents): void {
    this.#events = events
  }

  receive (...pieces: Uint8Array[]): void {
    this.#events?.data(pieces)
  }

  send (parts: Uint8Array[]): boolean {
    const all = Buffer.concat(parts)
    for (let at = 0; at < all.length; at += 4 + all.readUInt32BE(at)) {
      if (all[at + 4] === FRAME.DATA) this.payloadBytes += all.readUInt32BE(at) + 4 - FRAME_HEADER_BYTES
    }
    return true
  }

  close (): void {}
  reset (): void {}
}

function channelInit () {
  return { duplex: new SilentDuplex(), peer: 'somebody', protocol: 'chunk/1', budget: new ByteBudget(2 ** 25), counters: new PlainCounters(), log: new KeptLog() }
}

async function requestWindowBytes (): Promise<number> {
  const init = channelInit()
  const channel = new RequestChannel(init)
  channel.request({ body: null, payload: new Uint8Array(PAYLOAD_BYTES_MAX) }, new AbortController().signal).catch(() => {})
  await settle()
  channel.close()
  return init.duplex.payloadBytes
}

async function responseWindowBytes (): Promise<number> {
  const init = channelInit()
  const channel = new AnswerChannel({ ...init, handler: async () => ({ body: null, payload: new Uint8Array(PAYLOAD_BYTES_MAX) }) })
  const request = encodeMessage({ body: null })
  init.duplex.receive(encodeFrameHeader(FRAME.REQUEST, 1, request.length), request)
  await settle()
  channel.close()
  return init.duplex.payloadBytes
}

test('the numbers', async () => {
  expect(documented.json('limits')).toEqual({
    frame: { bytes: FRAME_BYTES_MAX, bodyBytes: BODY_BYTES_MAX, errorBytes: ERROR_BYTES_MAX, dataBytesOurs: DATA_BYTES_MAX },
    stream: { requestsInFlight: REQUESTS_IN_FLIGHT_MAX, requestWindowBytes: await requestWindowBytes(), responseWindowBytes: await responseWindowBytes() },
    payloadBytes: PAYLOAD_BYTES_MAX,
    fabric: { recordBytes: FABRIC_RECORD_BYTES_MAX },
    member: { exchangeKeys: EXCHANGE_KEYS_MAX, rows: ROWS_MAX, addresses: ADDRESSES_MAX, members: MEMBERS_MAX, downAfterMs: DOWN_AFTER_MS },
    placement: { k: CLOSEST_COUNT, replicas: REPLICAS_DEFAULT, acknowledgements: ACKNOWLEDGEMENTS_DEFAULT },
    chunk: {
      bytesMin: CHUNK_BYTES_MIN, bytesMax: CHUNK_BYTES_MAX, bytesDefault: CHUNK_BYTES_DEFAULT, haveIds: HAVE_IDS_MAX, auditIds: AUDIT_IDS_MAX,
      leaseMs: CHUNK_LEASE_MS, leaseGranularityMs: LEASE_GRANULARITY_MS
    },
    record: {
      records: RECORDS_MAX, valueBytes: RECORD_BYTES_MAX, nameCharacters: RECORD_NAME_BYTES_MAX, batchBytesOurs: RECORD_BATCH_BYTES,
      leaseGranularityMs: RECORD_LEASE_GRANULARITY_MS
    },
    version: {
      headerBytes: HEADER_BYTES_MAX, messageCharacters: MESSAGE_CHARACTERS_MAX, extents: EXTENTS_MAX, inFlightVersions: IN_FLIGHT_VERSIONS_MAX,
      inFlightExtents: IN_FLIGHT_EXTENTS_MAX, groupMembers: GROUP_MEMBERS_MAX, groupExtents: GROUP_EXTENTS_MAX,
      groupInFlightVersions: GROUP_IN_FLIGHT_VERSIONS_MAX, groupInFlightExtents: GROUP_IN_FLIGHT_EXTENTS_MAX, exceptions: EXCEPTIONS_MAX, pageRows: PAGE_ROWS_MAX, leaseMs: LEASE_MS, renewMsOurs: RENEW_MS, waitMs: WAIT_MS_MAX,
      blobBytes: BLOB_BYTES_MAX, fanOutMin: FAN_OUT_MIN, fanOutMax: FAN_OUT_MAX, fanOutDefault: FAN_OUT_DEFAULT
    }
  })
})

test('the kinds of frames', () => {
  expect(Object.fromEntries(documented.rows(/^\| (\d) \| ([A-Z]+) \|/gm).map(([kind, name]) => [name, Number(kind)]))).toEqual(FRAME)
})

test('the codes of errors', () => {
  const codes: Record<ErrorCode, true> = {
    ERR_USAGE: true, ERR_NOT_FOUND: true, ERR_CONFLICT: true, ERR_NOT_ALLOWED: true, ERR_CORRUPT: true, ERR_MISSING: true, ERR_UNAVAILABLE: true,
    ERR_TIMEOUT: true, ERR_DISK_FULL: true, ERR_SOURCE_CHANGED: true, ERR_PROTOCOL: true, ERR_ABORTED: true, ERR_INTERNAL: true
  }
  expect(documented.rows(/^\| (ERR_[A-Z_]+) \|/gm).flat().sort()).toEqual(Object.keys(codes).sort())
})

test('the operations of version/1', () => {
  const operations: Record<VersionOperation, true> = {
    create: true, assign: true, assignGroup: true, renew: true, complete: true, completeGroup: true, wait: true, recent: true, resolve: true, images: true, log: true,
    outcome: true
  }
  const section = /^\| op \| request, beside `op` \| answer \|\n\|---\|---\|---\|\n((?:\|.*\n)+)/gm
  const [[rows = ''] = []] = documented.rows(section)
  expect([...rows.matchAll(/^\| (\w+) \|/gm)].map(([, op]) => op).sort()).toEqual(Object.keys(operations).sort())
})
