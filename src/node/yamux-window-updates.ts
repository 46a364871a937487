/**
 * yamux as it comes answers every frame of data with a window update: a message of twelve bytes, encrypted and written to the socket by
 * itself. With requests and answers of some hundred bytes that is every second message. Here it waits until half of the window is
 * used up, as the yamux of Go and of Rust do; the sender has the other half to go on with.
 */
import { StreamState, YamuxStream } from '@libp2p/yamux/stream'

/** What is private to YamuxStream, as of @libp2p/yamux 8. */
interface Window {
  readonly recvWindow: number
  readonly recvWindowCapacity: number
}

const isInstalled = Symbol('p2pvm: fewer window updates')

/** For all yamux streams of this process, once. */
export function sendFewerWindowUpdates (): void {
  const prototype = YamuxStream.prototype as YamuxStream & { [isInstalled]?: true }
  if (prototype[isInstalled] === true) return
  prototype[isInstalled] = true
  const send = prototype.sendWindowUpdate
  prototype.sendWindowUpdate = function (this: YamuxStream): void {
    const { recvWindow, recvWindowCapacity } = this as unknown as Window
    // In other states the update carries a flag that the other side waits for.
    if (this.state === StreamState.Established && recvWindowCapacity > recvWindow / 2) return
    send.call(this)
  }
}
