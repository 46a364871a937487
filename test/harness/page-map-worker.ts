/** Marks every sector of its share of a map, in an order that keeps meeting the other workers in the same bytes. */
import { workerData } from 'node:worker_threads'
import { PageMap, SECTOR_BYTES, type SharedPageMap } from '../../src/mirror/page-map.ts'

const { shared, fd, worker, workers } = workerData as { shared: SharedPageMap, fd: number, worker: number, workers: number }
const map = new PageMap(shared)
for (let sector = worker; sector < map.bytes.length * 8; sector += workers) {
  map.mark(fd, sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES)
}
