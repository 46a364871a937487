/**
 * Images that qemu-img has to read, through the real one: the bytes are those that it gives, nothing is left behind, and
 * an image that points at other files of this machine brings none of them onto the fabric.
 */
import { execFileSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { describeWith } from '../../harness/capabilities.ts'
import { eventually } from '../../harness/eventually.ts'
import { makeImage, randomRuns, sha256Of } from '../../harness/random-image.ts'
import { Chance, testSeed } from '../../harness/seed.ts'
import { SmallDisk } from '../../harness/small-disk.ts'
import { CommandLine, endOf, type Ran } from './command-line.ts'

const MIB = 2 ** 20
const IMAGE_BYTES = 16 * MIB
const CHUNK_BYTES = 256 * 1024
/** Far above what a conversion of a small image takes. */
const STARTED_DEADLINE_MS = 20_000
const SECRET = 'root:x:0:0:what an image from elsewhere must never get hold of\n'

const chance = new Chance(testSeed())
const line = new CommandLine()

describeWith(['qemu-img'], `images that are not raw (P2PVM_TEST_SEED=${chance.seed})`, () => {
  let folder: string
  let raw: string
  let qcow2: string
  let secret: string

  beforeAll(async () => {
    await line.build()
    folder = mkdtempSync(join(line.folder, 'images-'))
    raw = join(folder, 'image.raw')
    await makeImage(raw, IMAGE_BYTES, randomRuns(chance, { count: 4, bytesEach: 300_000, within: IMAGE_BYTES }))
    qcow2 = converted('image.qcow2', 'qcow2')
    secret = join(folder, 'secret')
    writeFileSync(secret, SECRET.padEnd(512))
  })
  beforeEach(async () => { await line.freshDaemon() })
  afterAll(async () => { await line.close() })

  describe('are the bytes that qemu-img reads', () => {
    it.each([
      ['qcow2', []],
      ['qcow2', ['-o', 'compat=0.10']],
      ['qcow2', ['-c']],
      ['qcow2', ['-o', 'extended_l2=on']],
      ['qed', []],
      ['vmdk', []],
      ['vmdk', ['-o', 'subformat=streamOptimized']],
      ['vdi', []],
      ['vhdx', []],
      ['vpc', []]
    ])('%s %j', async (format, options) => {
      const image = converted(`image-${options.join('')}.${format}`, format, ...options)
      const asRaw = join(folder, 'as.raw')
      qemuImg('convert', '-f', format, '-O', 'raw', image, asRaw)
      const sum = await sha256Of(asRaw)

      const { holes, chunks } = succeeded(await line.run(['import', image, '--name', 'image', '--json']))
      expect(chunks).toBeGreaterThan(0)
      expect(holes).toBeGreaterThan(IMAGE_BYTES / CHUNK_BYTES / 2)
      const out = join(folder, 'out.raw')
      expect(succeeded(await line.run(['export', 'image', out, '--json']))).toMatchObject({ sha256: sum })
      expect(await sha256Of(out)).toBe(sum)
      nothingIsLeft()
    })

    it('whatever the name of the file looks like', async () => {
      for (const name of ['nbd:elsewhere:10809.qcow2', 'json:{"driver":"null-co"}', 'a "quoted" % b\\c,d.qcow2', 'caf\u00e9 disk']) {
        const image = join(folder, name)
        writeFileSync(image, readFileSync(qcow2))
        expect(succeeded(await line.run(['import', image, '--name', 'image', '--json']))).toMatchObject({ size: IMAGE_BYTES })
        line.daemon.images_.clear()
      }
    })
  })

  describe('that need another file are refused, and it is not read', () => {
    const elsewhere: Record<string, [make: (path: string) => void, says: RegExp]> = {
      'a qcow2 over a file of this machine': [(path) => { qemuImg('create', '-f', 'qcow2', '-b', secret, '-F', 'raw', path) }, /backing file \(.*secret\)/],
      'a qcow2 over a file beside it': [(path) => { qemuImg('create', '-f', 'qcow2', '-b', 'image.qcow2', '-F', 'qcow2', path) }, /backing file \(image\.qcow2\)/],
      'a qcow2 over an address': [(path) => { qemuImg('create', '-f', 'qcow2', '-u', '-b', 'nbd://127.0.0.1:1/x', '-F', 'raw', path, '1M') }, /backing file \(nbd:/],
      'a qed over a file of this machine': [(path) => { qemuImg('create', '-f', 'qed', '-b', secret, '-F', 'raw', path) }, /backing file \(.*secret\)/],
      'a vmdk over another': [(path) => {
        converted('parent.vmdk', 'vmdk')
        qemuImg('create', '-f', 'vmdk', '-b', 'parent.vmdk', '-F', 'vmdk', path)
      }, /backing file \(parent\.vmdk\)/],
      // It is not there any more: qemu-img would say so, had it been let near.
      'a qcow2 with a data file': [(path) => {
        const data = join(folder, 'gone')
        qemuImg('create', '-f', 'qcow2', '-o', `data_file=${data},data_file_raw=on`, path, '1M')
        rmSync(data)
      }, /its data in other files/],
      'a vmdk descriptor of a file of this machine': [(path) => { writeFileSync(path, descriptorOf(secret)) }, /its data in other files/],
      'a vmdk extent with a descriptor of a file of this machine': [(path) => { writeFileSync(path, extentWith(descriptorOf(secret))) }, /its data in other files/]
    }
    it.each(Object.keys(elsewhere))('%s', async (what) => {
      const [make, says] = elsewhere[what]!
      const image = join(folder, what.replaceAll(' ', '-'))
      make(image)
      refused(await line.run(['import', image, '--name', 'image', '--json']), 2, 'ERR_USAGE', says)
      refused(await line.run(['import', image, '--name', 'image', '--json']), 2, 'ERR_USAGE', /whole in one file/)
      expect(line.daemon.calls).toEqual([])
      nothingIsLeft()
    })

    it('and the last two do show that file to those who ask qemu-img without a check', () => {
      for (const descriptor of [Buffer.from(descriptorOf(secret)), extentWith(descriptorOf(secret))]) {
        const [image, leaked] = [join(folder, 'leaks.vmdk'), join(folder, 'leaked')]
        writeFileSync(image, descriptor)
        qemuImg('convert', '-f', 'vmdk', '-O', 'raw', image, leaked)
        expect(readFileSync(leaked, 'latin1')).toContain(SECRET)
      }
    })
  })

  describe('leave nothing behind', () => {
    it('when qemu-img refuses them: the message names the file', async () => {
      const image = join(folder, 'broken.qcow2')
      writeFileSync(image, readFileSync(qcow2).fill(0xff, 20, 24)) // the size of its clusters
      const { message } = refused(await line.run(['import', image, '--name', 'image', '--json']), 2, 'ERR_USAGE', /qemu-img cannot read/)
      expect(message).toContain(image)
      expect(message).not.toContain('json:')
      nothingIsLeft()
    })

    it('when the name is taken, and when the daemon fails half-way', async () => {
      succeeded(await line.run(['import', raw, '--name', 'taken', '--json']))
      refused(await line.run(['import', qcow2, '--name', 'taken', '--json']), 11, 'ERR_CONFLICT', /taken/)
      line.daemon.onPiece = () => { throw new Error('half-way') }
      refused(await line.run(['import', qcow2, '--name', 'image', '--json']), 1, 'ERR_INTERNAL', /half-way/)
      nothingIsLeft()
    })

    it('when they are interrupted while qemu-img is at work, which ends too', async () => {
      const begun = join(folder, 'begun')
      const child = line.start(['import', qcow2, '--name', 'image', '--json'], { PATH: slowConversions(begun) })
      const ended = endOf(child)
      const { answer: pid } = await eventually('qemu-img has written the copy', STARTED_DEADLINE_MS, async () => existsSync(begun) ? Number(readFileSync(begun, 'utf8')) : undefined)
      expect(copies()).toHaveLength(1)
      child.kill('SIGINT')
      refused(await ended, 130, 'ERR_ABORTED', /SIGINT/)
      expect(() => process.kill(pid, 0)).toThrow('ESRCH')
      nothingIsLeft()
    })

    it.each(['SIGINT', 'SIGKILL'] as const)('when they end by %s while they are sent', async (signal) => {
      line.daemon.onPiece = () => {
        line.daemon.onPiece = () => {}
        child.kill(signal)
      }
      const child = line.start(['import', qcow2, '--name', 'image', '--json'])
      const ended = await endOf(child)
      if (signal === 'SIGINT') refused(ended, 130, 'ERR_ABORTED', /SIGINT/)
      expect(line.daemon.images_.size).toBe(0)
      nothingIsLeft()
    })
  })

  it('from standard input are usage errors, however the bytes come', async () => {
    const bytes = readFileSync(qcow2)
    for (const input of [[bytes], [bytes.subarray(0, 2), bytes.subarray(2, 3), bytes.subarray(3)]]) {
      refused(await line.run(['import', '-', '--name', 'image', '--json'], { input }), 2, 'ERR_USAGE', /standard input holds a qcow2 image: import it from a file/)
    }
    expect(line.daemon.images_.size).toBe(0)
  })

  it('without qemu-img are usage errors that name the package', async () => {
    const empty = mkdtempSync(join(folder, 'path-'))
    refused(await line.run(['import', qcow2, '--name', 'image', '--json'], { env: { PATH: empty } }), 2, 'ERR_USAGE', /qemu-img.*not installed.*qemu-utils/)
    expect(line.daemon.calls).toEqual([])
    nothingIsLeft()
  })

  describeWith(['root'], 'on a disk that is too small', () => {
    it('end as a full disk, and say which', async () => {
      const disk = await SmallDisk.mount(join(folder, 'small'), MIB)
      try {
        refused(await line.run(['import', qcow2, '--name', 'image', '--json'], { env: { TMPDIR: disk.path } }), 1, 'ERR_DISK_FULL', /small is too small.*TMPDIR/)
        expect(readdirSync(disk.path)).toEqual([])
      } finally {
        await disk[Symbol.asyncDispose]()
      }
    })
  })

  function converted (name: string, format: string, ...options: string[]): string {
    const path = join(folder, name)
    qemuImg('convert', '-f', 'raw', '-O', format, ...options, raw, path)
    return path
  }

  /** A PATH whose qemu-img converts, says its id, and then does not end. */
  function slowConversions (begun: string): string {
    const bin = join(folder, 'slow')
    mkdirSync(bin)
    const script = join(bin, 'qemu-img')
    const real = execFileSync('sh', ['-c', 'command -v qemu-img'], { encoding: 'utf8' }).trim()
    writeFileSync(script, `#!/bin/sh\n${real} "$@" || exit\n[ "$1" = convert ] || exit 0\necho $$ > '${begun}.new'\nmv '${begun}.new' '${begun}'\nexec sleep 600\n`)
    chmodSync(script, 0o755)
    return [bin, process.env.PATH].join(delimiter)
  }
})

function qemuImg (...args: string[]): void {
  execFileSync('qemu-img', args, { stdio: ['ignore', 'ignore', 'pipe'] })
}

function succeeded (ran: Ran): Record<string, unknown> {
  expect(ran).toMatchObject({ code: 0, stderr: '' })
  return JSON.parse(ran.stdout) as Record<string, unknown>
}

function refused ({ code, stdout, stderr }: Ran, exitCode: number, errorCode: string, says: RegExp): { message: string } {
  const { error } = JSON.parse(stdout) as { error: { message: string } }
  expect({ code, stderr, error }).toMatchObject({ code: exitCode, stderr: '', error: { code: errorCode, message: expect.stringMatching(says) as string } })
  return error
}

function copies (): string[] {
  return readdirSync(line.temporary)
}

function nothingIsLeft (): void {
  expect(copies()).toEqual([])
}

/** One sector of a file, as a disk. */
function descriptorOf (file: string): string {
  return ['# Disk DescriptorFile', 'version=1', 'CID=12345678', 'parentCID=ffffffff', 'createType="monolithicFlat"', `RW 1 FLAT "${file}" 0`, ''].join('\n')
}

/** A sparse extent without a capacity of its own, and the descriptor in its second sector. */
function extentWith (descriptor: string): Buffer {
  const bytes = Buffer.alloc(21 * 512)
  bytes.write('KDMV')
  bytes.writeUInt32LE(1, 4)
  bytes.writeBigUInt64LE(1n, 28)
  bytes.writeBigUInt64LE(20n, 36)
  bytes.write(descriptor, 512)
  return bytes
}
