/** What a mount asks of its daemon, over the control socket. It owns nothing but the client's connections. */
import type { MirrorSource, VersionRef } from '../mirror/source.ts'
import type { ControlClient } from './control-client.ts'

export function mirrorSource (client: ControlClient): MirrorSource {
  const resolve = async (ref: string, signal: AbortSignal): Promise<VersionRef> => {
    const { blob, version, size, chunkSize } = await client.resolve(ref, { signal })
    return { blob, version, size, chunkSize }
  }
  return {
    resolve,
    async images (signal) {
      return (await client.images({ signal })).map(({ name }) => name)
    },
    async versions (image, signal) {
      return (await client.versions(image, { signal })).map(({ version }) => version)
    },
    async chunkIds ({ blob, version }, first, count, signal) {
      return await client.chunkIds({ blob, version, first, count }, { signal })
    },
    async fetch (chunks, signal) {
      return await client.fetch(chunks, { signal, priority: 'demand' })
    },
    async clone (workingCopy, { id, name }, signal) {
      const { blob, version } = await client.clone({ workingCopy, name, id }, { signal })
      return await resolve(`${blob}@${version}`, signal)
    },
    async commit (workingCopy, { id, as, message }, signal) {
      const { blob, version } = await client.commit({ workingCopy, as, message, id }, { signal })
      return await resolve(`${blob}@${version}`, signal)
    }
  }
}
