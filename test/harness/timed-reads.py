"""Reads pages of a file in turn with O_DIRECT, past the kernel's page cache, and says when each answer came.

    python3 timed-reads.py PATH PAGES

Prints "ready" after the first round over the first PAGES pages, then a line per read: milliseconds of the system's monotonic
clock at its end. Ends when stdin closes, or with the error's name on stderr and exit code 1 when a read fails.
"""

import errno
import mmap
import os
import select
import sys
import time

PAGE_BYTES = 4096

path, pages = sys.argv[1], int(sys.argv[2])
page = mmap.mmap(-1, PAGE_BYTES)
try:
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    for number in range(pages):
        os.preadv(file, [page], number * PAGE_BYTES)
    print("ready", flush=True)
    number = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        os.preadv(file, [page], number % pages * PAGE_BYTES)
        os.write(1, b"%.3f\n" % (time.monotonic() * 1000))
        number += 1
except OSError as error:
    sys.exit(errno.errorcode.get(error.errno, str(error.errno)))
