/** Images that are not raw: known by their first bytes, and turned into raw ones by qemu-img. */
import { spawn } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { P2pvmError } from '../protocols/errors.ts'

/** Enough of a file for each of the signatures. */
export const SIGNATURE_BYTES = 512

/** From qemu's block drivers: name of the format for `qemu-img -f`, where its magic is, and what it is. */
const SIGNATURES: ReadonlyArray<{ readonly format: string, readonly at: number, readonly magic: string }> = [
  { format: 'qcow2', at: 0, magic: 'QFI\xfb' },
  { format: 'qed', at: 0, magic: 'QED\0' },
  { format: 'vmdk', at: 0, magic: 'KDMV' },
  { format: 'vmdk', at: 0, magic: '# Disk DescriptorFile' },
  { format: 'vhdx', at: 0, magic: 'vhdxfile' },
  { format: 'vpc', at: 0, magic: 'conectix' },
  { format: 'vdi', at: 0x40, magic: '\x7f\x10\xda\xbe' }
]

/** undefined: raw, as far as anybody can tell. */
export function formatOf (head: Uint8Array): string | undefined {
  const bytes = Buffer.from(head)
  return SIGNATURES.find(({ at, magic }) => bytes.subarray(at, at + magic.length).equals(Buffer.from(magic, 'latin1')))?.format
}

export interface RawCopy {
  readonly path: string
  remove (): Promise<void>
}

/** A raw, sparse, temporary copy. ERR_USAGE when qemu-img is not installed or refuses the file. */
export async function convertToRaw (file: string, format: string, signal: AbortSignal): Promise<RawCopy> {
  const folder = await mkdtemp(join(tmpdir(), 'p2pvm-import-'))
  const path = join(folder, 'image.raw')
  const remove = async (): Promise<void> => { await rm(folder, { recursive: true, force: true }) }
  try {
    // An absolute path: qemu-img would take a name with a colon for an address.
    await qemuImg(['convert', '-f', format, '-O', 'raw', '-S', '4k', resolve(file), path], { file, format, signal })
    return { path, remove }
  } catch (error) {
    await remove()
    throw error
  }
}

async function qemuImg (args: readonly string[], { file, format, signal }: { file: string, format: string, signal: AbortSignal }): Promise<void> {
  const child = spawn('qemu-img', args, { stdio: ['ignore', 'ignore', 'pipe'], signal })
  let said = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => { said = (said + text).slice(-1000) })
  const failure = await new Promise<P2pvmError | undefined>((resolve) => {
    child.once('error', (error: NodeJS.ErrnoException) => {
      if (error.name === 'AbortError') return // 'close' follows
      resolve(error.code === 'ENOENT'
        ? new P2pvmError('ERR_USAGE', `${file} is a ${format} image, and qemu-img, which reads those, is not installed (Debian: apt-get install qemu-utils)`, { file, format })
        : new P2pvmError('ERR_INTERNAL', `cannot start qemu-img: ${error.message}`, {}, error))
    })
    child.once('close', (code) => {
      resolve(code === 0 ? undefined : new P2pvmError('ERR_USAGE', `qemu-img cannot read ${file} as ${format}: ${said.trim()}`, { file, format }))
    })
  })
  signal.throwIfAborted()
  if (failure !== undefined) throw failure
}
