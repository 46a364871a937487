/** Rows of an answer of the version manager, as many as fit a message. */
import { PAGE_ROWS_MAX } from '../protocols/version-protocol.ts'

/** Bytes of one page of images or versions, so that it fits a message. */
const PAGE_BYTES_MAX = 128 * 1024
/** Beside the header: keys, the longest name. */
const ROW_BYTES = 256

export class AnswerPage<Row> {
  readonly rows: Row[] = []
  #bytes = 0

  /** False when it is full; at least one row always fits. */
  add (row: Row, header: Uint8Array): boolean {
    this.#bytes += ROW_BYTES + header.length
    if (this.rows.length >= PAGE_ROWS_MAX || (this.rows.length > 0 && this.#bytes > PAGE_BYTES_MAX)) return false
    this.rows.push(row)
    return true
  }
}
