/**
 * The keeper of a mount: the tiny parent of its FUSE server, which holds the device. When the server dies it starts another
 * one on the same device, and the kernel, which kept all that was not answered, has it asked again: a stall, not an error.
 *
 *   start ──► serving ──► ended in order (unmounted): so does the keeper
 *                │ died, or a standby is loaded (`upgrade`) and the server was killed for it
 *                └──► the next one takes over ──► serving
 *
 * There is only ever one server on the device: the next one is told to go when the one before has been waited for. A server
 * that does not become ready in time is killed, and counts as one that died. Those that die too often end the mount: it is
 * aborted, so that nobody hangs.
 *
 * State it owns: which server runs, and when some died. It never touches a file of the mount, whose server it would wait for.
 * Not for: processes and pipes (`node/mount-keeper.ts`), what a server does when it takes over (`mount.ts`).
 */
import { untilAborted, withDeadline } from '../../protocols/abort.ts'
import { P2pvmError } from '../../protocols/errors.ts'
import type { Clock, Log } from '../../protocols/seams.ts'

/** A FUSE server's process, as its keeper has it. */
export interface ServerProcess {
  readonly pid: number
  /** The version of its program, when its code is loaded and it could serve. Rejects with why it cannot, or when it ends. */
  readonly loaded: Promise<string>
  /** It takes the device; resolves when it serves. `resend`: the kernel keeps what it will not have answered. Rejects as `loaded`. */
  go (): Promise<{ readonly resend: boolean }>
  /** The ordered way out. */
  unmount (): void
  kill (): void
  /** True: in order, because the mount has ended. */
  readonly ended: Promise<boolean>
}

export interface KeeperComponents {
  /** `successor`: there was one before it. */
  readonly startServer: (successor: boolean) => ServerProcess
  /** Ends the connection, whatever is open. */
  readonly abort: () => void
  readonly clock: Clock
  readonly log: Log
}

export interface KeeperInit {
  /** Servers that die within CRASHES_WINDOW_MS: one more ends the mount. */
  readonly crashesMax?: number
}

export interface Upgraded {
  readonly before: string
  readonly after: string
}

/** Requests that kill every server come again at once: five of them are a second or two. */
const CRASHES_MAX = 5
const CRASHES_WINDOW_MS = 60_000
/** Node and the program, on a machine that is busy with something else. */
const LOAD_DEADLINE_MS = 30_000
/** The state of thousands of inodes and some hundred open disks. */
const READY_DEADLINE_MS = 30_000
/** Dirty pages are flushed and overlays synced; a gigabyte takes seconds. */
const UNMOUNT_DEADLINE_MS = 60_000

export class Keeper {
  readonly #components: KeeperComponents
  readonly #crashesMax: number
  readonly #crashedAt: number[] = []
  #server: ServerProcess | undefined
  #version = ''
  #restarts = 0
  /** Of an upgrade: loading. */
  #candidate: ServerProcess | undefined
  /** Loaded, and waiting for the end of the server. */
  #standby: ServerProcess | undefined
  #upgrading: PromiseWithResolvers<Upgraded> | undefined
  #stopping = false
  #over = false

  constructor (components: KeeperComponents, { crashesMax = CRASHES_MAX }: KeeperInit = {}) {
    this.#components = components
    this.#crashesMax = crashesMax
  }

