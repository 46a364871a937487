/**
 * Run by store-kill.test.ts: `write-entries.ts FOLDER FIRST` writes entries from number FIRST on, several at once, until it is killed. It
 * says on stdout which are acknowledged, each in a line of its own.
 */
import { writeSync } from 'node:fs'
import { join } from 'node:path'
import { openStore } from '../../src/dht/open-store.ts'
import { entryOf } from './numbered-entries.ts'

const WRITERS = 8
const [folder = '', first = '0'] = process.argv.slice(2)
const store = await openStore(join(folder, 'records.mdb'))
let next = Number(first)
writeSync(1, 'begins\n')

await Promise.all(Array.from({ length: WRITERS }, async () => {
  for (;;) {
    const number = next++
    await store.write(entryOf(number))
    writeSync(1, `${number}\n`)
  }
}))
