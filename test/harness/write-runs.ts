/**
 * `node write-runs.ts FILE` with runs as JSON on stdin: `writeRuns` in a process of its own. A test touches a mounted file
 * only through processes that it can kill: a read or write that hangs in the kernel would hold one of its own threads.
 */
import { json } from 'node:stream/consumers'
import { type Run, writeRuns } from './random-image.ts'

const [, , path] = process.argv
if (path === undefined) throw new Error('which file?')
await writeRuns(path, await json(process.stdin) as Run[])
