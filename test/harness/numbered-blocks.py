"""Writes numbered 4 KiB blocks with O_DIRECT, in order, round and round a file, and says which have been acknowledged.

    python3 numbered-blocks.py PATH SLOTS [PATH...]

With several paths each write goes to one after the other, and is acknowledged when the last has it. Write number n (from 0) goes to block n % SLOTS and consists of the number n + 1, 512 times, little endian: so a block says
which write it is from, and a block of zeros is none. Each number is printed when its write has returned. Ends, after the write
under way, when stdin closes; then it prints "end".
"""

import mmap
import os
import select
import struct
import sys

BLOCK_BYTES = 4096

slots = int(sys.argv[2])
files = [os.open(path, os.O_WRONLY | os.O_DIRECT) for path in [sys.argv[1], *sys.argv[3:]]]
block = mmap.mmap(-1, BLOCK_BYTES)  # aligned to a page, as O_DIRECT asks
number = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    block[:] = struct.pack("<Q", number + 1) * (BLOCK_BYTES // 8)
    for file in files:
        written = os.pwritev(file, [block], number % slots * BLOCK_BYTES)
        if written != BLOCK_BYTES:
            sys.exit(f"write {number} took {written} bytes")
    os.write(1, b"%d\n" % number)
    number += 1
os.write(1, b"end\n")
