/** Names of images. A name wins over a prefix of a blob id. */
import { P2pvmError } from '../protocols/errors.ts'

const IMAGE_NAME = /^[a-z0-9][a-z0-9._-]{0,127}$/

/** The name, or ERR_USAGE. */
export function checkImageName (name: string): string {
  if (!IMAGE_NAME.test(name)) {
    throw new P2pvmError('ERR_USAGE',
      `an image name is 1 to 128 of a-z 0-9 . _ - and starts with a letter or digit, not ${JSON.stringify(name)}`)
  }
  return name
}
