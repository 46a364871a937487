/** What blobs are, in a dozen lines: a list of byte arrays each, its versions. */

export interface Part {
  readonly offset: number
  readonly bytes: Uint8Array
}

export class ReferenceModel {
  readonly #blobs = new Map<string, Uint8Array[]>()

  content (blob: string, version: number): Uint8Array | undefined {
    return this.#blobs.get(blob)?.[version]
  }

  create (blob: string, content: Uint8Array = new Uint8Array(0)): void {
    this.#blobs.set(blob, [content])
  }

  write (blob: string, parts: readonly Part[]): void {
    const before = this.#blobs.get(blob)!.at(-1)!
    const after = new Uint8Array(Math.max(before.length, ...parts.map(({ offset, bytes }) => offset + bytes.length)))
    after.set(before)
    for (const { offset, bytes } of parts) after.set(bytes, offset)
    this.#blobs.get(blob)!.push(after)
  }

  append (blob: string, bytes: Uint8Array): void {
    this.write(blob, [{ offset: this.#blobs.get(blob)!.at(-1)!.length, bytes }])
  }
}
