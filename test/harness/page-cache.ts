/** What the kernel has of files in its page cache. */
import { python } from './mount-process.ts'

const FORGET = `
import os, sys
for path in sys.argv[1:]:
  fd = os.open(path, os.O_RDONLY)
  try: os.fsync(fd)
  except OSError: pass
  os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
  os.close(fd)`

const RESIDENT = `
import ctypes, json, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def resident (path):
  fd = os.open(path, os.O_RDONLY)
  size = os.fstat(fd).st_size
  pages = mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
  found = (ctypes.c_ubyte * (size // 4096))()
  at = ctypes.addressof(ctypes.c_char.from_buffer(pages))
  assert libc.mincore(ctypes.c_void_p(at), ctypes.c_size_t(size), found) == 0
  return sum(page & 1 for page in found)
print(json.dumps([resident(path) for path in sys.argv[1:]]))`

/** Drops the pages of files, of those that can be synced. */
export async function forgetPages (paths: readonly string[]): Promise<void> {
  await python(FORGET, ...paths)
}

/** How many pages of each file it has. */
export async function residentPages (paths: readonly string[]): Promise<number[]> {
  return JSON.parse(await python(RESIDENT, ...paths)) as number[]
}
