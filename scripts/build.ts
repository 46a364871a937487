/**
 * Builds dist/: the command, the library, the FUSE server and its worker, and the library's types.
 *
 *   node scripts/build.ts             everything
 *   node scripts/build.ts --no-types  without the declarations
 */
import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { bundle, entryPoints, root } from './bundle.ts'

await bundle(join(root, 'dist'))
if (!process.argv.includes('--no-types')) {
  // `npm run types` checks; this only writes the declarations down.
  execFileSync(process.execPath, [join(root, 'node_modules', 'typescript', 'bin', 'tsc'), '-p', 'tsconfig.types.json'], { cwd: root, stdio: 'inherit' })
}
console.log(`built ${Object.keys(entryPoints).join(', ')} in dist/`)
