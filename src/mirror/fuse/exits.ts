/**
 * The ways out of a process that serves a mount. Installed once, by whoever owns the process. Whatever happens, no mount is
 * left behind that hangs those who use it: without a keeper a defect ends the connection first and the process then; with one
 * it ends the process at once, and the next one takes over.
 */
import type { Log } from '../../protocols/seams.ts'
import type { Mount } from './mount.ts'

/** As a process that dies of an uncaught error. */
const EXIT_DEFECT = 1

/** SIGTERM and SIGINT unmount by force; an uncaught error aborts. The process then ends with the mount, by itself. */
export function guardProcess (mount: Mount, log: Log): void {
  const leave = (signal: string): void => {
    log.info('unmounting', { signal, mountpoint: mount.mountpoint })
    mount.unmount({ force: true }).catch((error: unknown) => { die('cannot unmount', error) })
  }
  const die = (what: string, error: unknown): void => {
    log.error(what, { error: error instanceof Error ? error.stack : String(error) })
    mount.abort()
    process.exit(EXIT_DEFECT)
  }
  process.on('SIGTERM', leave)
  process.on('SIGINT', leave)
  process.on('uncaughtException', (error) => { die('uncaught exception', error) })
  process.on('unhandledRejection', (error) => { die('unhandled rejection', error) })
}

/**
 * Of a server that has a keeper. SIGKILL, also by itself: a worker that blocks in read on the device survives process.exit, and
 * whatever is half done is safe to leave at any point.
 */
export function guardKept (log: Log): void {
  const die = (what: string, error: unknown): void => {
    log.error(what, { error: error instanceof Error ? error.stack : String(error) })
    process.kill(process.pid, 'SIGKILL')
  }
  process.on('uncaughtException', (error) => { die('uncaught exception', error) })
  process.on('unhandledRejection', (error) => { die('unhandled rejection', error) })
}
