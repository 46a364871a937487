/**
 * Validators for what came from outside: a decoded CBOR (or JSON) value in, a typed value out, ERR_PROTOCOL when it does
 * not fit. Every size has a bound. Compose them:
 *
 *     const decodeGet = record({ id: bytes(32), priority: oneOf('demand', 'commit', 'prefetch'), note: optional(string(80)) })
 *     const { id, priority, note } = decodeGet(message.body)
 *
 * Fields that a record does not name are ignored, so that a newer peer may add some.
 */
import { P2pvmError } from './errors.ts'

/** `what` names the value in the error message. */
export type Decoder<T> = (value: unknown, what?: string) => T

interface OptionalDecoder<T> extends Decoder<T | undefined> {
  readonly optional: true
}

type Shape = Readonly<Record<string, Decoder<unknown>>>
type OptionalKeys<S extends Shape> = { [K in keyof S]: S[K] extends { readonly optional: true } ? K : never }[keyof S]
type Flat<T> = { [K in keyof T]: T[K] }
/** The type that a record of these decoders yields. */
export type Decoded<S extends Shape> = Flat<
  { [K in Exclude<keyof S, OptionalKeys<S>>]: ReturnType<S[K]> } &
  { [K in OptionalKeys<S>]?: Exclude<ReturnType<S[K]>, undefined> }
>

function reject (what: string, expected: string): never {
  throw new P2pvmError('ERR_PROTOCOL', `${what}: expected ${expected}`)
}

export const boolean: Decoder<boolean> = (value, what = 'value') =>
  typeof value === 'boolean' ? value : reject(what, 'a boolean')

/** An integer from 0 to `max`, which is at most Number.MAX_SAFE_INTEGER. */
export function uint (max: number = Number.MAX_SAFE_INTEGER): Decoder<number> {
  return (value, what = 'value') =>
    typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 && value <= max
      ? value
      : reject(what, `an integer from 0 to ${max}`)
}

/** At most `charactersMax` UTF-16 units; matching `pattern` when there is one. */
export function string (charactersMax: number, pattern?: RegExp): Decoder<string> {
  return (value, what = 'value') =>
    typeof value === 'string' && value.length <= charactersMax && (pattern === undefined || pattern.test(value))
      ? value
      : reject(what, `a string of at most ${charactersMax} characters${pattern === undefined ? '' : ` like ${pattern.source}`}`)
}

/** Exactly `length` bytes. */
export function bytes (length: number): Decoder<Uint8Array> {
  return (value, what = 'value') =>
    value instanceof Uint8Array && value.length === length ? value : reject(what, `${length} bytes`)
}

export function bytesUpTo (lengthMax: number): Decoder<Uint8Array> {
  return (value, what = 'value') =>
    value instanceof Uint8Array && value.length <= lengthMax ? value : reject(what, `at most ${lengthMax} bytes`)
}

export function oneOf<const T extends string | number> (...allowed: readonly T[]): Decoder<T> {
  return (value, what = 'value') => allowed.find((one) => one === value) ?? reject(what, `one of ${allowed.join(', ')}`)
}

export function array<T> (item: Decoder<T>, itemsMax: number): Decoder<T[]> {
  return (value, what = 'value') => {
    if (!Array.isArray(value) || value.length > itemsMax) return reject(what, `an array of at most ${itemsMax} items`)
    return value.map((one, index) => item(one, `${what}[${index}]`))
  }
}

/** A fixed row, `[first, second, …]`: the compact form of a record. */
export function tuple<const D extends ReadonlyArray<Decoder<unknown>>> (...items: D): Decoder<{ -readonly [K in keyof D]: ReturnType<D[K]> }> {
  return (value, what = 'value') => {
    if (!Array.isArray(value) || value.length !== items.length) return reject(what, `an array of ${items.length} items`)
    return items.map((item, index) => item(value[index], `${what}[${index}]`)) as { -readonly [K in keyof D]: ReturnType<D[K]> }
  }
}

/** A field that may be absent. */
export function optional<T> (item: Decoder<T>): OptionalDecoder<T> {
  const decoder = (value: unknown, what?: string): T | undefined => value === undefined ? undefined : item(value, what)
  return Object.assign(decoder, { optional: true as const })
}

export function nullable<T> (item: Decoder<T>): Decoder<T | null> {
  return (value, what) => value === null ? null : item(value, what)
}

export function record<S extends Shape> (shape: S): Decoder<Decoded<S>> {
  const fields = Object.entries(shape)
  return (value, what = 'body') => {
    if (typeof value !== 'object' || value === null || Array.isArray(value) || value instanceof Uint8Array) {
      return reject(what, 'an object')
    }
    const source = value as Record<string, unknown>
    const decoded: Record<string, unknown> = {}
    for (const [name, decoder] of fields) {
      // Only own properties: `constructor` and its like must not be found on the prototype.
      const field = decoder(Object.hasOwn(source, name) ? source[name] : undefined, `${what}.${name}`)
      if (field !== undefined) decoded[name] = field
    }
    return decoded as Decoded<S>
  }
}

/** For a tagged union: the decoder is chosen by the value of the field `tag`. */
export function variant<V extends Readonly<Record<string, Decoder<unknown>>>> (tag: string, variants: V): Decoder<ReturnType<V[keyof V]>> {
  const kindOf = record({ [tag]: oneOf(...Object.keys(variants)) })
  return (value, what = 'body') => {
    const kind = kindOf(value, what)[tag] as keyof V & string
    return variants[kind]!(value, what) as ReturnType<V[keyof V]>
  }
}
