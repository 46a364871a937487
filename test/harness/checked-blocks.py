"""Writes numbered, checksummed blocks to a part of a file until it cannot, and says what was answered.

    python3 checked-blocks.py PATH OFFSET BLOCK_BYTES SLOTS FIRST FSYNC_EVERY direct|buffered

Write number n (from FIRST) goes to slot n * 7 % SLOTS: its block holds n + 1 and the slot, 64 bits each, little endian, then bytes that
follow from n, then the CRC-32 of all that. "w N" is printed when write N has returned, "f N" when an fsync after it has. Ends when
stdin closes, or a call fails, which it says: "e NAME".
"""

import errno
import mmap
import os
import select
import struct
import sys
import zlib

path = sys.argv[1]
offset, block_bytes, slots, number, fsync_every = (int(text) for text in sys.argv[2:7])
file = os.open(path, os.O_WRONLY | (os.O_DIRECT if sys.argv[7] == "direct" else 0))
block = mmap.mmap(-1, 4096)  # aligned to a page, as O_DIRECT asks
try:
    while not select.select([sys.stdin], [], [], 0)[0]:
        slot = number * 7 % slots
        body = struct.pack("<QQ", number + 1, slot) + bytes([number & 0xFF]) * (block_bytes - 20)
        block[:block_bytes] = body + struct.pack("<I", zlib.crc32(body))
        os.pwritev(file, [memoryview(block)[:block_bytes]], offset + slot * block_bytes)
        os.write(1, b"w %d\n" % number)
        if number % fsync_every == fsync_every - 1:
            os.fsync(file)
            os.write(1, b"f %d\n" % number)
        number += 1
except OSError as error:
    os.write(1, b"e %s\n" % errno.errorcode[error.errno].encode())
