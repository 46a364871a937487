/**
 * `/p2pvm/fabric/1`: what a peer that belongs to no fabric yet, or is not sure, asks a stranger: which fabric is this? The
 * only protocol without the fabric's id in its wire id, so it is served on a transport of its own.
 *
 *     {} → {fabric}      the fabric record, encoded as `dht/fabric.ts` does
 */
import { bytesUpTo, record } from './decode.ts'
import type { PeerId, RequestOptions, Transport } from './transport.ts'

export const FABRIC_PROTOCOL = 'fabric/1'
/** Two ids, a key and some addresses. */
export const FABRIC_RECORD_BYTES_MAX = 4096

const decodeAnswer = record({ fabric: bytesUpTo(FABRIC_RECORD_BYTES_MAX) })

/** Asked each time: addresses in it may change. */
export function serveFabric (transport: Transport, encodedRecord: () => Uint8Array): void {
  transport.handle(FABRIC_PROTOCOL, async () => ({ body: { fabric: encodedRecord() } }))
}

export async function askFabric (transport: Transport, peer: PeerId, options: RequestOptions): Promise<Uint8Array> {
  const { body } = await transport.request(peer, FABRIC_PROTOCOL, { body: {} }, options)
  return decodeAnswer(body).fabric
}
