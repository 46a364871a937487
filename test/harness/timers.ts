/** What clocks of tests share: a sleep over whatever calls back after a while. Returns when it is over; throws the signal's reason. */
export async function sleepOn (after: (ms: number, run: () => void) => () => void, ms: number, signal?: AbortSignal): Promise<void> {
  signal?.throwIfAborted()
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const cancel = after(ms, resolve)
  const onAbort = (): void => { reject(signal?.reason) }
  signal?.addEventListener('abort', onAbort)
  try {
    await promise
  } finally {
    cancel()
    signal?.removeEventListener('abort', onAbort)
  }
}
