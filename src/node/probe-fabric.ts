/**
 * First contact: ask the bootstrap addresses which fabric they belong to, from a node that exists only for that.
 */
import { decodeFabricRecord } from '../dht/fabric.ts'
import type { FabricRecord } from '../dht/fabric.ts'
import { throwIfAborted, withDeadline } from '../protocols/abort.ts'
import { P2pvmError } from '../protocols/errors.ts'
import { askFabric } from '../protocols/fabric-protocol.ts'
import { Libp2pTransport } from '../protocols/libp2p-transport.ts'
import type { Clock, Counters, Log } from '../protocols/seams.ts'
import type { PeerId } from '../protocols/transport.ts'
import { connectTo, createProbeNode } from './libp2p-node.ts'

export interface FabricFound {
  readonly fabric: FabricRecord
  /** The bootstrap peers that answered, with the addresses that they were reached by. */
  readonly peers: ReadonlyArray<{ readonly peer: PeerId, readonly address: string }>
}

/** For all addresses together: they are asked at once. */
const PROBE_DEADLINE_MS = 10_000

/**
 * ERR_UNAVAILABLE, naming the addresses, when none answers in time; ERR_NOT_ALLOWED when they belong to different fabrics.
 */
export async function probeFabric (
  bootstrap: readonly string[],
  { clock, counters, log }: { clock: Clock, counters: Counters, log: Log },
  options: { signal?: AbortSignal | undefined, deadlineMs?: number } = {}
): Promise<FabricFound> {
  const deadlineMs = options.deadlineMs ?? PROBE_DEADLINE_MS
  const node = await createProbeNode()
  const transport = new Libp2pTransport({ node, clock, counters, log }, { fabric: null })
  try {
    const answers = await withDeadline(clock, deadlineMs, [options.signal], async (signal) => await Promise.allSettled(bootstrap.map(async (address) => {
      const peer = await connectTo(node, address, signal)
      const fabric = decodeFabricRecord(await askFabric(transport, peer, { deadlineMs, signal }))
      return { peer, address, fabric }
    })))
    throwIfAborted(options.signal)
    return agree(bootstrap, answers)
  } finally {
    await transport.stop()
    await node.stop()
  }
}

function agree (
  bootstrap: readonly string[],
  answers: ReadonlyArray<PromiseSettledResult<{ peer: PeerId, address: string, fabric: FabricRecord }>>
): FabricFound {
  const found = answers.flatMap((answer) => answer.status === 'fulfilled' ? [answer.value] : [])
  const [first] = found
  if (first === undefined) {
    const causes = answers.flatMap((answer) => answer.status === 'rejected' ? [answer.reason as unknown] : [])
    throw new P2pvmError('ERR_UNAVAILABLE', `no bootstrap address answers: ${bootstrap.join(', ')}`, {}, new AggregateError(causes))
  }
  const other = found.find(({ fabric }) => fabric.id !== first.fabric.id)
  if (other !== undefined) {
    throw new P2pvmError(
      'ERR_NOT_ALLOWED',
      `the bootstrap addresses belong to different fabrics: ${first.address} to ${first.fabric.id}, ${other.address} to ${other.fabric.id}`,
      { fabric: first.fabric.id, found: other.fabric.id }
    )
  }
  return { fabric: first.fabric, peers: found.map(({ peer, address }) => ({ peer, address })) }
}
