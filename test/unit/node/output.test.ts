import { expect, test } from 'vitest'
import { Output, table, TransferProgress } from '../../../src/node/output.ts'
import { P2pvmError } from '../../../src/protocols/errors.ts'

class Screen {
  text = ''
  readonly isTTY: boolean
  constructor (isTTY: boolean) { this.isTTY = isTTY }
  write (text: string): void { this.text += text }
}

function output ({ json = false, terminal = false, env = {} }: { json?: boolean, terminal?: boolean, env?: Record<string, string> }): { out: Output, stdout: Screen, stderr: Screen } {
  const stdout = new Screen(terminal)
  const stderr = new Screen(terminal)
  return { out: new Output({ json, stdout, stderr, env }), stdout, stderr }
}

test('columns are aligned, numbers and sizes to the right, and nothing is a dash', () => {
  expect(table(['NAME', 'VERSION', 'SIZE', 'PATH'], [['debian-12', 1, '2 GiB', null], ['x', 12, '512 KiB', '/a b']])).toBe([
    'NAME       VERSION     SIZE  PATH',
    'debian-12        1    2 GiB  -',
    'x               12  512 KiB  /a b'
  ].join('\n'))
  expect(table(['NAME'], [])).toBe('NAME')
})

test('progress is for terminals, and is gone before anything else is said', () => {
  const terminal = output({ terminal: true })
  new TransferProgress(terminal.out, 4 * 2 ** 20).update(2 ** 20, '50% holes')
  expect(terminal.stderr.text).toMatch(/^\r\x1b\[K1 MiB of 4 MiB {2}.*\/s {2}50% holes$/)
  terminal.out.result({}, () => 'done')
  expect(terminal.stderr.text.endsWith('\r\x1b[K')).toBe(true)
  expect(terminal.stdout.text).toBe('done\n')

  const pipe = output({})
  new TransferProgress(pipe.out, undefined).update(2 ** 20)
  expect(pipe.stderr.text).toBe('')
})

test('with --json a failure is the one document on stdout', () => {
  const { out, stdout, stderr } = output({ json: true, terminal: true })
  out.failure(new P2pvmError('ERR_CONFLICT', 'taken', { name: 'x' }))
  expect(JSON.parse(stdout.text)).toEqual({ error: { code: 'ERR_CONFLICT', message: 'taken', fields: { name: 'x' } } })
  expect(stderr.text).toBe('')
})

test('colour is for terminals, without NO_COLOR', () => {
  const said = (options: Parameters<typeof output>[0]): string => {
    const { out, stderr } = output(options)
    out.failure(new P2pvmError('ERR_NOT_FOUND', 'nothing'))
    return stderr.text
  }
  expect(said({ terminal: true })).toBe('\x1b[31mp2pvm:\x1b[0m nothing\n')
  expect(said({ terminal: true, env: { NO_COLOR: '1' } })).toBe('p2pvm: nothing\n')
  expect(said({})).toBe('p2pvm: nothing\n')
})
