/** Waits for something that only asking can show, such as what a daemon says of its peers. Always with a deadline. */
import { setTimeout as delay } from 'node:timers/promises'

/** Short against what is waited for (a process that starts, a peer that falls silent), long against one question. */
const ASK_EVERY_MS = 100

/** Asks until the answer is not undefined, and returns it with the time it took. Throws after the deadline, with the last failure. */
export async function eventually<T> (what: string, deadlineMs: number, ask: () => Promise<T | undefined>): Promise<{ answer: T, tookMs: number }> {
  const startedMs = performance.now()
  let failure: unknown
  for (;;) {
    try {
      const answer = await ask()
      if (answer !== undefined) return { answer, tookMs: performance.now() - startedMs }
    } catch (error) {
      failure = error
    }
    if (performance.now() - startedMs > deadlineMs) throw new Error(`not within ${deadlineMs} ms: ${what}`, { cause: failure })
    await delay(ASK_EVERY_MS)
  }
}
