/** Images that are not raw: known by their first bytes, and turned into raw ones by qemu-img. */
import { spawn } from 'node:child_process'
import { type FileHandle, mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { abortErrorOf, withDeadline } from '../protocols/abort.ts'
import { P2pvmError } from '../protocols/errors.ts'
import { nodeClock } from './world.ts'

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

/** For the first bytes of the file and its list of snapshots; a file on a network may take longer than one on a disk. */
const INFO_DEADLINE_MS = 30_000
/** Some thousands of snapshots. */
const INFO_BYTES_MAX = 4 * 1024 * 1024

interface Foreign {
  readonly file: string
  readonly format: string
  /** Its first SIGNATURE_BYTES. */
  readonly head: Uint8Array
}

/**
 * A raw, sparse copy, already without a name: it is gone when it is closed, however this process ends. ERR_USAGE when
 * qemu-img is not installed or refuses the file, and when part of the image is in other files: those would be read with the
 * rights of whoever imports, and an image from elsewhere may name any. ERR_DISK_FULL.
 */
export async function rawCopyOf (image: Foreign, signal: AbortSignal): Promise<FileHandle> {
  await checkHoldsAll(image, signal)
  const folder = await mkdtemp(join(tmpdir(), 'p2pvm-import-'))
  try {
    const path = join(folder, 'image.raw')
    await qemuImg(['convert', '-O', 'raw', '-S', '4k', sourceOf(image), path], image, signal)
    return await open(path)
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

async function checkHoldsAll (image: Foreign, signal: AbortSignal): Promise<void> {
  const { file, format } = image
  const refuse = (what: string): never => {
    throw new P2pvmError('ERR_USAGE', `${file} is a ${format} image with ${what}, and only images that are whole in one file are imported: make one of it with qemu-img convert`, { file, format })
  }
  // What qemu-img opens even for its account of the image.
  if (hasDataFile(image)) refuse('its data in other files')
  const account = await withDeadline(nodeClock, INFO_DEADLINE_MS, [signal], async (signal) => await qemuImg(['info', '--output=json', sourceOf(image)], image, signal))
  if (account.length === INFO_BYTES_MAX) refuse('too many snapshots')
  const { 'backing-filename': backing } = JSON.parse(account) as { 'backing-filename'?: unknown }
  if (backing !== undefined) refuse(`a backing file (${String(backing)})`)
}

/** From qemu's docs/interop/qcow2.txt and the VMDK specification. */
function hasDataFile ({ format, head }: Foreign): boolean {
  const bytes = Buffer.alloc(SIGNATURE_BYTES)
  bytes.set(head)
  // Version 3 has a word of features without which an image cannot be read; bit 2 is the external data file.
  if (format === 'qcow2') return bytes.readUInt32BE(4) >= 3 && (bytes.readUInt32BE(76) & 4) !== 0
  // A descriptor is a list of files; one inside an extent counts when the extent itself has no capacity.
  if (format === 'vmdk') return !bytes.toString('latin1').startsWith('KDMV') || bytes.readBigUInt64LE(12) === 0n
  return false
}

/** Nothing is left to guess: this format, this one file, whatever colons are in its name, and no other behind it. */
function sourceOf ({ file, format }: Foreign): string {
  return `json:${JSON.stringify({ driver: format, file: { driver: 'file', filename: resolve(file) }, backing: null })}`
}

/** What it prints. Returns when the process has ended. */
async function qemuImg (args: readonly string[], image: Foreign, signal: AbortSignal): Promise<string> {
  const { file, format } = image
  const child = spawn('qemu-img', args, { stdio: ['ignore', 'pipe', 'pipe'], signal, env: { ...process.env, LC_ALL: 'C' } })
  let printed = ''
  let said = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => { printed = (printed + text).slice(0, INFO_BYTES_MAX) })
  child.stderr.setEncoding('utf8').on('data', (text: string) => { said = (said + text).slice(-1000) })
  const failure = await new Promise<P2pvmError | undefined>((resolve) => {
    child.once('error', (error: NodeJS.ErrnoException) => {
      if (error.name === 'AbortError') return // 'close' follows
      resolve(error.code === 'ENOENT'
        ? new P2pvmError('ERR_USAGE', `${file} is a ${format} image, and qemu-img, which reads those, is not installed (Debian: apt-get install qemu-utils)`, { file, format })
        : new P2pvmError('ERR_INTERNAL', `cannot start qemu-img: ${error.message}`, {}, error))
    })
    child.once('close', (code) => { resolve(code === 0 ? undefined : refusal(image, said.trim())) })
  })
  if (signal.aborted) throw abortErrorOf(signal)
  if (failure !== undefined) throw failure
  return printed
}

function refusal (image: Foreign, said: string): P2pvmError {
  const { file, format } = image
  if (said.includes('No space left on device')) {
    return new P2pvmError('ERR_DISK_FULL', `${tmpdir()} is too small for a raw copy of ${file}: name a larger folder with TMPDIR`, { file, format })
  }
  return new P2pvmError('ERR_USAGE', `qemu-img cannot read ${file} as ${format}: ${said.replace(sourceOf(image), file)}`, { file, format })
}