  status (): { server: number | null, version: string, restarts: number } {
    return { server: this.#server?.pid ?? null, version: this.#version, restarts: this.#restarts }
  }

  /** Returns when the mount has ended in order. Throws when it had to be aborted. `onReady`: the first server serves. */
  async run (onReady: () => Promise<void>): Promise<void> {
    try {
      const { resend } = await this.#serve(this.#components.startServer(false))
      await onReady()
      while (!await this.#serverEnded()) {
        if (this.#stopping) return
        if (!resend) throw new P2pvmError('ERR_INTERNAL', 'the FUSE server has died, and this kernel keeps no requests for another one (Linux 6.9 does): the mount is given up')
        while (!await this.#replaced());
      }
      this.#over = true // in order: nothing is left to abort
    } finally {
      this.#giveUp()
    }
  }

  async #serverEnded (): Promise<boolean> {
    return await this.#server?.ended ?? false
  }

  /** By the standby, or by a new one. False when that could not take over; throws when it was one too many. */
  async #replaced (): Promise<boolean> {
    const { log, startServer } = this.#components
    const upgrading = this.#upgrading
    const standby = this.#standby
    const before = this.#version
    this.#server = undefined
    this.#standby = undefined
    if (standby === undefined) this.#countCrash()
    try {
      await this.#serve(standby ?? startServer(true))
    } catch (error) {
      log.error('a FUSE server could not take over', { error })
      if (standby !== undefined) upgrading?.reject(new P2pvmError('ERR_INTERNAL', `the new program could not take over: ${String(error)}`, {}, error))
      return false
    }
    this.#restarts++
    log.info('another FUSE server has taken over', { pid: this.status().server, version: this.#version })
    if (standby !== undefined) upgrading?.resolve({ before, after: this.#version })
    return true
  }

  /** When this throws the server is gone. */
  async #serve (server: ServerProcess): Promise<{ readonly resend: boolean }> {
    const { clock } = this.#components
    this.#server = server
    try {
      const version = await withDeadline(clock, LOAD_DEADLINE_MS, [], async (signal) => await untilAborted(server.loaded, signal))
      const ready = await withDeadline(clock, READY_DEADLINE_MS, [], async (signal) => await untilAborted(server.go(), signal))
      this.#version = version
      if (this.#stopping) server.unmount()
      return ready
    } catch (error) {
      this.#server = undefined
      server.kill()
      await server.ended
      throw error
    }
  }

  /** Throws when it is one too many. */
  #countCrash (): void {
    const { clock, log } = this.#components
    const now = clock.monotonic()
    while ((this.#crashedAt[0] ?? now) < now - CRASHES_WINDOW_MS) this.#crashedAt.shift()
    this.#crashedAt.push(now)
    log.warn('the FUSE server has died; another one takes over', { died: this.#crashedAt.length })
    if (this.#crashedAt.length <= this.#crashesMax) return
    throw new P2pvmError('ERR_INTERNAL', `the FUSE server has died ${this.#crashedAt.length} times within ${CRASHES_WINDOW_MS / 1000} s: the mount is given up`)
  }

  /** Whatever is left of the mount ends now. */
  #giveUp (): void {
    if (!this.#over) this.#components.abort()
    this.#over = true
    this.#server?.kill()
    this.#standby?.kill()
    this.#candidate?.kill()
    this.#upgrading?.reject(new P2pvmError('ERR_ABORTED', 'the mount has ended'))
  }

  /**
   * Hands over to a server of the program that is on disk now. It loads while the one before it still serves, which goes on if it
   * cannot; then that one is killed, which is safe at any point, and it takes over. ERR_CONFLICT while there is no server to replace.
   */
  async upgrade (): Promise<Upgraded> {
    const { clock, startServer, log } = this.#components
    const old = this.#server
    if (this.#upgrading !== undefined || this.#stopping || old === undefined) throw new P2pvmError('ERR_CONFLICT', 'the mount is starting, ending or being upgraded')
    const upgrading = this.#upgrading = Promise.withResolvers<Upgraded>()
    upgrading.promise.catch(() => {}) // whoever asked is told
    try {
      const candidate = this.#candidate = startServer(true)
      try {
        const version = await withDeadline(clock, LOAD_DEADLINE_MS, [], async (signal) => await untilAborted(candidate.loaded, signal))
        log.info('handing over to another FUSE server', { version })
      } catch (error) {
        candidate.kill()
        throw new P2pvmError('ERR_INTERNAL', `the program on disk cannot serve this mount, which goes on with the one that it has: ${String(error)}`, {}, error)
      }
      this.#standby = candidate
      // The one that was to be replaced may have died meanwhile: the standby is for the end of whichever serves now.
      this.#server?.kill()
      return await upgrading.promise
    } finally {
      this.#upgrading = undefined
      this.#candidate = undefined
    }
  }

  /** The ordered way out; `run` returns when it is done. */
  stop (): void {
    if (this.#stopping) return
    this.#stopping = true
    this.#server?.unmount()
    void this.#components.clock.sleep(UNMOUNT_DEADLINE_MS).then(() => { if (!this.#over) this.#giveUp() })
  }
}
