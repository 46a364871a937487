/** The driver that speaks the protocol of /dev/fuse itself: the device, and the server on it. */
import { closeSync } from 'node:fs'
import { withDeadline } from '../../protocols/abort.ts'
import type { Clock, Log } from '../../protocols/seams.ts'
import type { Driver, Succession } from '../driver.ts'
import type { FileViewInit } from '../file-view.ts'
import type { Operations } from '../operations.ts'
import { withSignal } from '../patience.ts'
import type { Trace } from '../trace.ts'
import { abortSync, type FuseDevice, mountDevice, unmount } from './device.ts'
import { Handlers } from './handlers.ts'
import { FuseServer } from './server.ts'

export interface DriverComponents {
  readonly clock: Clock
  readonly log: Log
  readonly trace?: Trace | undefined
}

/** INIT is the kernel's first request after mount(2). */
const INIT_DEADLINE_MS = 10_000

export class DirectDriver implements Driver {
  readonly name = 'direct'
  readonly writeback = true
  readonly #device: FuseDevice
  readonly #server: FuseServer
  readonly #clock: Clock

  /** Of a device that is mounted. */
  constructor (device: FuseDevice, workers: number, components: DriverComponents) {
    this.#device = device
    this.#clock = components.clock
    this.#server = new FuseServer({ deviceFd: device.fd, workers }, components)
  }

  /** Mounts; errors as `mountDevice`. */
  static async open (mountpoint: string, workers: number, components: DriverComponents): Promise<DirectDriver> {
    return new DirectDriver(await mountDevice(mountpoint, components.clock, components.log), workers, components)
  }

  get mountpoint (): string {
    return this.#device.mountpoint
  }

  get connection (): number {
    return this.#device.connection
  }

  get counters (): Record<string, number> {
    return this.#server.counters
  }

  get ended (): Promise<void> {
    return this.#server.ended
  }

  /** After a server before this one the kernel sends no INIT: what was read and not answered is asked for again first. */
  async serve (operations: Operations, { journal, resend, before }: Succession): Promise<{ resend: boolean }> {
    const initialised = Promise.withResolvers<boolean>()
    const handlers = new Handlers({ operations, journal, resend, onInit: initialised.resolve })
    if (before !== undefined) {
      handlers.restore(before)
      this.#server.resend()
      this.#server.start(handlers)
      return { resend: true } // else nobody would have taken over
    }
    this.#server.start(handlers)
    return { resend: await withDeadline(this.#clock, INIT_DEADLINE_MS, [], async (signal) => await withSignal(signal, initialised.promise)) }
  }

  async publish (view: FileViewInit): Promise<void> {
    await this.#server.publish(view)
  }

  async withdraw (fh: number): Promise<void> {
    await this.#server.withdraw(fh)
  }

  async quiesce (): Promise<void> {
    await this.#server.quiesce()
  }

  async flushPages (ino: bigint, from: number, to: number): Promise<void> {
    await this.#server.flushPages(ino, from, to)
  }

  async unmount (): Promise<boolean> {
    return await unmount(this.#device)
  }

  abort (): void {
    abortSync(this.#device)
  }

  close (): void {
    closeSync(this.#device.fd)
  }
}
