/** `npm run simulate`: one seed, or `--seeds N` of them that follow from it; `--trace` prints the events of a run. */
import { parseArgs } from 'node:util'
import { testSeed } from '../harness/seed.ts'
import { simulate, SIMULATION_DEFAULTS, type SimulationInit } from './simulation.ts'

const { values } = parseArgs({
  options: {
    'seed': { type: 'string' },
    'seeds': { type: 'string' },
    'writers': { type: 'string' },
    'operations': { type: 'string' },
    'storage-peers': { type: 'string' },
    'clients': { type: 'string' },
    'trace': { type: 'boolean' }
  }
})

function count (name: 'writers' | 'operations' | 'storage-peers' | 'clients' | 'seeds', otherwise: number): number {
  const value = values[name] === undefined ? otherwise : Number(values[name])
  if (!Number.isInteger(value) || value < 1) throw new Error(`--${name} takes a count, not ${values[name]}`)
  return value
}

const base = values.seed ?? testSeed()
const init: Omit<SimulationInit, 'seed'> = {
  writers: count('writers', SIMULATION_DEFAULTS.writers),
  operations: count('operations', SIMULATION_DEFAULTS.operations),
  storagePeers: count('storage-peers', SIMULATION_DEFAULTS.storagePeers),
  clients: count('clients', SIMULATION_DEFAULTS.clients),
  print: values.trace === true ? console.error : undefined
}

const seeds = values.seeds === undefined ? [base] : Array.from({ length: count('seeds', 1) }, (_, at) => `${base}-${at}`)
for (const seed of seeds) {
  const startMs = performance.now()
  try {
    const { digest, events, elapsedMs, versions, aborted, groups, deaths, lies } = await simulate({ ...init, seed })
    console.log(`seed ${seed}: ${versions} versions, ${aborted} of them aborted, ${groups} groups, ${deaths} deaths, ${lies} lies, ${Math.round(elapsedMs / 1000)} s simulated ` +
      `in ${((performance.now() - startMs) / 1000).toFixed(1)} s, ${events} events, trace ${digest.slice(0, 16)}`)
  } catch (error) {
    console.error(error)
    process.exitCode = 1
  }
}
