import { describe, expect, it } from 'vitest'
import { parseBonnie } from '../../../bench/lib/bonnie.ts'

describe('a line of bonnie++', () => {
  it('has the blocks in MB/s, the seeks and the files per second, and says nothing of what was too fast', () => {
    expect(parseBonnie('1.98,2.00a,vm,1,1795439003,64M,,8192,5,,,1000,9,2000,8,,,+++++,+++,654.5,3,1,,,,,908,36,+++++,+++,1394,42,7,8,9,10,11,12\n'))
      .toEqual([1.024, 2.048, undefined, 654.5, 908])
  })

  it('is missing when the program said something else', () => {
    expect(() => parseBonnie('Can\'t open file')).toThrow('no line')
  })
})
