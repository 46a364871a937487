import { describe, expect, it } from 'vitest'
import { place, type Candidates } from '../../../src/dht/replication.ts'
import { P2pvmError } from '../../../src/protocols/errors.ts'
import { settle } from '../../harness/fake-clock.ts'

describe('placing a key', () => {
  const peers = ['a', 'b', 'c', 'd', 'e']
  const candidates = (): Candidates => {
    const untried = [...peers]
    return { placement: peers, wanted: 3, acknowledgements: 2, complete: true, take: () => untried.shift(), left: () => untried.length }
  }
  /** Stores that end when the test says how. */
  const stores = (): { asked: string[], end: Map<string, PromiseWithResolvers<void>>, store: (peer: string) => Promise<void> } => {
    const end = new Map(peers.map((peer) => [peer, Promise.withResolvers<void>()]))
    const asked: string[] = []
    return { asked, end, store: async (peer) => { asked.push(peer); await end.get(peer)!.promise } }
  }
  const failed = new P2pvmError('ERR_UNAVAILABLE', 'gone')

  it('asks the next one for each that fails, is acknowledged by W and settled with R', async () => {
    const { asked, end, store } = stores()
    const { acknowledged, settled } = place('key', candidates(), store)
    let isAcknowledged = false
    void acknowledged.then(() => { isAcknowledged = true })
    expect(asked).toEqual(['a', 'b', 'c'])
    end.get('a')!.reject(failed)
    end.get('b')!.resolve()
    await settle()
    expect([asked.at(-1), isAcknowledged]).toEqual(['d', false])
    end.get('d')!.resolve()
    await settle()
    expect(isAcknowledged).toBe(true)
    end.get('c')!.resolve()
    expect(await settled).toEqual(['b', 'd', 'c'])
    expect(asked).not.toContain('e')
  })

  it('asks nobody more after a conflict', async () => {
    const { asked, end, store } = stores()
    const { acknowledged, settled } = place('key', candidates(), store)
    const outcome = acknowledged.catch((error: unknown) => error)
    end.get('b')!.reject(new P2pvmError('ERR_CONFLICT', 'another value'))
    end.get('a')!.reject(failed)
    end.get('c')!.resolve()
    expect(await settled).toEqual(['c'])
    expect(await outcome).toMatchObject({ code: 'ERR_CONFLICT' })
    expect(asked).toEqual(['a', 'b', 'c'])
  })

  it('asks nobody more when it is given up, and still counts who has it', async () => {
    const { asked, end, store } = stores()
    const { acknowledged, settled, giveUp } = place('key', candidates(), store)
    giveUp(new P2pvmError('ERR_TIMEOUT', 'over'))
    await expect(acknowledged).rejects.toMatchObject({ code: 'ERR_TIMEOUT' })
    end.get('a')!.reject(failed)
    end.get('b')!.resolve()
    end.get('c')!.resolve()
    expect(await settled).toEqual(['b', 'c'])
    expect(asked).toEqual(['a', 'b', 'c'])
  })
})
