/** The program as ES modules with shared chunks: for `scripts/build.ts`, and for tests that start it often. */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { build } from 'esbuild'

export const root = resolve(import.meta.dirname, '..')

/** Name of the file → source. What is started as a thread or process of its own is found beside the rest by that name. */
export const entryPoints = {
  p2pvm: 'src/node/main.ts',
  index: 'src/node/index.ts',
  'fuse-worker': 'src/mirror/fuse/worker.ts',
  'mount-server': 'src/node/mount-server.ts'
}

/** Replaces the folder, once the bundle is made. */
export async function bundle (folder: string): Promise<void> {
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string }
  const { outputFiles } = await build({
    write: false,
    absWorkingDir: root,
    entryPoints,
    outdir: folder,
    bundle: true,
    splitting: true, // a command loads only its own code: `p2pvm ls` never sees libp2p
    format: 'esm',
    platform: 'node',
    target: 'node22.15',
    external: ['lmdb', 'fuse-native', 'koffi'], // they find their native halves beside themselves
    define: { 'process.env.P2PVM_VERSION': JSON.stringify(version) },
    // CommonJS packages inside an ES module bundle call require for Node's own modules.
    banner: { js: 'import { createRequire as __createRequire } from \'node:module\'; const require = __createRequire(import.meta.url);' },
    legalComments: 'none',
    logLevel: 'warning'
  })
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder)
  for (const { path, contents } of outputFiles) writeFileSync(path, contents)
}
