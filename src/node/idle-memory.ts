/**
 * Gives memory back after a burst. V8 frees buffers outside its heap only when it collects, and it collects only while
 * something allocates: a daemon that has moved an image would hold tens of megabytes of dead chunks for as long as it idles.
 * So when it has come to rest after moving much, it collects once (some 20 ms, while nobody waits).
 */
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import type { Clock, Counters } from '../protocols/seams.ts'

/** At rest: nothing was moved from one look to the next. */
const LOOK_EVERY_MS = 5_000
/** Less than this is not worth a pause. */
const BURST_BYTES_MIN = 16 * 1024 * 1024

/** Until the signal aborts. */
export async function collectAfterBursts ({ clock, counters }: { clock: Clock, counters: Counters }, signal: AbortSignal): Promise<void> {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  const moved = (): number => counters.value('payload_bytes_sent_total') + counters.value('payload_bytes_received_total')
  let lookedAt = moved()
  let collectedAt = lookedAt
  while (!signal.aborted) {
    await clock.sleep(LOOK_EVERY_MS, signal).catch(() => {}) // aborted: seen by the loop
    const now = moved()
    if (now === lookedAt && now - collectedAt >= BURST_BYTES_MIN) {
      collect()
      collectedAt = now
    }
    lookedAt = now
  }
}
