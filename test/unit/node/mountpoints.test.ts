import { expect, test } from 'vitest'
import { typesAt } from '../../../src/node/mountpoints.ts'

const MOUNTINFO = `22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:26 / /mnt/two\\040words\\134 rw,relatime shared:5 master:1 - fuse.p2pvm p2pvm rw,user_id=0
31 22 0:27 / /mnt/over rw - tmpfs tmpfs rw
32 31 0:28 / /mnt/over rw - fuse.p2pvm p2pvm rw
`

test('the types of what is mounted at a place, the topmost last', () => {
  expect(typesAt(MOUNTINFO, '/')).toEqual(['ext4'])
  expect(typesAt(MOUNTINFO, '/mnt/two words\\')).toEqual(['fuse.p2pvm'])
  expect(typesAt(MOUNTINFO, '/mnt/over')).toEqual(['tmpfs', 'fuse.p2pvm'])
  expect(typesAt(MOUNTINFO, '/mnt')).toEqual([])
  expect(typesAt('', '')).toEqual([])
})
