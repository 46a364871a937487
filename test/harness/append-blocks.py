"""Appends numbered blocks to a file from its beginning, as a log does, and keeps account of it in another file.

    python3 append-blocks.py PATH ACCOUNT FSYNC_EVERY direct|buffered

Block n (from 0), of 4 KiB, lies at n * 4 KiB and consists of n + 1, 512 times, little endian. ACCOUNT holds two numbers of 64 bits: how
many writes have returned, and how many of them were covered by an fsync that has; FSYNC_EVERY 0: none. Each line of stdin is "N PAUSE":
a number of blocks to go on to, and a pause after each write in milliseconds; one with a pause is left when the next comes. Then
"at N LONGEST" is printed: where it is, and the longest that a write took, in milliseconds, since it was last where it was to be. Ends
with stdin.
"""

import mmap
import os
import select
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
commands = open(0, "rb", buffering=0)  # what select says is then true
number = 0
longest = 0.0
while line := commands.readline():
    target, pause = int(line.split()[0]), float(line.split()[1]) / 1000
    while number < target and not (pause > 0 and select.select([commands], [], [], 0)[0]):
        block[:] = struct.pack("<Q", number + 1) * (BLOCK_BYTES // 8)
        before = time.monotonic()
        written = os.pwritev(file, [block], number * BLOCK_BYTES)
        longest = max(longest, time.monotonic() - before)
        if written != BLOCK_BYTES:
            sys.exit(f"write {number} took {written} bytes")
        number += 1
        account[0:8] = struct.pack("<Q", number)
        if fsync_every > 0 and number % fsync_every == 0:
            os.fsync(file)
            account[8:16] = struct.pack("<Q", number)
        if pause > 0:
            time.sleep(pause)
    os.write(1, b"at %d %.3f\n" % (number, longest * 1000))
    if number == target:
        longest = 0.0
