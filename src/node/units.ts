/** Sizes and times as people write and read them: IEC units (1 KiB = 1024 bytes) in both directions. */
import { P2pvmError } from '../protocols/errors.ts'

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'] as const
const SIZE = /^(\d+(?:\.\d+)?) ?(?:B|([kmgtp])(?:iB)?)?$/i

/** `262144`, `256KiB`, `256k`, `1.5 GiB`: whole bytes. ERR_USAGE for anything else, the ambiguous `KB` included. */
export function parseBytes (text: string): number {
  const match = SIZE.exec(text.trim())
  if (match === null) throw new P2pvmError('ERR_USAGE', `not a size: ${JSON.stringify(text)} (say 262144, 256KiB, 4MiB or 1.5GiB)`)
  const [, digits = '', letter] = match
  const power = letter === undefined ? 0 : 'kmgtp'.indexOf(letter.toLowerCase()) + 1
  const bytes = Number(digits) * 1024 ** power
  if (!Number.isSafeInteger(bytes)) throw new P2pvmError('ERR_USAGE', `not a whole number of bytes: ${JSON.stringify(text)}`)
  return bytes
}

/** `0 B`, `256 KiB`, `1.4 GiB`: three digits or so. */
export function formatBytes (bytes: number): string {
  let power = 0
  let value = bytes
  while (value >= 1024 && power < UNITS.length - 1) {
    value /= 1024
    power += 1
  }
  const digits = power === 0 || Number.isInteger(value) || value >= 100 ? 0 : 1
  return `${value.toFixed(digits)} ${UNITS[power]}`
}

/** `0.8 ms`, `340 ms`, `2.5 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`. */
export function formatDuration (ms: number): string {
  if (ms < 10) return `${ms.toFixed(1)} ms`
  if (ms < 1000) return `${ms.toFixed(0)} ms`
  const seconds = ms / 1000
  if (seconds < 60) return `${seconds.toFixed(1)} s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds % 3600 / 60)} min`
  return `${Math.floor(seconds / 86_400)} d ${Math.floor(seconds % 86_400 / 3600)} h`
}

/** `2026-03-01 12:00:00`, in UTC. */
export function formatTime (timeMs: number): string {
  return new Date(timeMs).toISOString().slice(0, 19).replace('T', ' ')
}
