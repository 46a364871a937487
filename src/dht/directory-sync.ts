/**
 * Directory syncs, shared: whoever has renamed a file into a folder needs *a* sync of it that starts afterwards, not one
 * of its own. State it owns: per folder, the sync that is running and the one that will follow it.
 */
import type { Disk } from '../protocols/seams.ts'

interface FolderSyncs {
  running: Promise<void>
  next: Promise<void> | undefined
}

export class DirectorySync {
  readonly #disk: Disk
  readonly #folders = new Map<string, FolderSyncs>()

  constructor (disk: Disk) {
    this.#disk = disk
  }

  /** Resolves when a sync of the folder that started after this call is done; rejects when that one failed. */
  sync (path: string): Promise<void> {
    const syncs = this.#folders.get(path)
    if (syncs === undefined) return this.#start(path)
    // The running one may have passed our rename already, in either outcome.
    syncs.next ??= syncs.running.then(() => this.#start(path), () => this.#start(path))
    return syncs.next
  }

  #start (path: string): Promise<void> {
    const syncs: FolderSyncs = { running: this.#disk.syncDirectory(path), next: undefined }
    this.#folders.set(path, syncs)
    const forget = (): void => {
      if (this.#folders.get(path) === syncs && syncs.next === undefined) this.#folders.delete(path)
    }
    syncs.running.then(forget, forget)
    return syncs.running
  }
}
