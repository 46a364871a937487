/**
 * Uses whichever resource is current, the way a FUSE worker uses a descriptor, and counts how often it found one closed
 * while it used it. `cells`: [current resource, stop, uses, violations, closed flags…].
 */
import { parentPort, workerData } from 'node:worker_threads'
import { EpochPassenger } from '../../src/mirror/fuse/epoch.ts'

export const CURRENT = 0
export const STOP = 1
export const USES = 2
export const VIOLATIONS = 3
export const CLOSED = 4

if (parentPort !== null) {
  const { epoch, cells: buffer, worker } = workerData as { epoch: SharedArrayBuffer, cells: SharedArrayBuffer, worker: number }
  const cells = new Int32Array(buffer)
  const passenger = new EpochPassenger(epoch, worker)
  let resource = 0
  while (Atomics.load(cells, STOP) === 0) {
    if (passenger.enter()) resource = Atomics.load(cells, CURRENT) // as it drains its messages
    for (let look = 0; look < 50; look++) {
      if (Atomics.load(cells, CLOSED + resource) !== 0) Atomics.add(cells, VIOLATIONS, 1)
    }
    Atomics.add(cells, USES, 1)
    if (passenger.leave()) parentPort.postMessage('passed')
  }
}
