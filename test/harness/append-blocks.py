"""Appends numbered blocks to a file from its beginning, as a log does, and keeps account of it in another file.

    python3 append-blocks.py PATH ACCOUNT FSYNC_EVERY direct|buffered

Block n (from 0), of 4 KiB, lies at n * 4 KiB and consists of n + 1, 512 times, little endian. ACCOUNT holds two numbers of 64 bits: how
many writes have returned, and how many of them were covered by an fsync that has; FSYNC_EVERY 0: none. Each line of stdin is a number of blocks to go on to;
when they are there, "at N PAUSE" is printed: the longest that a write took, in milliseconds, since the line before. Ends with stdin.
"""

import mmap
import os
import struct
import sys
import time

BLOCK_BYTES = 4096

path, fsync_every, direct = sys.argv[1], int(sys.argv[3]), sys.argv[4] == "direct"
file = os.open(path, os.O_WRONLY | (os.O_DIRECT if direct else 0))
account_file = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
os.ftruncate(account_file, 16)
account = mmap.mmap(account_file, 16)
block = mmap.mmap(-1, BLOCK_BYTES)  # aligned to a page, as O_DIRECT asks
number = 0
for line in sys.stdin:
    longest = 0.0
    for number in range(number, int(line)):
        block[:] = struct.pack("<Q", number + 1) * (BLOCK_BYTES // 8)
        before = time.monotonic()
        written = os.pwritev(file, [block], number * BLOCK_BYTES)
        longest = max(longest, time.monotonic() - before)
        if written != BLOCK_BYTES:
            sys.exit(f"write {number} took {written} bytes")
        account[0:8] = struct.pack("<Q", number + 1)
        if fsync_every > 0 and number % fsync_every == fsync_every - 1:
            os.fsync(file)
            account[8:16] = struct.pack("<Q", number + 1)
    number = int(line)
    os.write(1, b"at %d %.3f\n" % (number, longest * 1000))
