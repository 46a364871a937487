/**
 * Fewer and larger writes below the streams of a connection. libp2p encrypts each frame of each stream on its own, and writes each piece
 * of it to the socket on its own; between small requests that is most of what they cost, at both ends. Here what all streams have to say
 * in one turn of the event loop is encrypted together and written at once.
 *
 * State it owns, per connection: frames of this turn. Bounded: what is large goes at once.
 */
import type { Socket } from 'node:net'
import type { ConnectionEncrypter, MessageStream, SecuredConnection } from '@libp2p/interface'

/** Less than what noise encrypts at once, 64 KiB. Larger ones, chunks on their way, gain nothing from company. */
const JOINED_BYTES_MAX = 32 * 1024

type Connection = Pick<MessageStream, 'send' | 'close' | 'status' | 'writableNeedsDrain'>

/** What is not public of a connection, as of @libp2p/tcp 11. Without it, large messages go as the library writes them. */
type SocketConnection = Connection & {
  readonly socket?: Socket
  sendData? (pieces: Iterable<Uint8Array> & { readonly byteLength: number }): { sentBytes: number, canSendMore: boolean }
}

/** The same encryption, with the writes above and below it joined. */
export function joinedWrites<Components> (encrypter: (components: Components) => ConnectionEncrypter): (components: Components) => ConnectionEncrypter {
  return (components) => {
    const inner = encrypter(components)
    const joined = async (connection: MessageStream, secured: Promise<SecuredConnection>): Promise<SecuredConnection> => {
      const outcome = await secured
      joinPieces(connection)
      joinFrames(outcome.connection)
      return outcome
    }
    return {
      protocol: inner.protocol,
      secureOutbound: async (connection, options) => await joined(connection, inner.secureOutbound(connection, options)),
      secureInbound: async (connection, options) => await joined(connection, inner.secureInbound(connection, options))
    }
  }
}

/** The lengths, ciphertexts and tags of one `send` in one write to the socket: small ones in one piece, large ones as they are. */
function joinPieces (connection: Connection): void {
  const send = connection.send.bind(connection)
  const { socket } = connection as SocketConnection
  if (socket !== undefined) (connection as SocketConnection).sendData = (pieces) => writeTogether(socket, pieces)
  connection.send = (pieces) => send(socket !== undefined && pieces.byteLength > JOINED_BYTES_MAX ? pieces : pieces.subarray())
}

/** By one writev(2): a copy of 128 KiB is new memory each time, which costs more than all the rest of a write. */
function writeTogether (socket: Socket, pieces: Iterable<Uint8Array> & { readonly byteLength: number }): { sentBytes: number, canSendMore: boolean } {
  socket.cork()
  for (const piece of pieces) socket.write(piece)
  socket.uncork()
  return { sentBytes: pieces.byteLength, canSendMore: !socket.writableNeedDrain }
}

/** The frames of one turn, of all streams, in one `send`. */
function joinFrames (connection: Connection): void {
  const send = connection.send.bind(connection)
  const close = connection.close.bind(connection)
  let frames: Uint8Array[] = []
  let frameBytes = 0

  const flush = (): void => {
    const joined = frames
    frames = []
    frameBytes = 0
    if (joined.length > 0) send(Buffer.concat(joined))
  }
  const flushUnlessEnded = (): void => {
    try {
      if (frames.length > 0) flush()
    } catch {
      // It has ended in the meantime, and says so in an event.
    }
  }
  connection.send = (frame) => {
    if (frameBytes + frame.byteLength > JOINED_BYTES_MAX) flush()
    // Also what the connection would refuse.
    if (frame.byteLength > JOINED_BYTES_MAX || connection.status !== 'open') return send(frame)
    if (frames.length === 0) setImmediate(flushUnlessEnded)
    frames.push(frame.subarray())
    frameBytes += frame.byteLength
    return !connection.writableNeedsDrain
  }
  connection.close = async (options) => {
    flushUnlessEnded()
    await close(options)
  }
}
