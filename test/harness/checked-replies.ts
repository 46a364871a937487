/** The handlers of the FUSE server, each of whose replies is held against its row in opcodes.ts. */
import type { Handlers } from '../../src/mirror/fuse/handlers.ts'
import { OPCODES, type OpcodeRow } from '../../src/mirror/fuse/opcodes.ts'

export function withCheckedReplies (handlers: Handlers): Handlers {
  const rows = new Map([...OPCODES.values()].map((row) => [row.handler as string, row]))
  return new Proxy(handlers, {
    get (target, property) {
      const method: unknown = Reflect.get(target, property, target)
      const row = rows.get(String(property))
      if (typeof method !== 'function' || row === undefined) return method
      return (...args: unknown[]): unknown => {
        const answer: unknown = method.apply(target, args)
        return answer instanceof Promise ? answer.then((value: unknown) => check(row, value)) : check(row, answer)
      }
    }
  })
}

function check ({ name, replyBytes: [min, max] }: OpcodeRow, answer: unknown): unknown {
  const length = answer === undefined ? 0 : (answer as Buffer).length
  if (length < min || length > max) throw new Error(`${name} answered ${length} bytes, not ${min} to ${max}`)
  return answer
}
