/** Batches that fit the bounds of a message. */

/** In order, `itemsMax` at a time. */
export function * splitBy<T> (items: readonly T[], itemsMax: number): Generator<T[]> {
  for (let at = 0; at < items.length; at += itemsMax) yield items.slice(at, at + itemsMax)
}

/** In order, at most `itemsMax` and `bytesMax` at a time; an item that is larger on its own travels alone. */
export function * splitBySize<T> (items: readonly T[], sizeOf: (item: T) => number, itemsMax: number, bytesMax: number): Generator<T[]> {
  let batch: T[] = []
  let batchBytes = 0
  for (const item of items) {
    const itemBytes = sizeOf(item)
    if (batch.length > 0 && (batch.length === itemsMax || batchBytes + itemBytes > bytesMax)) {
      yield batch
      batch = []
      batchBytes = 0
    }
    batch.push(item)
    batchBytes += itemBytes
  }
  if (batch.length > 0) yield batch
}
