/** One moment for several: who waits for whom, and what becomes of the others when one cannot be sealed. */
import { setImmediate as turn } from 'node:timers/promises'
import { describe, expect, it } from 'vitest'
import { type GroupSealable, sealTogether, type Together } from '../../../src/mirror/seal-together.ts'
import type { Sealed } from '../../../src/mirror/sealable.ts'
import { nodeClock as clock } from '../../../src/node/world.ts'

const signal = new AbortController().signal

/** Does what a mounted copy does, step by step, when it is told to. */
class SteppedCopy implements GroupSealable {
  readonly steps: string[] = []
  readonly #gates = { flush: Promise.withResolvers<void>(), hold: Promise.withResolvers<void>() }
  readonly #name: string

  constructor (name: string) {
    this.#name = name
  }

  pass (gate: 'flush' | 'hold'): void {
    this.#gates[gate].resolve()
  }

  fail (gate: 'flush' | 'hold'): void {
    this.#gates[gate].reject(new Error(`${this.#name} cannot ${gate}`))
  }

  async seal (_signal: AbortSignal, together: Together): Promise<Sealed> {
    await this.#gates.flush.promise
    this.steps.push('flushed')
    await together.flushed.arrive()
    await this.#gates.hold.promise
    this.steps.push('held')
    await together.held.arrive()
    this.steps.push('cut')
    return { base: { blob: this.#name, version: 1, size: 1, chunkSize: 4096 }, size: 1, overlay: this.#name, freezeMs: 0 }
  }

  async unseal (): Promise<void> {
    this.steps.push('folded back')
  }
}

describe('copies that are sealed together', () => {
  it('hold their writers only when all are flushed, and are cut only when all are held', async () => {
    const [slow, fast] = [new SteppedCopy('slow'), new SteppedCopy('fast')]
    const sealed = sealTogether([slow, fast], clock, signal)
    fast.pass('flush')
    fast.pass('hold')
    await turn()
    expect(fast.steps).toEqual(['flushed'])
    slow.pass('flush')
    await turn()
    expect(fast.steps).toEqual(['flushed', 'held'])
    slow.pass('hold')
    expect((await sealed).map(({ overlay }) => overlay)).toEqual(['slow', 'fast'])
    expect([slow.steps.at(-1), fast.steps.at(-1)]).toEqual(['cut', 'cut'])
  })

  it.each(['flush', 'hold'] as const)('are none when one cannot %s: nobody waits for it, and its error is told', async (gate) => {
    const [bad, good] = [new SteppedCopy('bad'), new SteppedCopy('good')]
    const sealed = sealTogether([good, bad], clock, signal)
    if (gate === 'hold') bad.pass('flush')
    good.pass('flush')
    good.pass('hold')
    await turn()
    bad.fail(gate)
    await expect(sealed).rejects.toThrow(`bad cannot ${gate}`)
    expect(good.steps).not.toContain('cut')
  })

  it('are folded back when another fails after its cut', async () => {
    const [bad, good] = [new SteppedCopy('bad'), new SteppedCopy('good')]
    const failing: GroupSealable = {
      async seal (signal, together) {
        await bad.seal(signal, together)
        throw new Error('the disk is full')
      },
      unseal: async () => { await bad.unseal() }
    }
    for (const copy of [bad, good]) {
      copy.pass('flush')
      copy.pass('hold')
    }
    await expect(sealTogether([good, failing], clock, signal)).rejects.toThrow('the disk is full')
    expect(good.steps.at(-1)).toBe('folded back')
    expect(bad.steps.at(-1)).toBe('cut') // its own affair
  })

  it('are folded back each as far as it goes, and the first failure is what is told', async () => {
    const [stuck, good] = [new SteppedCopy('stuck'), new SteppedCopy('good')]
    stuck.unseal = async () => { throw new Error('cannot be folded back') }
    const failing: GroupSealable = {
      async seal (_signal, together) {
        await Promise.all([together.flushed.arrive(), together.held.arrive()])
        throw new Error('the disk is full')
      },
      async unseal () {}
    }
    for (const copy of [stuck, good]) {
      copy.pass('flush')
      copy.pass('hold')
    }
    await expect(sealTogether([stuck, good, failing], clock, signal)).rejects.toThrow('the disk is full')
    expect(good.steps.at(-1)).toBe('folded back')
  })
})
